"""What the demo trains, and how: the numbers in one place."""

from __future__ import annotations

import random

from lorapipe_demo.scene import Scene, concept_scene, concept_tags, random_person

PICTURES, REPEATS = 32, 5  # of the new character
OTHERS, OTHER_REPEATS = 40, 2  # of ordinary people, so that only the trigger calls her
EPOCHS = 7

# sd-scripts' names; the same as one would type.
TRAIN_OPTIONS: dict[str, str] = {
    "resolution": "64",
    "max_token_length": "75",
    "train_batch_size": "4",
    "network_dim": "32",
    "unet_lr": "2.5e-3",
    "text_encoder_lr": "2e-3",
}
SMALL_RANK = "16"  # half of what was trained
SAMPLER, STEPS, GUIDANCE = "ddim", 20, 5.0
EXAM_SIZE = 40  # pictures for each figure


def exam_scenes(seed: int = 77) -> list[Scene]:
    """Scenes of the character for the figures: clothes, faces and places she was not trained with."""
    draw = random.Random(seed)
    return [concept_scene(draw) for _ in range(EXAM_SIZE)]


def with_trigger(scene: Scene) -> str:
    """The prompt that calls her."""
    return ", ".join(concept_tags(scene))


def without_trigger(scene: Scene) -> str:
    """The same prompt but for the trigger."""
    return ", ".join(concept_tags(scene)[1:])


def ordinary_tags(scene: Scene, index: int) -> list[str]:
    """Captions of the ordinary people: every second one as short as hers, the others whole."""
    if index % 2:
        return scene.tags()
    found = [f"1{scene.kind}", "solo", f"{scene.clothes_colour} {scene.clothes}", scene.expression]
    return [*found, *([f"holding {scene.held}"] if scene.held else []), scene.background]


def ordinary_scene(draw: random.Random) -> Scene:
    """Somebody else."""
    return random_person(draw)
