"""Unit measures: perfect, useless and made-up units, and the laws between the figures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_lib.metrics.unit_quality import frame_labels, unit_quality

FRAME = 0.02


def aligned(phones):
    """One interval of one frame for each letter; a space is silence."""
    return [(i * FRAME, (i + 1) * FRAME, phone.strip()) for i, phone in enumerate(phones)]


def measure(units, phones, speakers=None):
    """`units` and `phones`: one sequence an utterance, one element a frame."""
    return unit_quality(
        [np.array(u) for u in units],
        [aligned(p) for p in phones],
        speakers or ["anna"] * len(units),
    )


def test_perfect_units():
    quality = measure([[7, 7, 3, 9], [3, 9, 9]], ["aab ", "b  "])
    assert quality.pnmi == pytest.approx(1)
    assert quality.phone_purity == quality.cluster_purity == pytest.approx(1)
    assert (quality.phone_count, quality.unit_count_used) == (3, 3)


def test_constant_units_tell_nothing():
    quality = measure([[4] * 6], ["aaabc "])
    assert quality.pnmi == pytest.approx(0, abs=1e-12)
    assert quality.phone_purity == pytest.approx(1 / 2) and quality.cluster_purity == 1
    assert quality.bitrate == 0
    assert quality.merged_units_per_second == pytest.approx(1 / (6 * FRAME))


def test_one_phone_only_leaves_nothing_to_know():
    assert measure([[1, 2, 3]], ["aaa"]).pnmi == 0


def test_pnmi_by_hand():
    # P(unit, phone) is 3/8 on the diagonal and 1/8 beside it: 1 bit of phone, of which 1 - H(1/4)
    # is known.
    quality = measure([[0, 0, 0, 0, 1, 1, 1, 1]], ["aaabbbba"])
    entropy = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert quality.pnmi == pytest.approx(1 - entropy)
    assert quality.phone_purity == quality.cluster_purity == pytest.approx(0.75)


def test_merging_stops_at_utterance_ends():
    quality = measure([[5, 5, 6, 6, 5], [5, 5]], ["aabba", "aa"])
    assert quality.merged_units_per_second == pytest.approx(4 / (7 * FRAME))  # 5 6 5 | 5
    share = np.array([3, 1]) / 4
    assert quality.bitrate == pytest.approx(4 / (7 * FRAME) * -(share * np.log2(share)).sum())


def test_unsigned_units_merge_like_others():
    quality = measure([np.array([0, 0, 255], dtype=np.uint8)], ["aab"])
    assert quality.merged_units_per_second == pytest.approx(2 / (3 * FRAME))


def test_speakers():
    phones = ["ab", "ab"]
    blind = measure([[1, 2], [1, 2]], phones, ["anna", "peter"])
    assert blind.speaker_purity == blind.speaker_chance == pytest.approx(0.5)
    telltale = measure([[1, 2], [3, 4]], phones, ["anna", "peter"])
    assert telltale.speaker_purity == pytest.approx(1)


def test_talkative_speaker_does_not_raise_speaker_purity():
    quality = measure([[1, 2] * 50, [1, 2]], ["ab" * 50, "ab"], ["anna", "peter"])
    assert quality.speaker_purity == pytest.approx(0.5)


def test_frame_labels_at_frame_centres():
    alignment = [(0.0, 0.03, "a"), (0.03, 0.05, ""), (0.05, 0.08, "b")]
    # centres at 0.0125, 0.0325, 0.0525, 0.0725, 0.0925: the last lies after the alignment's end
    assert list(frame_labels(alignment, 5)) == ["a", "", "b", "b", ""]
    assert list(frame_labels([], 2)) == ["", ""]
    assert list(frame_labels([(0.02, 0.04, "a")], 2)) == ["", "a"]


def test_bad_input():
    with pytest.raises(ValueError, match=r"\(2, 1, 1\)"):
        unit_quality([np.array([1]), np.array([2])], [aligned("a")], ["anna"])
    with pytest.raises(ValueError, match="no frame"):
        unit_quality([np.array([], dtype=int)], [[]], ["anna"])
    with pytest.raises(ValueError, match="backwards"):
        frame_labels([(0.1, 0.2, "a"), (0.0, 0.1, "b")], 3)


utterances = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abc ")), min_size=1, max_size=12),
    min_size=1,
    max_size=4,
)


@given(utterances, st.permutations(range(5)), st.randoms())
def test_laws(pairs, renamed, rng):
    units, phones = ([[pair[i] for pair in utterance] for utterance in pairs] for i in (0, 1))
    speakers = [f"voice{i % 2}" for i in range(len(pairs))]
    quality = measure(units, phones, speakers)
    slack = 1e-9
    assert 0 <= quality.pnmi <= 1
    assert 1 / quality.phone_count - slack <= quality.phone_purity <= 1 + slack
    assert 1 / quality.unit_count_used - slack <= quality.cluster_purity <= 1 + slack
    assert quality.speaker_chance - slack <= quality.speaker_purity <= 1 + slack
    assert quality.merged_units_per_second <= 50 + slack
    most_bits = np.log2(max(quality.unit_count_used, 2))
    assert quality.bitrate <= quality.merged_units_per_second * most_bits + slack

    order = list(range(len(pairs)))
    rng.shuffle(order)
    other = measure(
        [[renamed[u] for u in units[i]] for i in order],
        [phones[i] for i in order],
        [speakers[i] for i in order],
    )
    assert vars(other) == pytest.approx(vars(quality)), "names and order must not matter"


@given(utterances)
def test_splitting_units_never_loses_information(pairs):
    units, phones = ([[pair[i] for pair in utterance] for utterance in pairs] for i in (0, 1))
    finer = [[2 * unit + i % 2 for i, unit in enumerate(utterance)] for utterance in units]
    coarse, fine = measure(units, phones), measure(finer, phones)
    assert fine.pnmi >= coarse.pnmi - 1e-9
    assert fine.phone_purity >= coarse.phone_purity - 1e-9
    assert fine.cluster_purity <= coarse.cluster_purity + 1e-9
