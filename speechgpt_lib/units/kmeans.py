"""k-means over frames of features: centroids, assignment as one matrix product, and their file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.runs.artefacts import atomic_path

NEAR_TIE = 1e-4  # relative difference of squared distances


@dataclass(frozen=True)
class KMeansUnits:
    """Centroids (K, width) float32."""

    centroids: np.ndarray

    def __post_init__(self) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            distances = np.square(self.centroids, dtype=np.float32).sum(1)
        if not np.isfinite(distances).all():
            raise UserError("centroids are NaN, infinite, or too large for single precision")

    @property
    def count(self) -> int:
        """K, the number of units."""
        return len(self.centroids)

    def assign(self, features: np.ndarray) -> np.ndarray:
        """(frames, width) → the unit of each frame, (frames,) int64."""
        found = torch.from_numpy(np.array(features, np.float32))
        return nearest(torch.from_numpy(self.centroids), [found])[0][0]

    def save(self, path: Path) -> None:
        """Writes the centroids to a safetensors file."""
        with atomic_path(path) as temporary:
            save_file({"centroids": self.centroids}, temporary)

    @classmethod
    def load(cls, path: Path) -> "KMeansUnits":
        """Reads what `save` wrote."""
        if not Path(path).is_file():
            raise UserError(f"no centroids {path}: run notebook 01_unit_extraction.ipynb first")
        with reading(path, what="holds no readable centroids"):
            return cls.checked(load_file(path).get("centroids"), path)

    @classmethod
    def checked(cls, found: object, path: Path) -> "KMeansUnits":
        """Centroids from the file `path`.  Raises UserError for what can't be any."""
        is_array = isinstance(found, np.ndarray)
        good = is_array and found.ndim == 2 and found.dtype.kind == "f" and found.size
        with np.errstate(over="ignore"):
            centroids = np.array(found, np.float32, order="C") if good else np.float32(np.nan)
        if not np.isfinite(centroids).all():
            what = f"an array {found.shape} of {found.dtype}" if is_array else "no array"
            raise UserError(f"{path} holds {what}, expected finite centroids (K, width)")
        return cls(centroids)


@torch.inference_mode()
def nearest(centroids: Tensor, features: Sequence[Tensor]) -> tuple[list[np.ndarray], int]:
    """(frames, width) tensors → units (frames,) int64 of each, and the number of near ties.

    Units are argmin over ‖x‖² − 2x·C + ‖C‖² for `centroids` C (K, width) on the same device; ‖x‖²
    does not depend on the centroid, so it is left out.  Near ties are frames whose two nearest
    centroids differ by less than 1e-4 of the larger squared distance: rounding may choose either.
    """
    joined, (count, width) = torch.cat(list(features)), centroids.shape
    if joined.shape[1] != width:
        found = f"features have width {joined.shape[1]} but the centroids have {width}"
        raise UserError(f"{found}: they belong to another encoder")
    scores = torch.addmm(centroids.square().sum(1), joined, centroids.T, alpha=-2)  # (frames, K)
    least, units = scores.topk(min(2, count), dim=1, largest=False)
    distances = least + joined.square().sum(1, keepdim=True)
    gaps = distances[:, -1] - distances[:, 0]
    near = int((gaps < NEAR_TIE * distances[:, -1]).sum()) if count > 1 else 0
    return [u.numpy() for u in units[:, 0].cpu().split(list(map(len, features)))], near


def fit_kmeans(features: list, clusters: int, seed: int, frames: int = 60_000) -> KMeansUnits:
    """Mini-batch k-means on a seeded sample of `frames` frames of a list of (n, width) arrays."""
    from sklearn.cluster import MiniBatchKMeans  # 60 MB, which few steps need

    rng, bounds = np.random.default_rng(seed), np.cumsum([0, *map(len, features)])
    n = int(bounds[-1])
    if n < clusters:
        raise UserError(f"{n} frames cannot make {clusters} clusters: give more speech or fewer")
    chosen = np.sort(rng.choice(n, min(frames, n), replace=False))
    which = np.searchsorted(bounds, chosen, side="right") - 1
    sample = np.stack([features[i][k - bounds[i]] for i, k in zip(which, chosen, strict=True)])
    options = {"batch_size": min(10_000, len(sample)), "n_init": 3, "max_iter": 60}
    model = MiniBatchKMeans(clusters, random_state=seed, reassignment_ratio=0.0, **options)
    fitted = model.fit(sample.astype(np.float32))
    return KMeansUnits(fitted.cluster_centers_.astype(np.float32))
