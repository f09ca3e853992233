"""How good a vocoder is: held-out speech → units → speech, beside the original.

- `mcd_db`: mel-cepstral distance, frames paired by time warping
- `lsd_db`: log-spectral distance, frame by frame (gold durations only)
- `f0_rmse_hz`: pitch where both are voiced (gold only)
- `voicing_error`: share of frames voiced in one and not in the other (gold only)
- `unit_round_trip`: unit error rate of units → speech → units
- `wer`, `wer_bigram`: words, by the judges of the lab: with its grammar, and with word pairs
- `wer_open`: words, by the judge that knows no grammar
- `duration_error`: mean distance in frames of predicted from gold durations (predicted only)
- `length_ratio`: predicted over gold length of the whole (predicted only)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from speechgpt_lib.evaluation.judges import Judges
from speechgpt_lib.metrics import waveform
from speechgpt_lib.metrics.unit_errors import unit_error_rate, wer
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.vocoder.synthesis import Vocoder


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
    judges: Judges,
    spelt: Callable[[str], str] = str,
) -> dict:
    """{"gold": figures, "predicted": figures} of the table above; without `judges` there are no
    words.  `spelt` makes transcripts comparable."""
    units, durations = [o.units for o in originals], [o.durations for o in originals]
    gold = vocoder.synthesize_many(units, durations, inventory=inventory.id)
    predicted = vocoder.synthesize_many(units, inventory=inventory.id)
    figures = {}
    for name, waves in (("gold", gold), ("predicted", predicted)):
        pairs = list(zip(originals, waves, strict=True))
        figures[name] = {
            "mcd_db": _mean(waveform.mel_cepstral_distance(o.wave, wave) for o, wave in pairs),
            "unit_round_trip": unit_error_rate(units, [inventory.encode(w)[0] for w in waves]),
            **judge_originals([replace(o, wave=wave) for o, wave in pairs], judges, spelt),
        }
    pairs = list(zip(originals, gold, strict=True))
    tracks = [(waveform.f0_track(wave), waveform.f0_track(o.wave)) for o, wave in pairs]
    pitch = [error for a, b in tracks if not np.isnan(error := waveform.f0_rmse(a, b))]
    figures["gold"] |= {
        "lsd_db": _mean(waveform.log_spectral_distance(o.wave, wave) for o, wave in pairs),
        "f0_rmse_hz": _mean(pitch) if pitch else None,
        "voicing_error": _mean(waveform.voicing_error(a, b) for a, b in tracks),
    }
    true = np.concatenate(durations)
    guessed = np.concatenate([vocoder.predict_durations(one) for one in units])
    figures["predicted"] |= {
        "duration_error": float(np.abs(guessed - true).mean()),
        "length_ratio": float(guessed.sum() / true.sum()),
    }
    return figures


def judge_originals(
    originals: Sequence[Original], judges: Judges, spelt: Callable[[str], str] = str
) -> dict[str, float]:
    """Word error rates by each judge; of the recordings themselves, they say what can be expected
    of a vocoder at best."""
    texts, waves = [spelt(o.text) for o in originals], [o.wave for o in originals]
    heard = {suffix: judge.transcribe_many(waves) for suffix, judge in judges.items()}
    return {f"wer{suffix}": wer(texts, [*map(spelt, said)]) for suffix, said in heard.items()}


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
