"""Quality of discrete units: how much of phone and speaker the units carry.

Good units tell phones apart (high PNMI, high phone purity) and speakers not (speaker purity near
chance), with few of them a second.  PNMI and both purities are those of HuBERT (Hsu et al. 2021,
in the analysis of its clusters); the bit rate is the ZeroSpeech challenge's (Dunbar et al. 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics.cluster import contingency_matrix

from speechgpt_lib.rates import FRAME_RATE, MINIMUM_SAMPLES, SAMPLE_RATE

SILENCE = ""  # the label of a stretch without speech, counted as one phone
FIRST_CENTRE_S = MINIMUM_SAMPLES / SAMPLE_RATE / 2  # centre of the first frame
Alignment = Sequence[tuple[float, float, str]]  # (start s, end s, phone) in order of time


@dataclass(frozen=True)
class UnitQuality:
    """What `unit_quality` measures; shares and PNMI lie in 0..1.

    pnmi: mutual information of phone and unit over the entropy of the phone, that is, the share of
        the phone that the unit tells; 0 where there is only one phone, with nothing to know.
    phone_purity: share of frames that carry the most frequent phone of their unit.
    cluster_purity: share of frames that carry the most frequent unit of their phone.
    speaker_purity: share of frames spoken by the most frequent speaker of their unit, each speaker
        weighing the same; `speaker_chance` is what units that know no speaker get.
    phone_count, unit_count_used: distinct phones (silence is one) and units that occur.
    merged_units_per_second: units left when adjacent repeats are merged.
    bitrate: bits a second of the merged units, each coded by its own frequency.
    """

    pnmi: float
    phone_purity: float
    cluster_purity: float
    speaker_purity: float
    speaker_chance: float
    phone_count: int
    unit_count_used: int
    merged_units_per_second: float
    bitrate: float


def unit_quality(
    units_per_frame: Sequence[np.ndarray], alignments: Sequence[Alignment], speakers: Sequence[str]
) -> UnitQuality:
    """Measure units against phones and speakers, frame by frame.

    Of each utterance: its (frames,) unit ids, repeats not merged; its phones, where `""` is silence
    and so is every moment that no interval covers; its speaker.  Raises ValueError where the three
    lists differ in length or hold no frame.
    """
    lengths = len(units_per_frame), len(alignments), len(speakers)
    if len(set(lengths)) != 1:
        raise ValueError(f"expected as many unit sequences as alignments and speakers: {lengths}")
    sequences = [np.asarray(units) for units in units_per_frame if len(units)]
    if not sequences:
        raise ValueError("no frame to measure: every unit sequence is empty")

    counts = [len(units) for units in units_per_frame]  # frames of each utterance
    units = np.concatenate(sequences)
    phones = np.concatenate(list(map(frame_labels, alignments, counts)))
    voices = np.repeat(np.asarray(speakers, dtype=str), counts)
    by_phone = contingency_matrix(units, phones)  # (units, phones): frames with this pair
    by_voice = contingency_matrix(units, voices)
    by_voice = by_voice / by_voice.sum(0)
    merged = [ids[np.append(True, ids[1:] != ids[:-1])] for ids in sequences]
    per_second = sum(map(len, merged)) / (len(units) / FRAME_RATE)
    bits = _entropy_bits(np.unique(np.concatenate(merged), return_counts=True)[1])
    return UnitQuality(
        pnmi=_pnmi(by_phone),
        phone_purity=float(by_phone.max(1).sum() / len(units)),
        cluster_purity=float(by_phone.max(0).sum() / len(units)),
        speaker_purity=float(by_voice.max(1).sum() / by_voice.shape[1]),
        speaker_chance=1 / by_voice.shape[1],
        phone_count=by_phone.shape[1],
        unit_count_used=by_phone.shape[0],
        merged_units_per_second=per_second,
        bitrate=per_second * bits,
    )


def frame_labels(alignment: Alignment, frames: int) -> np.ndarray:
    """The label spoken at the centre of each of `frames` frames of 20 ms: (frames,) text."""
    if not alignment:
        return np.full(frames, SILENCE)
    starts, ends, labels = map(np.asarray, zip(*alignment, strict=True))
    if (np.diff(starts) < 0).any():
        raise ValueError("an alignment must be in order of time, found one that goes backwards")
    centres = np.arange(frames) / FRAME_RATE + FIRST_CENTRE_S
    index = np.searchsorted(starts, centres, side="right") - 1
    covered = (index >= 0) & (centres < ends[index])
    return np.where(covered, labels[index], SILENCE)


def _entropy_bits(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float((share * np.log2(1 / share)).sum())


def _pnmi(joint: np.ndarray) -> float:
    phones = _entropy_bits(joint.sum(0))
    if phones == 0:
        return 0.0
    known = phones + _entropy_bits(joint.sum(1)) - _entropy_bits(joint.ravel())
    return float(np.clip(known / phones, 0, 1))  # rounding may step over either end
