"""Quality of discrete units: turns units and time-aligned phones into how much of phone and speaker the units carry.

Good units tell phones apart (high PNMI, high phone purity) and speakers not (speaker purity near chance), with few of
them a second.  PNMI, phone purity and cluster purity are those of HuBERT (Hsu et al. 2021, where the quality of its
cluster assignments is analysed); the bit rate is that of the ZeroSpeech challenge (Dunbar et al. 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speechgpt_lib.rates import FRAME_RATE

SILENCE = ""  # the label of a stretch without speech, counted as one phone


@dataclass(frozen=True)
class UnitQuality:
    """What `unit_quality` measures; shares and PNMI lie in 0..1.

    pnmi: mutual information of phone and unit over the entropy of the phone: the share of what is to know about the
        phone that the unit tells.  0 when there is only one phone, about which there is nothing to know.
    phone_purity: share of frames that carry the most frequent phone of their unit.
    cluster_purity: share of frames that carry the most frequent unit of their phone.
    speaker_purity: share of frames spoken by the most frequent speaker of their unit, each speaker weighing the same;
        `speaker_chance` is what units that know nothing of the speaker get.
    phone_count, unit_count_used: distinct phones (silence is one) and distinct units that occur.
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
    units_per_frame: Sequence[np.ndarray],
    alignments: Sequence[Sequence[tuple[float, float, str]]],
    speakers: Sequence[str],
    frame_rate: float = FRAME_RATE,
    frame_offset_s: float = 0.0125,
) -> UnitQuality:
    """Measure units against phones and speakers, frame by frame.

    units_per_frame: one (frames,) array of unit ids an utterance, repeats not merged.
    alignments: for each utterance its (start, end, phone) in seconds, in order; `""` is silence, and so is every moment
        that no interval covers.
    speakers: for each utterance who speaks.
    frame_rate: frames a second.  frame_offset_s: centre of the first frame; HuBERT's first window is 400 samples at
        16 kHz, hence 0.0125 s.
    Raises ValueError when the three lists differ in length or hold no frame.
    """
    lengths = len(units_per_frame), len(alignments), len(speakers)
    if len(set(lengths)) != 1:
        raise ValueError(
            f"expected as many unit sequences as alignments and speakers, found {lengths}"
        )
    sequences = [np.asarray(units) for units in units_per_frame]
    if not sum(map(len, sequences)):
        raise ValueError("no frame to measure: every unit sequence is empty")

    units = np.concatenate(sequences)
    phones = np.concatenate(
        [
            frame_labels(alignment, len(sequence), frame_rate, frame_offset_s)
            for sequence, alignment in zip(sequences, alignments, strict=True)
        ]
    )
    voices = np.repeat(np.asarray(speakers, dtype=str), [len(sequence) for sequence in sequences])
    by_phone, by_voice = _contingency(units, phones), _contingency(units, voices)
    by_voice = by_voice / by_voice.sum(0)
    merged = [
        sequence[np.append(True, sequence[1:] != sequence[:-1])]
        for sequence in sequences
        if len(sequence)
    ]
    per_second = sum(map(len, merged)) / (len(units) / frame_rate)
    return UnitQuality(
        pnmi=_pnmi(by_phone),
        phone_purity=float(by_phone.max(1).sum() / len(units)),
        cluster_purity=float(by_phone.max(0).sum() / len(units)),
        speaker_purity=float(by_voice.max(1).sum() / by_voice.shape[1]),
        speaker_chance=1 / by_voice.shape[1],
        phone_count=by_phone.shape[1],
        unit_count_used=by_phone.shape[0],
        merged_units_per_second=per_second,
        bitrate=per_second
        * _entropy_bits(np.unique(np.concatenate(merged), return_counts=True)[1]),
    )


def frame_labels(
    alignment: Sequence[tuple[float, float, str]],
    frames: int,
    frame_rate: float = FRAME_RATE,
    frame_offset_s: float = 0.0125,
) -> np.ndarray:
    """The label spoken at the centre of each of `frames` frames: a (frames,) array of text."""
    if not alignment:
        return np.full(frames, SILENCE)
    starts, ends = (
        np.asarray([interval[i] for interval in alignment], dtype=np.float64) for i in (0, 1)
    )
    if (np.diff(starts) < 0).any():
        raise ValueError("an alignment must be in order of time, found one that goes backwards")
    labels = np.asarray([label for _, _, label in alignment], dtype=str)
    centres = np.arange(frames) / frame_rate + frame_offset_s
    index = np.searchsorted(starts, centres, side="right") - 1
    covered = (index >= 0) & (centres < ends[index])
    return np.where(covered, labels[index], SILENCE)


def _contingency(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """How often each pair occurs: (distinct rows, distinct columns)."""
    row_names, row = np.unique(rows, return_inverse=True)
    column_names, column = np.unique(columns, return_inverse=True)
    joint = np.zeros((len(row_names), len(column_names)))
    np.add.at(joint, (row, column), 1.0)
    return joint


def _entropy_bits(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float((share * np.log2(1 / share)).sum())


def _pnmi(joint: np.ndarray) -> float:
    phones = _entropy_bits(joint.sum(0))
    if phones == 0:
        return 0.0
    known = phones + _entropy_bits(joint.sum(1)) - _entropy_bits(joint.ravel())
    return float(np.clip(known / phones, 0, 1))  # rounding may step over either end
