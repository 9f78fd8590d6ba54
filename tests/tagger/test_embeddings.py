"""``--embeddings``: vectors that tell near-duplicates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from lorapipe_tagger.scoring.embeddings import DIMENSIONS, Projection

from .making import PICTURES, Tag


def test_alike_where_the_model_sees_alike(tag: Tag, folder: Path, tmp_path: Path) -> None:
    with Image.open(PICTURES / "exif.jpg") as image:
        image.save(folder / "again.jpg", quality=80, exif=image.getexif())
    (folder / "rgba.txt").write_text("my own words\n")
    target = tmp_path / "vectors.npz"
    for words in ([], ["--existing", "replace", "--force"]):  # fresh, and from the cache
        result = tag(folder, "--embeddings", target, *words)
        assert result.code == 0, result.err
        if not words:
            assert (folder / "rgba.txt").read_text() == "my own words\n"
            assert "3 tagged, 1 had captions already" in result.err
            assert result.records[-1]["existing"] is True
        with np.load(target) as found:
            names = [Path(path).name for path in found["paths"].tolist()]
            vectors = found["vectors"].astype(np.float32)
        assert names == ["again.jpg", "exif.jpg", "gray16.png", "rgba.png"]
        assert vectors.shape == (4, DIMENSIONS)
        alike = vectors @ vectors.T
        np.testing.assert_allclose(np.diag(alike), 1, atol=2e-3)
        assert alike[0, 1] > 0.99
        assert np.triu(alike, 1)[alike < 0.99].max() < 0.97
    result = tag(folder, "--embeddings", target)
    assert "vectors.npz: exists already; give --force" in result.error


def test_projections_keep_angles() -> None:
    rng = np.random.default_rng(0)
    scores = [(rng.random(10_861) ** 40).astype(np.float32) for _ in range(12)]
    scores += [np.clip(one + rng.normal(0, 0.02, one.shape), 0, 1).astype(np.float32) for one in scores]
    projection = Projection(10_861)
    vectors = np.stack([projection.vector([one]) for one in scores]).astype(np.float32)
    whole = np.stack(scores) / np.linalg.norm(np.stack(scores), axis=1, keepdims=True)
    assert np.abs(vectors @ vectors.T - whole @ whole.T).max() < 0.2
    pairs = [(row, row + 12) for row in range(12)]
    assert max(abs(vectors[a] @ vectors[b] - whole[a] @ whole[b]) for a, b in pairs) < 0.03
    assert not projection.vector([np.zeros(10_861, dtype=np.float32)]).any()
