"""Dense SVDs on a GPU, for the modules that need one.

Low-rank modules are always done on the CPU: their cores are so small that all of them are finished before
torch has been imported. Dense ones (``diff``, LoHa of a high rank) are where a GPU helps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.networks.factors import Spectrum, dense_spectrum, spectrum_of_svd

Decompose = Callable[[NDArray[Any]], Spectrum]


def dense_on(device: str, tell: Callable[[str], None]) -> Decompose:
    """The dense SVD for ``device``: "cpu", or a torch device such as "cuda" or "cuda:1".

    torch is imported at the first matrix, not before. Where it or the device is missing the CPU does the
    work, the result being the same, and ``tell`` is given one line about it.
    """
    if device == "cpu":
        return dense_spectrum
    return _TorchSvd(device, tell)


class _TorchSvd:
    def __init__(self, device: str, tell: Callable[[str], None]) -> None:
        self._device = device
        self._tell = tell
        self._lock = threading.Lock()
        self._svd: Decompose | None = None

    def __call__(self, matrix: NDArray[Any]) -> Spectrum:
        with self._lock:
            if self._svd is None:
                self._svd = self._find()
        return self._svd(matrix)

    def _find(self) -> Decompose:
        try:
            import torch

            torch.zeros(1, dtype=torch.float64, device=self._device)
        except ImportError:
            self._tell(f"--device {self._device}: torch is not installed, the CPU does the work")
            return dense_spectrum
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else "not available"
            self._tell(f"--device {self._device}: {reason}; the CPU does the work")
            return dense_spectrum

        def svd(matrix: NDArray[Any]) -> Spectrum:
            # One at a time: a GPU gains nothing from two, and needs twice the memory.
            with self._lock:
                on_device = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float64)).to(self._device)
                left, sigma, right = torch.linalg.svd(on_device, full_matrices=False)
                return spectrum_of_svd(left.cpu().numpy(), sigma.cpu().numpy(), right.cpu().numpy())

        return svd
