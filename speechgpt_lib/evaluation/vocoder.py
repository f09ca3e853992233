"""How good a vocoder is: held-out speech → units → speech, beside the original.

- `mcd_db`: mel-cepstral distance, frames paired by time warping
- `lsd_db`: log-spectral distance, frame by frame (gold durations only)
- `f0_rmse_hz`: pitch where both are voiced (gold only)
- `voicing_error`: share of frames voiced in one and not in the other (gold only)
- `unit_round_trip`: unit error rate of units → speech → units
- `wer`, `wer_bigram`: words, by the judges: in the lab with its grammar, and with word pairs
- `duration_error`: mean distance in frames of predicted from gold durations (predicted only)
- `length_ratio`: predicted over gold length of the whole (predicted only)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speechgpt_lib.corpora.corpus import Judge
from speechgpt_lib.metrics.unit_errors import unit_error_rate
from speechgpt_lib.metrics.waveform import (
    f0_rmse,
    f0_track,
    log_spectral_distance,
    mel_cepstral_distance,
    voicing_error,
)
from speechgpt_lib.metrics.wer import wer
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.vocoder.synthesis import Vocoder

Judges = Mapping[str, Judge]  # by the suffix of their figures


@dataclass(frozen=True)
class Original:
    """A held-out utterance: wave (samples,) at 16 kHz, its words, its merged units and their
    durations in frames."""

    wave: np.ndarray
    text: str
    units: np.ndarray
    durations: np.ndarray


def evaluate_vocoder(
    vocoder: Vocoder,
    originals: Sequence[Original],
    inventory: UnitInventory,
    judges: Judges | None = None,
) -> dict:
    """{"gold": figures, "predicted": figures} of the table above; without `judges` there are no
    words."""
    units = [o.units for o in originals]
    gold = vocoder.synthesize_many(units, [o.durations for o in originals], inventory=inventory.id)
    predicted = vocoder.synthesize_many(units, inventory=inventory.id)
    figures = {
        name: _both(waves, originals, inventory, judges)
        for name, waves in (("gold", gold), ("predicted", predicted))
    }
    tracks = [(f0_track(wave), f0_track(o.wave)) for wave, o in zip(gold, originals, strict=True)]
    pitch_errors = [error for a, b in tracks if not np.isnan(error := f0_rmse(a, b))]
    figures["gold"] |= {
        "lsd_db": float(
            np.mean(
                [
                    log_spectral_distance(o.wave, wave)
                    for wave, o in zip(gold, originals, strict=True)
                ]
            )
        ),
        "f0_rmse_hz": float(np.mean(pitch_errors)) if pitch_errors else None,
        "voicing_error": float(np.mean([voicing_error(a, b) for a, b in tracks])),
    }
    guessed = [vocoder.predict_durations(o.units) for o in originals]
    apart = np.concatenate(
        [np.abs(g - o.durations) for g, o in zip(guessed, originals, strict=True)]
    )
    figures["predicted"] |= {
        "duration_error": float(apart.mean()),
        "length_ratio": float(
            sum(g.sum() for g in guessed) / sum(o.durations.sum() for o in originals)
        ),
    }
    return figures


def judge_originals(originals: Sequence[Original], judges: Judges) -> dict:
    """What the judges make of the recordings themselves: no vocoder can be expected to be
    understood better."""
    return _words([o.wave for o in originals], originals, judges)


def _both(
    waves: list[np.ndarray],
    originals: Sequence[Original],
    inventory: UnitInventory,
    judges: Judges | None,
) -> dict:
    distances = [
        mel_cepstral_distance(o.wave, wave) for wave, o in zip(waves, originals, strict=True)
    ]
    again = [inventory.encode(wave)[0] for wave in waves]
    found = {
        "mcd_db": float(np.mean(distances)),
        "unit_round_trip": unit_error_rate([o.units for o in originals], again),
    }
    return found | (_words(waves, originals, judges) if judges else {})


def _words(waves: list[np.ndarray], originals: Sequence[Original], judges: Judges) -> dict:
    texts = [o.text for o in originals]
    return {
        f"wer{suffix}": wer(texts, judge.transcribe_many(waves)) for suffix, judge in judges.items()
    }
