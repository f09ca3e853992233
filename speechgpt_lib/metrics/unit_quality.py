"""Quality of discrete units: how much of phone and speaker the units carry.

Good units tell phones apart (high PNMI, high phone purity) and speakers not (speaker purity near
chance), with few of them a second.  PNMI and both purities are those of HuBERT (Hsu et al. 2021,
in the analysis of its clusters); the bit rate is the ZeroSpeech challenge's (Dunbar et al. 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speechgpt_lib.rates import FRAME_RATE, MINIMUM_SAMPLES, SAMPLE_RATE

SILENCE = ""  # the label of a stretch without speech, counted as one phone
FIRST_CENTRE_S = MINIMUM_SAMPLES / SAMPLE_RATE / 2  # centre of the first frame
Alignment = Sequence[tuple[float, float, str]]  # (start s, end s, phone) in order of time


@dataclass(frozen=True)
class UnitQuality:
    """What `unit_quality` measures; shares and PNMI lie in 0..1."""

    pnmi: float  # mutual information of phone and unit over the phone's entropy; 0 for one phone
    phone_purity: float  # share of frames that carry the most frequent phone of their unit
    cluster_purity: float  # share of frames that carry the most frequent unit of their phone
    speaker_purity: float  # of the most frequent speaker of their unit, all speakers weighing alike
    speaker_chance: float  # what units that know no speaker get
    phone_count: int  # distinct phones; silence is one
    unit_count_used: int  # units that occur
    merged_units_per_second: float  # units left when adjacent repeats are merged
    bitrate: float  # bits a second of the merged units, each coded by its own frequency


def unit_quality(
    units_per_frame: Sequence[np.ndarray], alignments: Sequence[Alignment], speakers: Sequence[str]
) -> UnitQuality:
    """Measure units against phones and speakers, frame by frame.

    Of each utterance: its (frames,) unit ids, repeats not merged; its phones, where `""` is silence
    and so is every moment that no interval covers; its speaker.  Raises ValueError where the three
    lists differ in length or hold no frame.
    """
    from sklearn.metrics.cluster import contingency_matrix  # 60 MB, which few steps need

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
    phone_bits, unit_bits, pair_bits = map(_bits, (by_phone.sum(0), by_phone.sum(1), by_phone))
    known = (phone_bits + unit_bits - pair_bits) / phone_bits if phone_bits else 0.0
    merged = [ids[np.append(True, ids[1:] != ids[:-1])] for ids in sequences]
    per_second = sum(map(len, merged)) / (len(units) / FRAME_RATE)
    return UnitQuality(
        pnmi=float(np.clip(known, 0, 1)),  # rounding may step over either end
        phone_purity=float(by_phone.max(1).sum() / len(units)),
        cluster_purity=float(by_phone.max(0).sum() / len(units)),
        speaker_purity=float(by_voice.max(1).sum() / by_voice.shape[1]),
        speaker_chance=1 / by_voice.shape[1],
        phone_count=by_phone.shape[1],
        unit_count_used=by_phone.shape[0],
        merged_units_per_second=per_second,
        bitrate=per_second * _bits(np.unique(np.concatenate(merged), return_counts=True)[1]),
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


def _bits(counts: np.ndarray) -> float:
    """Entropy, in bits, of what occurs that often."""
    share = counts[counts > 0] / counts.sum()
    return float((share * np.log2(1 / share)).sum())


def speaker_probe(
    units: Sequence[np.ndarray], speakers: Sequence[str], count: int, seed: int = 0, folds: int = 4
) -> float:
    """Cross-validated accuracy of telling the speaker from how often each unit occurs.

    The classifier is a logistic regression on whole utterances: one (frames,) array of ids below
    `count` and one speaker each.  Chance is 1 / speakers where all speak equally often.  Purity
    asks a single frame, the probe an utterance, so it is the stricter test.  Raises ValueError
    where a speaker has fewer utterances than there are folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    names, who = np.unique(np.asarray(speakers, dtype=str), return_inverse=True)
    fewest = np.bincount(who).min()
    if len(names) < 2 or fewest < folds:
        wanted = f"two speakers or more with {folds} utterances each"
        raise ValueError(f"a probe needs {wanted}, found {len(names)} and {fewest}")
    shares = np.stack([np.bincount(u, minlength=count) / max(len(u), 1) for u in units])
    shares = (shares - shares.mean(0)) / (shares.std(0) + 1e-9)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    classifier = LogisticRegression(C=0.1, max_iter=500)
    return float(cross_val_score(classifier, shares, who, cv=split).mean())
