"""Threads of the linear algebra: one, because modules are spread over threads instead."""

from __future__ import annotations

import os


def use_one_thread() -> None:
    """Ask the BLAS for one thread, before numpy is imported; on factors two are slower. A value that is set stays."""
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
