"""k-means over frames of features: centroids, assignment as one matrix product, and the file they live in."""

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
        return len(self.centroids)

    def assign(self, features: np.ndarray) -> np.ndarray:
        """(frames, width) → unit ids (frames,) int64: argmin over ‖x‖² − 2x·C + ‖C‖², of which ‖x‖² is the same for all C."""
        if features.shape[1] != self.centroids.shape[1]:
            raise UserError(
                f"features have width {features.shape[1]} but the centroids have {self.centroids.shape[1]}: they belong to another encoder"
            )
        features = features.astype(np.float32)
        return ((self.centroids**2).sum(1) - 2 * features @ self.centroids.T).argmin(1)

    def save(self, path: Path) -> None:
        with atomic_path(path) as temporary:
            save_file({"centroids": self.centroids}, temporary)

    @classmethod
    def load(cls, path: Path) -> KMeansUnits:
        if not Path(path).is_file():
            raise UserError(
                f"centroids {path} are missing: run notebook 01_unit_extraction.ipynb first"
            )
        return cls(load_file(path)["centroids"])


class Assigner:
    """Centroids on a device, for many features at once."""

    def __init__(self, kmeans: KMeansUnits, device: str = "cpu"):
        self.centroids = torch.from_numpy(kmeans.centroids).to(device)
        self.squares = self.centroids.square().sum(1)

    @torch.inference_mode()
    def __call__(self, features: Sequence[torch.Tensor]) -> tuple[list[np.ndarray], int]:
        """(frames, width) tensors → unit ids (frames,) of each, and in how many frames the two nearest centroids were equally near.

        Equally near: squared distances that differ by less than 1e-4 of the larger.  There rounding may choose either.
        """
        joined = torch.cat(list(features))
        scores = torch.addmm(self.squares, joined, self.centroids.T, alpha=-2)
        least, nearest = scores.topk(min(2, len(self.centroids)), dim=1, largest=False)
        distances = least + joined.square().sum(1, keepdim=True)
        near = (
            (distances[:, -1] - distances[:, 0] < NEAR_TIE * distances[:, -1]).sum().item()
            if distances.shape[1] == 2
            else 0
        )
        return [ids.numpy() for ids in nearest[:, 0].cpu().split([len(f) for f in features])], int(
            near
        )


def fit_kmeans(
    features: list[np.ndarray], clusters: int, seed: int, frames: int = 60_000
) -> KMeansUnits:
    """Mini-batch k-means on a seeded sample of `frames` frames out of a list of (n, width) arrays."""
    rng = np.random.default_rng(seed)
    total = sum(len(f) for f in features)
    if total < clusters:
        raise UserError(
            f"{total} frames cannot make {clusters} clusters: give more speech or fewer clusters"
        )
    chosen = np.sort(rng.choice(total, min(frames, total), replace=False))
    bounds = np.cumsum([0] + [len(f) for f in features])
    which = np.searchsorted(bounds, chosen, side="right") - 1
    sample = np.stack(
        [features[i][k - bounds[i]] for i, k in zip(which, chosen, strict=True)]
    ).astype(np.float32)
    model = MiniBatchKMeans(
        clusters,
        batch_size=min(10_000, len(sample)),
        n_init=3,
        max_iter=60,
        random_state=seed,
        reassignment_ratio=0.0,
    )
    return KMeansUnits(model.fit(sample).cluster_centers_.astype(np.float32))
