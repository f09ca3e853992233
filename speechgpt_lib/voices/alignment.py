"""Which frame of a recording says what which frame of a reference of the same sentence says.

Dynamic time warping (Sakoe & Chiba 1978) over the encoder's features.  A new voice's features lie
elsewhere than those of the voices of training, so the first alignment compares features of zero
mean and unit variance, and the next ones what an affine map, fitted to the pairs of the last one,
makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speechgpt_lib.metrics.waveform import warping_path

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
    mine, other = warping_path(costs).T
    return np.rint(np.bincount(mine, other) / np.bincount(mine)).astype(np.int64)


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
