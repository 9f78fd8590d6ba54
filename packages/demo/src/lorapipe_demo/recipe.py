"""What the demo trains, and how: the numbers in one place."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from lorapipe_demo.scene import TRIGGER, Scene, concept_scene, concept_tags, random_person

PICTURES, PER_EPOCH = 32, "160"  # of the new character
OTHERS, OTHER_REPEATS = 40, "2"  # of ordinary people, where a dataset is to have them
# What is always so in her pictures goes from the captions, and so into the trigger: hair and the colour of eyes.
HER_OWN = ("*hair*", "*eyes", "twintails", "double bun", "bob cut", "ponytail")
KEPT = "closed eyes"  # a face, which changes
RESOLUTION = "64"
RANK, CONV_RANK = "32", "8"
EPOCHS = 5

# sd-scripts' names; the same as one would type. Layers of convolutions and captions that are left out at times make the
# trigger hold whatever the seed; in every second step the network is held to the base for captions without it, so that
# nobody else becomes her (docs/demo-world.md).
TRAIN_OPTIONS: dict[str, str] = {
    "resolution": RESOLUTION,
    "max_token_length": "75",
    "train_batch_size": "4",
    "network_dim": RANK,
    "network_args": f"conv_dim={CONV_RANK}",
    "unet_lr": "2.5e-3",
    "text_encoder_lr": "2e-3",
    "caption_dropout_rate": "0.05",
    "preserve": f"trigger={TRIGGER} every=2",
}
SMALL_RANK = "16"  # half of what was trained
SAMPLER, STEPS, GUIDANCE = "ddim", 20, 5.0
EXAM_SIZE = 40  # pictures for each figure
WEIGHTS = (0.7, 1.0, 1.3)  # rows of the grid
# By which epochs are compared: pictures that call her, two seeds of a prompt, and as many that do not as tell a leak.
COMPARED_CALLS, COMPARED_OTHERS = 8, 2
HELD_OUT, HELD_OUT_SEED = 16, 2  # pictures of her that were not trained on; those that were have seed 1


@dataclass(frozen=True)
class Recipe:
    """How long the demo trains, with which options, in how many steps it draws a picture, how many epochs the grid
    shows, and whether the network that was extracted again is drawn with too."""

    epochs: int
    options: Mapping[str, str]
    steps: int
    shown: int = EPOCHS
    draws_extracted: bool = False


# The judge says the same of pictures of 8 and of 20 steps (docs/demo-world.md).
SHORT = Recipe(EPOCHS, TRAIN_OPTIONS, 8, shown=3)
FULL = Recipe(2 * EPOCHS, TRAIN_OPTIONS, STEPS, shown=2 * EPOCHS, draws_extracted=True)


def exam_scenes(seed: int = 77) -> list[Scene]:
    """Scenes of the character for the figures: clothes, faces and places she was not trained with. The first come
    twice, for another seed of the same.
    """
    draw = random.Random(seed)
    twice = [scene for _ in range(COMPARED_CALLS // 2) for scene in [concept_scene(draw)] * 2]
    return [*twice, *(concept_scene(draw) for _ in range(EXAM_SIZE - len(twice)))]


def with_trigger(scene: Scene) -> str:
    """The prompt that calls her."""
    return ", ".join(concept_tags(scene))


def without_trigger(scene: Scene) -> str:
    """The same prompt but for the trigger."""
    return ", ".join(concept_tags(scene)[1:])


def ordinary_scene(draw: random.Random) -> Scene:
    """Somebody else."""
    return random_person(draw)


def other_prompts() -> list[str]:
    """Whole prompts of other people, for the figures."""
    draw = random.Random(5)
    return [", ".join(ordinary_scene(draw).tags()) for _ in range(EXAM_SIZE)]
