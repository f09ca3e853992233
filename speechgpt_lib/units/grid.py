"""What layer and number of clusters do to units: a table of qualities, from a little speech."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
from transformers import HubertModel

from speechgpt_lib.metrics.speaker_probe import speaker_probe
from speechgpt_lib.metrics.unit_quality import Alignment, unit_quality
from speechgpt_lib.units.kmeans import fit_kmeans
from speechgpt_lib.units.training import layer_features


def quality_grid(
    encoder: HubertModel,
    training: Sequence[np.ndarray],
    held_out: Sequence[tuple[np.ndarray, Alignment, str]],
    clusters: Sequence[int],
    seed: int,
    frames: int = 20_000,
) -> Iterator[dict]:
    """A row for each layer and number of clusters: the figures of `unit_quality`, a speaker probe.

    Centroids come from at most `frames` frames of the `training` waves (samples,) at 16 kHz; a
    number of clusters that these can't fill is left out.  `held_out` are (wave, its phones as
    (start s, end s, label), speaker) to measure on.
    """
    waves, alignments, speakers = zip(*held_out, strict=True)
    for layer in range(1, encoder.config.num_hidden_layers + 1):
        features = layer_features(encoder, layer)
        known, unknown = (list(map(features, part)) for part in (training, waves))
        for count in clusters:
            if 10 * count > sum(map(len, known)):
                continue
            kmeans = fit_kmeans(known, count, seed, frames)
            units = list(map(kmeans.assign, unknown))
            quality = asdict(unit_quality(units, alignments, speakers))
            probe = speaker_probe(units, speakers, count, seed)
            yield {"layer": layer, "clusters": count, **quality, "speaker_probe": probe}
