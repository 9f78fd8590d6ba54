"""Algebra of low-rank factors: exact spectra without dense matrices. Shared by lora-resize and lora-merge.

A change is up · down with ``up`` (o, r) and ``down`` (r, n), n = in·k·k. With thin QR up = Q_U R_U and downᵀ
= Q_D R_D, the product is Q_U (R_U R_Dᵀ) Q_Dᵀ, and the SVD A Σ Bᵀ of the small core R_U R_Dᵀ is, but for the
orthonormal Q's, that of the whole: singular values are unique, and those beyond r are exactly 0. The Q's are
never formed, because Q_U A Σ = up · (R_Dᵀ B) and Σ Bᵀ Q_Dᵀ = (Aᵀ R_U) · down. Cost O((o + n) r²). All maths
is float64. Where a factor's columns are far from dependent, its R is the Cholesky factor of its Gram matrix, which is
the same matrix up to signs of rows, in a quarter of the time.

No function changes the number of BLAS threads; on matrices of this size one thread is faster than two (a
command sets OPENBLAS_NUM_THREADS before numpy is imported), and modules can be spread over a thread pool,
since numpy gives up the interpreter lock inside LAPACK.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Balance = Literal["sqrt", "up", "down"]


class Factors(NamedTuple):
    """A change up · down: ``up`` (o, r), ``down`` (r, n). A scale is folded in, or kept by the caller."""

    up: Array
    down: Array


@dataclass(frozen=True)
class Spectrum:
    """The thin SVD of a change, kept as factors and the small matrices that turn them into singular vectors.

    ``singular`` (t,) float64, descending, holds every singular value that can differ from 0. ``up`` @
    ``up_mix`` has the left singular vectors times their values as columns, ``down_mix`` @ ``down`` the right
    ones as rows; there may be fewer of these than values (:func:`kron_spectrum` keeps what it was asked for).
    """

    singular: Array
    up: Array
    down: Array
    up_mix: Array
    down_mix: Array

    def truncate(self, rank: int, balance: Balance = "sqrt") -> Factors:
        """The best approximation of that rank (Eckart-Young), as float64 factors (o, rank) and (rank, n).

        ``balance`` says where the singular values go: "sqrt" half to each side, "up" (sd-scripts' layout) or
        "down". Singular values of 0 give columns and rows of exact zeros. Raises ValueError for a rank below
        1 or above the number of vectors kept.
        """
        if not 1 <= rank <= self.up_mix.shape[1]:
            raise ValueError(f"rank {rank} is not within 1 to {self.up_mix.shape[1]}")
        sigma = self.singular[:rank]
        inverse = np.divide(1.0, sigma, out=np.zeros_like(sigma), where=sigma > 0)
        up_share = {"sqrt": np.sqrt(inverse), "up": np.sign(sigma), "down": inverse}[balance]
        down_share = {"sqrt": np.sqrt(inverse), "up": inverse, "down": np.sign(sigma)}[balance]
        up = self.up @ (self.up_mix[:, :rank] * up_share)
        down = (self.down_mix[:rank] * down_share[:, None]) @ self.down
        return Factors(up, down)

    def scaled(self, scale: float) -> Spectrum:
        """The spectrum of ``scale`` times the change; a negative one turns the left singular vectors round."""
        return replace(
            self,
            singular=self.singular * abs(scale),
            up_mix=self.up_mix * scale,
            down_mix=self.down_mix * abs(scale),
        )

    def dropped(self, rank: int) -> float:
        """Frobenius norm of what :meth:`truncate` leaves out."""
        return float(np.sqrt(np.sum(np.square(self.singular[rank:]))))

    def norm(self) -> float:
        """Frobenius norm of the whole change."""
        return float(np.sqrt(np.sum(np.square(self.singular))))


def spectrum(up: Array, down: Array) -> Spectrum:
    """Exact spectrum of up · down by QR and a small SVD; up (o, r), down (r, n) of any float type, all
    finite.

    Values below the rounding of the float64 core (relative to the norms of the factors) are set to 0. Raises
    ValueError if the inner sizes differ, FloatingPointError if the product is infinite in float64.
    """
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
        raise ValueError(f"factors of shapes {up.shape} and {down.shape} cannot be multiplied")
    up, down = up.astype(np.float64, copy=False), down.astype(np.float64, copy=False)
    r_up, r_down = _triangle(up), _triangle(down.T)  # (min(o, r), r), (min(n, r), r)
    with np.errstate(over="ignore", invalid="ignore"):
        core = _finite(r_up @ r_down.T)
    left, sigma, right = np.linalg.svd(core, full_matrices=False)
    floor = np.finfo(np.float64).eps * up.shape[1] * np.linalg.norm(r_up) * np.linalg.norm(r_down)
    sigma = np.where(sigma > floor, sigma, 0.0)
    return Spectrum(sigma, up, down, r_down.T @ right.T, left.T @ r_up)


# Singular values from a Gram matrix are off by ε · condition of the largest: here at most 2e-12 of it.
_WELL_CONDITIONED = 1e4


def _triangle(matrix: Array) -> Array:
    """R of the thin QR of a matrix (m, r), up to the signs of its rows."""
    _finite(matrix)
    triangle = _triangle_of_gram(matrix) if matrix.shape[0] > 2 * matrix.shape[1] else None
    return np.asarray(np.linalg.qr(matrix, mode="r")) if triangle is None else triangle


def _triangle_of_gram(matrix: Array) -> Array | None:
    """R by Cholesky; None where the columns are too near to dependent for that."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        gram = matrix.T @ matrix
        if not np.isfinite(gram).all():
            return None
        try:
            lower = np.linalg.cholesky(gram)
            condition = np.linalg.norm(lower) * np.linalg.norm(np.linalg.inv(lower))
        except np.linalg.LinAlgError:
            return None
    # Written so that NaN is no good condition.
    return np.asarray(lower.T) if condition <= _WELL_CONDITIONED else None


def _finite(matrix: Array) -> Array:
    """The matrix itself. Raises FloatingPointError for infinite values, on which LAPACK may never come back."""
    if not np.isfinite(matrix).all():
        raise FloatingPointError("its values are too large for float64")
    return matrix


def dense_spectrum(matrix: Array) -> Spectrum:
    """Thin SVD of a dense matrix (o, n)."""
    exact = _finite(matrix.astype(np.float64, copy=False))
    return spectrum_of_svd(*np.linalg.svd(exact, full_matrices=False))


def spectrum_of_svd(left: Array, sigma: Array, right: Array) -> Spectrum:
    """A thin SVD that was computed elsewhere: left (o, t), sigma (t,) descending, right (t, n), float64."""
    size = max(left.shape[0], right.shape[1])
    floor = np.finfo(np.float64).eps * size * (sigma[0] if sigma.size else 0.0)
    sigma = np.where(sigma > floor, sigma, 0.0)
    weights = np.diag(sigma)
    return Spectrum(sigma, left, right, weights, weights)


def kron_spectrum(first: Array, second: Array, limit: int) -> Spectrum:
    """Spectrum of first ⊗ second: the singular values are the products of theirs, the vectors likewise.

    ``first`` (o1, i1), ``second`` (o2, n2). All products are in ``singular``; the vectors of the ``limit``
    largest are built, without forming the product.
    """
    one, two = dense_spectrum(first), dense_spectrum(second)
    products = np.multiply.outer(one.singular, two.singular).reshape(-1)
    order = np.argsort(-products, kind="stable")
    kept = order[: max(1, limit)]
    i, j = np.divmod(kept, two.singular.size)
    left = np.einsum("ot,pt->opt", one.up[:, i], two.up[:, j]).reshape(-1, kept.size)
    right = np.einsum("ti,tn->tin", one.down[i], two.down[j]).reshape(kept.size, -1)
    weights = np.diag(products[kept])
    return Spectrum(products[order], left, right, weights, weights)


def hadamard_factors(first: Factors, second: Factors) -> Factors:
    """(U₁D₁) ∘ (U₂D₂) as plain factors of rank r₁·r₂: row-wise and column-wise Khatri-Rao products."""
    (u1, d1), (u2, d2) = first, second
    up = np.einsum("op,oq->opq", u1, u2).reshape(u1.shape[0], -1)
    down = np.einsum("pn,qn->pqn", d1, d2).reshape(-1, d1.shape[1])
    return Factors(up, down)


def stack(parts: Sequence[tuple[Factors, float]]) -> Factors:
    """Σ scale · up · down as one pair of factors, the ranks added up.

    Each side takes √|scale|, the sign goes to ``up``; so factors of one balance stay balanced. Raises
    ValueError for no parts, or parts of different outer sizes.
    """
    if len({(f.up.shape[0], f.down.shape[1]) for f, _ in parts}) != 1:
        raise ValueError("the parts must be at least one and of the same outer sizes")
    ups = [f.up * (np.sign(scale) * np.sqrt(abs(scale))) for f, scale in parts]
    downs = [f.down * np.sqrt(abs(scale)) for f, scale in parts]
    return Factors(np.concatenate(ups, axis=1), np.concatenate(downs, axis=0))


def product_norm(up: Array, down: Array) -> float:
    """‖up · down‖_F through the two Gram matrices, exact to about 1e-8 of ‖up‖·‖down‖."""
    up, down = up.astype(np.float64, copy=False), down.astype(np.float64, copy=False)
    return float(np.sqrt(max(0.0, np.sum((up.T @ up) * (down @ down.T)))))


def rounding_norm(exact: Factors, rounded: Factors) -> float:
    """‖U D - Û D̂‖_F for factors and their cast to a narrower type, without a dense matrix.

    Written as U (D - D̂) + (U - Û) D̂, whose two terms are of the size of the result, so nothing cancels.
    """
    up, down, cast_up, cast_down = (
        side.astype(np.float64, copy=False) for side in (exact.up, exact.down, rounded.up, rounded.down)
    )
    step_up, step_down = up - cast_up, down - cast_down
    outer = (up.T @ up) * (step_down @ step_down.T)
    cross = (up.T @ step_up) * (step_down @ cast_down.T)
    inner = (step_up.T @ step_up) * (cast_down @ cast_down.T)
    return float(np.sqrt(max(0.0, np.sum(outer) + 2.0 * np.sum(cross) + np.sum(inner))))
