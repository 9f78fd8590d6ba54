"""The leading singular values and vectors of a dense matrix: fast, and checked against the optimum.

A random block is multiplied by A and Aᵀ a few times (subspace iteration with QR; Halko, Martinsson and Tropp,
arXiv:0909.4061), which gives an orthonormal Q (o, l) and the SVD of QᵀA = W Θ V. Then two facts are computed, not
estimated:

* what any rank k leaves out: ‖R‖² + Σ θᵢ² over i > k, with R = A - Q QᵀA,
* how much less the best approximation of rank k can leave out. For every μ and every X ⪰ 0 with X + μI ⪰ AᵀA the sum
  of the k largest eigenvalues of AᵀA is at most kμ + tr X (the dual of Ky Fan's maximum principle; Overton and
  Womersley 1992). X is taken diagonal in V, and X + μI - AᵀA ⪰ 0 is proved by a Cholesky factorisation.

So a result is within the factor :data:`TOLERANCE` of the optimum, up to the rounding of the matrix's type, or the
thin SVD takes its place. The same factorisation proves that no further singular value exceeds a threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.networks.factors import Balance, Factors, dense_spectrum

Array = NDArray[Any]
# The rank for leading singular values (descending) of a matrix of that Frobenius norm, and whether the values at hand
# decide it: more are computed if not.
Choose = Callable[[Array, float], tuple[int, bool]]

TOLERANCE = 1.01  # the error over the optimum's, at most
SMALL = 96  # matrices of at most so many rows or columns: the thin SVD is the smaller work
FIRST_BLOCK = 32  # values computed at first where the number is not known
STEPS = (2, 3, 8)  # steps of iteration, and more of them where the proof fails
ROWS = 1024  # of the matrix worked on at once
PANEL = 128
WELL_CONDITIONED = 1e5  # condition up to which a Gram matrix in float64 gives an orthonormal basis


@dataclass(frozen=True)
class Leading:
    """The best approximations of A (o, n) up to some rank: ``left`` (o, l), ``singular`` (l,) float64 descending,
    ``right`` (l, n).

    ``rest`` is ‖A - left · singular · right‖ (Frobenius). ``rank`` is the one that was chosen. ``proved``: the error at
    that rank over the best possible is at most this; 1 for a thin SVD.
    """

    left: Array
    singular: Array
    right: Array
    rest: float
    rank: int
    proved: float

    def norm(self) -> float:
        """‖A‖ (Frobenius)."""
        return float(np.hypot(self.rest, np.linalg.norm(self.singular)))

    def dropped(self, rank: int) -> float:
        """Frobenius norm of what that rank leaves out."""
        return float(np.hypot(self.rest, np.linalg.norm(self.singular[rank:])))

    def truncate(self, rank: int, balance: Balance = "sqrt") -> Factors:
        """The approximation of that rank as factors (o, rank) and (rank, n), ``balance`` as ``Spectrum`` has it."""
        sigma = self.singular[:rank]
        share = {"sqrt": np.sqrt(sigma), "up": sigma, "down": np.ones_like(sigma)}[balance]
        other = {"sqrt": np.sqrt(sigma), "up": np.ones_like(sigma), "down": sigma}[balance]
        return Factors(self.left[:, :rank] * share, other[:, None] * self.right[:rank])


def leading(
    matrix: Array,
    choose: Choose,
    *,
    threshold: float | None = None,
    expected: int = FIRST_BLOCK,
    seed: int = 0,
) -> Leading:
    """The leading singular triplets of a finite matrix (o, n), float32 or float64, at the rank that ``choose`` names.

    Where ``choose`` counts values above ``threshold``, that no other value exceeds it is proved too. Maths is done in
    the matrix's type, sums in float64. ``expected`` is the rank to begin with, where it is known the right one. Equal
    matrices and seeds give equal results on a machine.
    """
    smaller = min(matrix.shape)
    if smaller <= SMALL:
        return _whole(matrix, choose)
    if matrix.shape[0] < matrix.shape[1]:
        turned = leading(matrix.T, choose, threshold=threshold, expected=expected, seed=seed)
        return replace(turned, left=turned.right.T, right=turned.left.T)
    draw = np.random.default_rng([seed, *matrix.shape])
    wanted = max(1, expected)
    while (size := wanted + max(12, wanted // 4)) <= smaller // 2:
        block = draw.standard_normal((matrix.shape[1], size), np.float32).astype(matrix.dtype, copy=False)
        proven, rank, decided = _iterate(matrix, block, choose, threshold, wanted)
        if proven is not None:
            return proven
        if decided and rank <= wanted:
            break  # the proof failed, which a larger block rarely mends
        wanted = rank if decided else 2 * wanted
    return _whole(matrix, choose)


def _whole(matrix: Array, choose: Choose) -> Leading:
    """By a thin SVD in float64."""
    exact = dense_spectrum(matrix)
    singular = exact.singular
    rank, _ = choose(singular, exact.norm())
    return Leading(exact.up, singular, exact.down, 0.0, min(rank, singular.size), 1.0)


def _iterate(
    matrix: Array, block: Array, choose: Choose, threshold: float | None, wanted: int
) -> tuple[Leading | None, int, bool]:
    """The values, proved, or None; the rank chosen, and whether it is decided by the values at hand."""
    rank, decided = 0, False
    for steps in STEPS:
        for _ in range(steps):
            block = _basis(matrix.T @ _basis(matrix @ block))
        values, gram = _project(matrix, block)
        rank, decided = choose(values.singular, values.norm())
        if not decided or rank > wanted:
            return None, rank, decided
        proved = _prove(values, gram, rank)
        # Where the next value exceeds it, the rank was bounded by something else.
        counted = threshold is not None and bool(np.all(values.singular[rank : rank + 1] <= threshold))
        sure = threshold is None or not counted or _none_above(values, gram, rank, threshold)
        if proved <= TOLERANCE and sure:
            return replace(values, rank=rank, proved=proved), rank, True
    return None, rank, decided


def _project(matrix: Array, block: Array) -> tuple[Leading, Array]:
    """The SVD of A within the space of A · block, and RᵀR (n, n) of what lies outside it."""
    basis = _basis(_basis(matrix @ block))  # twice: to the last digit
    inside = basis.T @ matrix
    small, singular, right = np.linalg.svd(inside.astype(np.float64), full_matrices=False)
    gram = np.zeros((matrix.shape[1],) * 2, matrix.dtype)
    for start in range(0, len(matrix), ROWS):
        piece = matrix[start : start + ROWS] - basis[start : start + ROWS] @ inside
        gram += piece.T @ piece
    rest = float(np.sqrt(max(0.0, float(np.trace(gram, dtype=np.float64)))))
    return Leading(basis @ small.astype(matrix.dtype), singular, right, rest, 0, np.inf), gram


def _prove(values: Leading, gram: Array, rank: int) -> float:
    """The error at ``rank`` over the optimum's, proved to be at most this; infinite where it is not.

    δ and μ are as large as the tolerance allows, for then the proof succeeds most easily.
    """
    if rank == 0:
        return 1.0
    squares = np.square(values.singular)
    error = values.dropped(rank) ** 2
    if error <= (16 * np.finfo(gram.dtype).eps * values.norm()) ** 2:
        return 1.0  # nothing is left but the rounding of this arithmetic
    room = (1 - 1 / TOLERANCE**2) * error
    delta = room / (4 * rank)
    kept = float(np.sum(squares[:rank]))

    def excess(mu: float) -> float:
        return rank * mu + float(np.sum(np.maximum(squares - mu + delta, 0.0))) - kept

    low = float(squares[rank]) if rank < squares.size else 0.0
    high = low + room
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) <= room else (low, middle)
    surplus = excess(low)
    if surplus > room or not _is_bound(values.right, np.minimum(squares, low - delta), gram, low):
        return float(np.inf)
    return float(np.sqrt(error / (error - surplus)))


def _none_above(values: Leading, gram: Array, rank: int, threshold: float) -> bool:
    """Whether at most ``rank`` singular values of A exceed the threshold."""
    squares = np.square(values.singular)
    squares[:rank] = 0.0  # taken out of AᵀA: what is left has to stay below the threshold
    return _is_bound(values.right, squares, gram, threshold**2)


def _is_bound(right: Array, weights: Array, gram: Array, bound: float) -> bool:
    """Whether bound · I - V diag(weights) Vᵀ - gram is positive definite."""
    rows = right.astype(gram.dtype, copy=False)
    matrix = -gram - (rows.T * weights.astype(gram.dtype)) @ rows
    matrix[np.diag_indices_from(matrix)] += bound
    return _is_positive(matrix)


def _is_positive(matrix: Array) -> bool:
    """Whether a symmetric matrix is positive definite: Cholesky by panels, in place. LAPACK's as numpy ships it takes
    three times as long.
    """
    for start in range(0, len(matrix), PANEL):
        stop = min(len(matrix), start + PANEL)
        try:
            corner = np.linalg.cholesky(matrix[start:stop, start:stop])
        except np.linalg.LinAlgError:
            return False
        below = matrix[stop:, start:stop] @ np.linalg.inv(corner).T
        matrix[stop:, stop:] -= below @ below.T
    return True


def _basis(block: Array) -> Array:
    """An orthonormal basis (to a few digits) of the columns of a tall block: Cholesky of its Gram matrix in float64, a
    fraction of the work of a QR, which is done where the columns are too near to dependent.
    """
    exact = block.astype(np.float64, copy=False)
    try:
        lower = np.linalg.cholesky(exact.T @ exact)
        turn = np.linalg.inv(lower).T
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.qr(block)[0])
    if np.linalg.norm(lower) * np.linalg.norm(turn) > WELL_CONDITIONED:
        return np.asarray(np.linalg.qr(block)[0])
    return np.asarray(block @ turn.astype(block.dtype))
