"""HuBERT: a small unit encoder from raw speech (Hsu et al. 2021, arXiv 2106.07447).

k-means over MFCCs gives every 20 ms frame a target; the encoder sees the waveform with spans masked
and predicts the targets.  What it must know to fill the gaps (which phone this is) becomes visible
in its hidden layers: their clusters are the units, and the targets of a second iteration.

**Differs from the paper** in `lab`: frames that are not masked are predicted too, with half the
weight (the paper's α = 1), so that a model this small learns in minutes; norms precede the blocks.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from speechgpt_lib.corpora.audio import samples_of
from speechgpt_lib.errors import UserError
from speechgpt_lib.metrics.unit_quality import speaker_probe, unit_quality
from speechgpt_lib.rates import HOP, MINIMUM_SAMPLES, SAMPLE_RATE
from speechgpt_lib.recipes.schema import HubertSettings, UnitSettings
from speechgpt_lib.training.attention import training_attention
from speechgpt_lib.training.loop import Task, train
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.features import FeatureEncoder
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import KMeansUnits, fit_kmeans
from speechgpt_lib.units.mfcc import mfcc


def frame_count(samples: int) -> int:
    """Frames of the convolutions for this many samples: a window of 25 ms every 20 ms."""
    return max(0, 1 + (samples - MINIMUM_SAMPLES) // HOP)


def build_encoder(settings: HubertSettings) -> transformers.HubertModel:
    """A random HuBERT whose convolutions have HubertConfig's published kernels and strides."""
    positions = {"num_conv_pos_embeddings": 32, "num_conv_pos_embedding_groups": 8}
    dropout = {"attention_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0}
    config = transformers.HubertConfig(
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.feed_forward,
        conv_dim=settings.conv_widths,
        do_stable_layer_norm=True,
        hidden_dropout=0.05,
        attn_implementation="sdpa",
        **positions | dropout,
    )
    return transformers.HubertModel(config)


class MaskedPrediction(nn.Module):
    """HuBERT and its head: cosine similarity to an embedding of each target (paper, equation 3)."""

    def __init__(self, encoder: transformers.HubertModel, classes: int, width: int = 128):
        super().__init__()
        self.encoder = encoder
        self.project = nn.Linear(encoder.config.hidden_size, width)
        self.classes = nn.Parameter(torch.randn(classes, width))

    def forward(self, waves: Tensor, targets: Tensor, mask: Tensor, unmasked_weight: float):
        """waves (batch, samples), targets and mask (batch, frames) → loss, weight, accuracy.

        The loss is a weighted sum, the weight that of its weights, the accuracy on masked frames.
        """
        hidden = self.encoder(waves, mask_time_indices=mask).last_hidden_state
        guessed = F.normalize(self.project(hidden), dim=-1)
        logits = guessed @ F.normalize(self.classes, dim=-1).T  # cosines, (batch, frames, classes)
        scores, flat_targets = logits.flatten(0, 1) / 0.1, targets.flatten()  # temperature 0.1
        losses = F.cross_entropy(scores, flat_targets, reduction="none")  # (batch · frames,)
        weights = torch.where(mask.flatten(), 1.0 - unmasked_weight, unmasked_weight)  # loss mask
        hits = (logits.argmax(-1) == targets)[mask]
        return (losses * weights).sum(), weights.sum(), hits.float().mean()


def sample_mask(batch: int, frames: int, probability: float, length: int) -> Tensor:
    """Spans of `length` frames that start at a frame with `probability`: bool (batch, frames)."""
    starts = F.pad(torch.rand(batch, frames) < probability, (length - 1, 0))
    return starts.unfold(1, length, 1).any(-1)


def normalise_utterance(features: Tensor) -> Tensor:
    """Zero mean, unit variance over (frames, width): takes out much of voice and channel."""
    return (features - features.mean(0)) / (features.std(0) + 1e-3)


def mfcc_of(wave: np.ndarray) -> np.ndarray:
    """Normalised MFCCs (frames, 39) of a wave (samples,)."""
    return normalise_utterance(mfcc(torch.from_numpy(wave))).numpy()


def pretrain_hubert(
    waves: list, settings: HubertSettings, work: Path, options: TrainingOptions, features=mfcc_of
) -> tuple[transformers.HubertModel, KMeansUnits, dict]:
    """Trains an encoder on waves (samples,) at 16 kHz, float32 or int16.

    `features` makes of a wave the frames (n, width) whose clusters are the targets: MFCCs, or the
    hidden states of an encoder before.  Returns (encoder, the k-means of its targets, summary).
    """
    seed, device = options.seed, options.device
    described = [features(samples_of(wave)) for wave in waves]
    clusters = fit_kmeans(described, settings.target_clusters, seed)
    targets = list(map(clusters.assign, described))
    del described
    crop = int(settings.crop_seconds * SAMPLE_RATE)
    long_enough = [i for i, wave in enumerate(waves) if len(wave) > crop + HOP]
    if not long_enough:
        cure = "lower units.hubert.crop_seconds or give longer ones"
        raise UserError(f"no utterance is longer than a crop of {settings.crop_seconds} s: {cure}")
    frames = frame_count(crop)
    torch.manual_seed(seed)
    model = MaskedPrediction(build_encoder(settings), settings.target_clusters)

    def batch_at(step: int, rank: int, world_size: int):
        rng = np.random.default_rng((seed, step))
        chosen = rng.choice(long_enough, settings.batch_size)
        starts = [int(rng.integers(0, (len(waves[i]) - crop) // HOP)) for i in chosen]
        mine = list(zip(chosen, starts, strict=True))[rank::world_size]
        crops = np.stack([samples_of(waves[i][s * HOP : s * HOP + crop]) for i, s in mine])
        labels = np.stack([targets[i][s : s + frames] for i, s in mine])
        return torch.from_numpy(crops), torch.from_numpy(labels)

    def step_function(phase: str, modules: dict, batch, step: int):
        crops, labels = (tensor.to(device) for tensor in batch)
        mask = sample_mask(len(crops), frames, settings.mask_probability, settings.mask_length)
        inputs = crops, labels, mask.to(device), settings.unmasked_weight
        loss, weight, accuracy = modules["hubert"](*inputs)
        return loss, weight, {"masked_accuracy": accuracy}

    with training_attention(model.encoder, device):
        task = Task({"hubert": model}, step_function, batch_at)
        summary = train(task, settings.optimization, work, options)
    return model.encoder.eval(), clusters, summary


def train_encoder(
    waves: list[np.ndarray], settings: UnitSettings, work: Path, options: TrainingOptions
) -> tuple[transformers.HubertModel, KMeansUnits, dict]:
    """Pre-trains in one or two iterations → (encoder, the MFCC k-means of the first, summary).

    Metrics go to `work/metrics.jsonl`, those of a second one to `work/metrics_second.jsonl`.
    """
    encoder, targets, summary = pretrain_hubert(waves, settings.hubert, work, options)
    if settings.hubert.iterations == 2:
        again = work / "checkpoints" / "second"
        features = FeatureEncoder(encoder, settings.layer, options.device).single
        encoder, _, second = pretrain_hubert(waves, settings.hubert, again, options, features)
        shutil.copy(again / "metrics.jsonl", work / "metrics_second.jsonl")
        summary = {"first": summary, **second}
    return encoder, targets, summary


def cluster_layer(
    encoder: transformers.HubertModel,
    waves: Iterable,
    settings: UnitSettings,
    seed: int,
    normalize=False,
) -> UnitInventory:
    """k-means over the frames that one layer makes of the waves (samples,) → inventory."""
    features = FeatureEncoder(encoder, settings.layer, normalize=normalize)
    frames = list(map(features.single, waves))
    kmeans = fit_kmeans(frames, settings.clusters, seed, settings.kmeans_frames)
    return UnitInventory.create(encoder, settings.layer, kmeans, normalize)


def utterances_for(frames: int) -> int:
    """How many utterances give about this many frames for k-means, at 100 frames each."""
    return max(40, frames // 100)


def quality_grid(
    encoder: transformers.HubertModel,
    training: Sequence,
    held_out: Sequence,
    clusters: list[int],
    seed: int,
) -> Iterator[dict]:
    """A row for each layer and number of clusters: the figures of `unit_quality`, a speaker probe.

    Centroids come from at most 20,000 frames of the `training` waves (samples,) at 16 kHz; more
    clusters than these can fill are left out.  `held_out`: (wave, phones, speaker) to measure on.
    """
    waves, alignments, speakers = zip(*held_out, strict=True)
    for layer in range(1, encoder.config.num_hidden_layers + 1):
        features = FeatureEncoder(encoder, layer).single
        known, unknown = (list(map(features, part)) for part in (training, waves))
        frames = sum(map(len, known))
        for count in [count for count in clusters if 10 * count <= frames]:
            kmeans = fit_kmeans(known, count, seed, frames=20_000)
            units = list(map(kmeans.assign, unknown))
            quality = asdict(unit_quality(units, alignments, speakers))
            probe = speaker_probe(units, speakers, count, seed)
            yield {"layer": layer, "clusters": count, **quality, "speaker_probe": probe}
