"""Which frame of a recording says what which frame of a reference of the same sentence says.

Dynamic time warping (Sakoe & Chiba 1978) over the encoder's features.  A new voice's features lie
elsewhere than those of the voices of training, so the first alignment compares features of zero
mean and unit variance, and the next ones what an affine map, fitted to the pairs of the last one,
makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROUNDS = 3
RIDGE = 0.003  # of the affine map, beside features of unit variance


def align(given: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Features (frames, width) of recordings and of references of the same sentences → for each
    recording the frame of its reference, (frames,), by frame."""
    source, target = _Scale(given), _Scale(references)
    moved = [source(x) for x in given]
    fixed = [target(y) for y in references]
    paths = [warp(x, y) for x, y in zip(moved, fixed, strict=True)]
    for _ in range(ROUNDS):
        affine = _fit(moved, fixed, paths)
        paths = [warp(_homogeneous(x) @ affine, y) for x, y in zip(moved, fixed, strict=True)]
    return paths


def warp(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The frames of b (m, width) that the frames of a (n, width) fall on: (n,), never falling."""
    costs = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T  # (n, m)
    rows, infinite = [], float("inf")
    before = [0.0] + [infinite] * len(b)  # the cost of the best path to each cell of a row
    for cost in costs.tolist():
        row, left = [infinite], infinite
        for one, diagonal, above in zip(cost, before, before[1:], strict=False):
            left = one + min(diagonal, above, left)
            row.append(left)
        rows.append(row)
        before = [infinite, *row[1:]]
    i, j = len(a) - 1, len(b) - 1
    hits = np.zeros((len(a), 2))  # sum and number of the frames of b that a frame of a falls on
    while i >= 0 and j >= 0:
        hits[i] += (j, 1)
        diagonal = rows[i - 1][j] if i else (0.0 if j == 0 else infinite)
        above = rows[i - 1][j + 1] if i else infinite
        best = min(diagonal, above, rows[i][j])
        i, j = (i - (best != rows[i][j]), j - (best != above or best == diagonal))
    return np.rint(hits[:, 0] / np.maximum(hits[:, 1], 1)).astype(np.int64)


class _Scale:
    """Brings features to zero mean and unit variance over all utterances."""

    def __init__(self, utterances: Sequence[np.ndarray]):
        frames = np.concatenate(list(utterances)).astype(np.float64)
        self.mean, self.spread = frames.mean(0), frames.std(0) + 1e-3

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) / self.spread


def _homogeneous(x: np.ndarray) -> np.ndarray:
    return np.c_[x, np.ones(len(x))]


def _fit(given: list, references: list, paths: list) -> np.ndarray:
    """The affine map (width + 1, width) that brings aligned frames nearest, by ridge regression."""
    a = _homogeneous(np.concatenate(given))
    b = np.concatenate([y[path] for y, path in zip(references, paths, strict=True)])
    return np.linalg.solve(a.T @ a + RIDGE * len(a) * np.eye(a.shape[1]), a.T @ b)
