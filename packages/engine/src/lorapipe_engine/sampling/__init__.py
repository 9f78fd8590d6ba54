"""Plans of pictures, without a model: axes, prompts, wildcards, samplers and schedules, parameters of a picture."""
