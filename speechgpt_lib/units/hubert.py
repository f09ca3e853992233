"""HuBERT: pre-training a small unit encoder from raw speech (Hsu et al. 2021, arXiv 2106.07447).

First iteration: k-means over MFCCs gives every 20 ms frame a target; the encoder sees the waveform
with spans masked and predicts the targets.  What it must know to fill the gaps (which phone this
is) becomes visible in its hidden layers.  Second iteration: a new encoder learns to predict
clusters of those hidden states, which are better targets than MFCCs were.

**Differs from the paper** in `lab`: frames that are not masked are predicted too, with half the
weight (the paper's α = 1 counts only masked ones), which makes a model this small learn in minutes;
layer norms stand before the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import HubertConfig, HubertModel

from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import HOP, MINIMUM_SAMPLES, SAMPLE_RATE
from speechgpt_lib.recipes.schema import HubertSettings
from speechgpt_lib.training.attention import training_attention
from speechgpt_lib.training.loop import Task, train
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.kmeans import KMeansUnits, fit_kmeans
from speechgpt_lib.units.mfcc import mfcc

TEMPERATURE = 0.1


def frame_count(samples: int) -> int:
    """Frames of the convolutions for this many samples: a window of 25 ms every 20 ms."""
    return max(0, 1 + (samples - MINIMUM_SAMPLES) // HOP)


def build_encoder(settings: HubertSettings) -> HubertModel:
    """A random HuBERT whose convolutions have HubertConfig's published kernels and strides."""
    config = HubertConfig(
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.feed_forward,
        conv_dim=settings.conv_widths,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=8,
        do_stable_layer_norm=True,
        hidden_dropout=0.05,
        attention_dropout=0.0,
        activation_dropout=0.0,
        layerdrop=0.0,
        attn_implementation="sdpa",
    )
    return HubertModel(config)


class MaskedPrediction(nn.Module):
    """HuBERT and its head: cosine similarity to an embedding of each target (paper, equation 3)."""

    def __init__(self, encoder: HubertModel, classes: int, width: int = 128):
        super().__init__()
        self.encoder = encoder
        self.project = nn.Linear(encoder.config.hidden_size, width)
        self.classes = nn.Parameter(torch.randn(classes, width))

    def forward(self, waves: Tensor, targets: Tensor, mask: Tensor, unmasked_weight: float):
        """waves (batch, samples), targets and mask (batch, frames) → three numbers.

        They are the weighted sum of losses, the sum of weights, and the accuracy on masked frames.
        """
        hidden = self.encoder(waves, mask_time_indices=mask).last_hidden_state
        guessed, classes = (
            F.normalize(self.project(hidden), dim=-1),
            F.normalize(self.classes, dim=-1),
        )
        logits = guessed @ classes.T  # cosine similarity, (batch, frames, classes)
        scores, flat_targets = logits.flatten(0, 1) / TEMPERATURE, targets.flatten()
        losses = F.cross_entropy(scores, flat_targets, reduction="none")  # (batch · frames,)
        weights = torch.where(mask.flatten(), 1.0 - unmasked_weight, unmasked_weight)  # loss mask
        hits = (logits.argmax(-1) == targets)[mask]
        return (losses * weights).sum(), weights.sum(), hits.float().mean()


def sample_mask(batch: int, frames: int, probability: float, length: int) -> Tensor:
    """Masked spans of `length` frames, which may overlap: bool (batch, frames).

    Each frame is a start with `probability`.
    """
    starts = torch.rand(batch, frames) < probability
    mask = starts.clone()
    for shift in range(1, length):
        mask[:, shift:] |= starts[:, :-shift]
    return mask


def normalise_utterance(features: Tensor) -> Tensor:
    """Zero mean, unit variance over (frames, width): takes out much of voice and channel."""
    return (features - features.mean(0)) / (features.std(0) + 1e-3)


def to_16_bits(wave: np.ndarray) -> np.ndarray:
    """float32 samples in [-1, 1] → int16, as most sound files hold them."""
    return np.clip(np.rint(wave * 32768), -32768, 32767).astype(np.int16)


def samples_of(wave: np.ndarray) -> np.ndarray:
    """A wave held as int16 or float32 → float32 (samples,)."""
    return wave if wave.dtype == np.float32 else wave.astype(np.float32) / 32768


def pretrain_hubert(
    waves: list[np.ndarray],
    settings: HubertSettings,
    work: Path,
    options: TrainingOptions,
    features: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[HubertModel, KMeansUnits, dict]:
    """Trains an encoder on waves (samples,) at 16 kHz, float32 or int16.

    `features` gives the frames (n, width) whose clusters are the targets: hidden states of an
    encoder of the iteration before, or MFCCs where None.  Returns (encoder, the k-means of its
    targets, summary).
    """
    seed, device = options.seed, options.device
    frames_of = features or (lambda wave: normalise_utterance(mfcc(torch.from_numpy(wave))).numpy())
    described = [frames_of(samples_of(wave)) for wave in waves]
    clusters = fit_kmeans(described, settings.target_clusters, seed, frames=60_000)
    targets = [clusters.assign(frames) for frames in described]
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
        loss, weight, accuracy = modules["hubert"](
            crops, labels, mask.to(device), settings.unmasked_weight
        )
        return loss, weight, {"masked_accuracy": accuracy}

    with training_attention(model.encoder, device):
        task = Task({"hubert": model}, step_function, batch_at)
        summary = train(task, settings.optimization, work, options)
    return model.encoder.eval(), clusters, summary
