"""What a step is fed: latents, captions, masks, kept in caches."""
