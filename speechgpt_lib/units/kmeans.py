"""k-means over frames of features: centroids, assignment as one matrix product, and their file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from sklearn.cluster import MiniBatchKMeans

from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import atomic_path

NEAR_TIE = 1e-4  # relative difference of squared distances


@dataclass(frozen=True)
class KMeansUnits:
    """Centroids (K, width) float32."""

    centroids: np.ndarray

    @property
    def count(self) -> int:
        """K, the number of units."""
        return len(self.centroids)

    def assign(self, features: np.ndarray) -> np.ndarray:
        """(frames, width) → the unit of each frame, (frames,) int64."""
        (units,), _ = Assigner(self)([torch.from_numpy(np.array(features, np.float32))])
        return units

    def save(self, path: Path) -> None:
        """Writes the centroids to a safetensors file."""
        with atomic_path(path) as temporary:
            save_file({"centroids": self.centroids}, temporary)

    @classmethod
    def load(cls, path: Path) -> KMeansUnits:
        """Reads what `save` wrote."""
        if not Path(path).is_file():
            raise UserError(f"no centroids {path}: run notebook 01_unit_extraction.ipynb first")
        return cls(load_file(path)["centroids"])


class Assigner:
    """Centroids on a device, which give many frames their nearest one at once."""

    def __init__(self, kmeans: KMeansUnits, device: str = "cpu"):
        self.centroids = torch.from_numpy(kmeans.centroids).to(device)
        self.squares = self.centroids.square().sum(1)

    @torch.inference_mode()
    def __call__(self, features: Sequence[torch.Tensor]) -> tuple[list[np.ndarray], int]:
        """(frames, width) tensors → units (frames,) int64 of each, and the number of near ties.

        Units are argmin over ‖x‖² − 2x·C + ‖C‖²; ‖x‖² does not depend on the centroid, so it is
        left out.  Near ties are frames whose two nearest centroids differ by less than 1e-4 of the
        larger squared distance: there rounding may choose either.
        """
        joined = torch.cat(list(features))
        if joined.shape[1] != self.centroids.shape[1]:
            found = f"features have width {joined.shape[1]} but the centroids have"
            raise UserError(f"{found} {self.centroids.shape[1]}: they belong to another encoder")
        scores = torch.addmm(self.squares, joined, self.centroids.T, alpha=-2)  # (frames, K)
        least, nearest = scores.topk(min(2, len(self.centroids)), dim=1, largest=False)
        distances = least + joined.square().sum(1, keepdim=True)
        gaps = distances[:, -1] - distances[:, 0]
        near = gaps < NEAR_TIE * distances[:, -1]
        units = nearest[:, 0].cpu().split(list(map(len, features)))
        return [u.numpy() for u in units], int(near.sum()) if distances.shape[1] == 2 else 0


def fit_kmeans(
    features: list[np.ndarray], clusters: int, seed: int, frames: int = 60_000
) -> KMeansUnits:
    """Mini-batch k-means on a seeded sample of `frames` frames of a list of (n, width) arrays."""
    rng = np.random.default_rng(seed)
    bounds = np.cumsum([0, *map(len, features)])
    total = int(bounds[-1])
    if total < clusters:
        wanted = "give more speech or fewer clusters"
        raise UserError(f"{total} frames cannot make {clusters} clusters: {wanted}")
    chosen = np.sort(rng.choice(total, min(frames, total), replace=False))
    which = np.searchsorted(bounds, chosen, side="right") - 1
    sample = np.stack([features[i][k - bounds[i]] for i, k in zip(which, chosen, strict=True)])
    model = MiniBatchKMeans(
        clusters,
        batch_size=min(10_000, len(sample)),
        n_init=3,
        max_iter=60,
        random_state=seed,
        reassignment_ratio=0.0,
    )
    fitted = model.fit(sample.astype(np.float32))
    return KMeansUnits(fitted.cluster_centers_.astype(np.float32))
