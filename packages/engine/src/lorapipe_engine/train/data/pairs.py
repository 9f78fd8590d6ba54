"""What a slider's steps are fed: prompts alone."""

from __future__ import annotations

from typing import Any

import torch

from lorapipe_engine.datasets.pairs import Pairs
from lorapipe_engine.datasets.scan import Dataset
from lorapipe_engine.pictures.batches import Batch
from lorapipe_engine.pictures.captions import When
from lorapipe_engine.train.data.examples import TrainingData
from lorapipe_engine.train.data.microbatch import MicroBatch, SliderTexts
from lorapipe_engine.train.families.base import Family


class PairData(TrainingData):
    """Makes the inputs of each step from pairs of prompts; see :class:`.TrainingData`."""

    def __init__(self, dataset: Dataset, pairs: Pairs, family: Family, **settings: Any) -> None:
        super().__init__(dataset, {}, family, **settings)
        self.pairs = pairs

    def micro_batch(self, batch: Batch, when: When, share: float, rows_of: range | None = None) -> MicroBatch:
        del when
        total = len(batch.pictures)
        own = rows_of or range(total)
        rows = [self.pairs.rows[batch.pictures[row]] for row in own]
        width, height = self.dataset.pictures[0].placement.bucket
        family, count = self.family, len(rows)

        def tokens(name: str) -> Any:
            return family.text.tokenize([getattr(row, name) for row in rows], weighted=self.weighted)

        texts = SliderTexts(
            positive=tokens("positive"),
            negative=tokens("negative"),
            neutral=tokens("neutral"),
            empty=family.text.tokenize([""] * count, weighted=self.weighted),
            strengths=torch.tensor([row.strength for row in rows], device=family.device),
        )
        size = family.latent_size(width, height)
        return MicroBatch(
            latents=torch.zeros(count, 2 * family.latent_channels, *size, device=family.device),
            tokens=tokens("target"),
            weights=torch.full((count,), share * count / total, device=family.device),
            geometry=family.plain_geometry(count, width, height),
            part=None if count == total else (own.start, total),
            slider=texts,
        )


def pair_data(dataset: Dataset, pairs: Pairs, family: Family, *, seed: int, weighted: bool) -> PairData:
    """The pairs of a run, with the models where they are needed."""
    family.vae.to("cpu")
    if family.device.type == "cuda":
        torch.cuda.empty_cache()
    family.text.move_to_device(for_good=True)
    family.move_denoiser_to_device()
    return PairData(dataset, pairs, family, seed=seed, weighted=weighted)
