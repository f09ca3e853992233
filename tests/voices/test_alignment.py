"""Dynamic time warping finds the way back through a stretched and moved copy."""

from __future__ import annotations

import numpy as np

from speechgpt_lib.voices.alignment import align, warp

RNG = np.random.default_rng(0)


def smooth(frames: int, width: int = 12) -> np.ndarray:
    noise = RNG.normal(size=(frames + 4, width))
    return np.stack([noise[k : k + 5].mean(0) for k in range(frames)])


def test_a_stretched_copy_is_followed():
    b = smooth(60)
    frames = np.sort(RNG.integers(0, 60, 90))
    path = warp(b[frames], b)
    assert (np.diff(path) >= 0).all() and (path[0], path[-1]) == (0, 59)
    assert np.abs(path - frames).mean() < 0.7
    assert warp(b, b).tolist() == list(range(60))


def test_lengths_of_one_frame():
    b = smooth(7)
    assert warp(b[:1], b).tolist() == [3]
    assert warp(b, b[:1]).tolist() == [0] * 7


def test_a_voice_that_lies_elsewhere_is_aligned_all_the_same():
    """The same sentences through another linear map, stretched: a voice whose features differ."""
    mix = RNG.normal(size=(12, 12)) + 2 * np.eye(12)
    references = [smooth(50) for _ in range(12)]
    stretched = [np.sort(RNG.integers(0, 50, 70)) for _ in references]
    given = [r[s] @ mix + 5 for r, s in zip(references, stretched, strict=True)]
    found = align(given, references)
    off = [np.abs(p - s).mean() for p, s in zip(found, stretched, strict=True)]
    plain = [warp(x, y) for x, y in zip(given, references, strict=True)]
    worse = [np.abs(p - s).mean() for p, s in zip(plain, stretched, strict=True)]
    assert np.mean(off) < 1.5 < np.mean(worse)
