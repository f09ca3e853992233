"""What layer and number of clusters do to units: a table of qualities, from one encoder and a little speech."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
from transformers import HubertModel

from speechgpt_lib.metrics.speaker_probe import speaker_probe
from speechgpt_lib.metrics.unit_quality import unit_quality
from speechgpt_lib.units.kmeans import fit_kmeans
from speechgpt_lib.units.training import layer_features

Alignment = Sequence[tuple[float, float, str]]


def quality_grid(
    encoder: HubertModel,
    training: Sequence[np.ndarray],
    held_out: Sequence[tuple[np.ndarray, Alignment, str]],
    clusters: Sequence[int],
    seed: int,
    frames: int = 20_000,
) -> Iterator[dict]:
    """One row for each layer and each number of clusters: both, the figures of `unit_quality`, and the accuracy of a speaker probe.

    Args:
        training: waves (samples,) at 16 kHz from which centroids are made.
        held_out: (wave, its phones as (start s, end s, label), speaker) to measure on.
        frames: of `training` at most so many are clustered.  Numbers of clusters that they can't fill are left out.
    """
    waves, alignments, speakers = zip(*held_out, strict=True)
    for layer in range(1, encoder.config.num_hidden_layers + 1):
        features = layer_features(encoder, layer)
        known, unknown = ([features(wave) for wave in part] for part in (training, waves))
        for count in clusters:
            if 10 * count > sum(map(len, known)):
                continue
            kmeans = fit_kmeans(known, count, seed, frames)
            units = [kmeans.assign(f) for f in unknown]
            probe = speaker_probe(units, speakers, count, seed)
            yield {
                "layer": layer,
                "clusters": count,
                **asdict(unit_quality(units, alignments, speakers)),
                "speaker_probe": probe,
            }
