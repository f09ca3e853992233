"""A unit inventory from speech alone: HuBERT in one or two iterations, then k-means on a layer."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from transformers import HubertModel

from speechgpt_lib.recipes.schema import UnitSettings
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.features import FeatureEncoder
from speechgpt_lib.units.hubert import pretrain_hubert
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import KMeansUnits, fit_kmeans

FRAMES_PER_UTTERANCE = 100  # at least so many are expected when frames for k-means are wanted


def train_encoder(
    waves: list[np.ndarray], settings: UnitSettings, work: Path, options: TrainingOptions
) -> tuple[HubertModel, KMeansUnits, dict]:
    """Pre-trains on waves in one or two iterations, as the settings say.

    Returns (encoder, the MFCC k-means of the first targets, summary).  Metrics go to
    `work/metrics.jsonl`, those of a second iteration to `work/metrics_second.jsonl`.
    """
    encoder, targets, summary = pretrain_hubert(waves, settings.hubert, work, options)
    if settings.hubert.iterations == 2:
        again = work / "checkpoints" / "second"
        features = layer_features(encoder, settings.layer, options.device)
        encoder, _, second = pretrain_hubert(waves, settings.hubert, again, options, features)
        shutil.copy(again / "metrics.jsonl", work / "metrics_second.jsonl")
        summary = {"first": summary, **second}
    return encoder, targets, summary


def cluster_layer(
    encoder: HubertModel,
    waves: Iterable[np.ndarray],
    settings: UnitSettings,
    seed: int,
    normalize: bool = False,
) -> UnitInventory:
    """k-means over the frames that one layer makes of the waves → inventory."""
    features = map(layer_features(encoder, settings.layer, normalize=normalize), waves)
    kmeans = fit_kmeans(list(features), settings.clusters, seed, settings.kmeans_frames)
    return UnitInventory.create(encoder, settings.layer, kmeans, normalize)


def utterances_for(frames: int) -> int:
    """How many utterances give about this many frames for k-means."""
    return max(40, frames // FRAMES_PER_UTTERANCE)


def layer_features(
    encoder: HubertModel, layer: int, device: str = "cpu", normalize: bool = False
) -> Callable[[np.ndarray], np.ndarray]:
    """wave (samples,) → features (frames, width) of one layer, before there are any centroids."""
    features = FeatureEncoder(encoder, layer, device, normalize=normalize)
    return lambda wave: features([wave])[0].cpu().numpy()
