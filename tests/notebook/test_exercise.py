import json

import numpy as np
import pytest
import torch

from speechgpt_lib.notebook import exercise
from speechgpt_lib.notebook.exercise import check, difference, judge
from speechgpt_lib.notebook.exercises import EXERCISES, Exercise


@pytest.fixture
def shown(monkeypatch):
    """The Markdown texts that `check` displayed."""
    texts = []
    monkeypatch.setattr("IPython.display.display", lambda output: texts.append(output.data))
    return texts


def learners_merge(units):
    """A right answer in another style: numpy, and tuples instead of lists."""
    if not units:
        return (), ()
    starts = np.flatnonzero(np.diff(units, prepend=units[0] - 1))
    return tuple(np.asarray(units)[starts]), np.diff(starts, append=len(units))


def test_right_answer_is_kept(shown):
    assert check("1.a", learners_merge) is learners_merge
    assert "1.a: passed" in shown[0] and "All 5 cases agree" in shown[0]


def test_wrong_answer_gets_the_first_difference_and_the_reference(shown):
    def merge(units):
        return sorted(set(units)), [1] * len(set(units))

    used = check("1.a", merge)
    assert used([4, 4, 2]) == ([4, 2], [2, 1])
    assert "1.a: not yet" in shown[0]
    assert "`merge([7, 7, 7, 3, 3, 9])`: at [0][0]: expected `7`, got `3`" in shown[0]
    assert "2 of 5 cases pass" in shown[0]  # [] and [5]


def unfinished(units):
    raise NotImplementedError


@pytest.mark.parametrize("stub", [lambda units: ..., lambda units: None, unfinished, None])
def test_a_stub_is_to_do_and_the_notebook_goes_on(shown, stub):
    assert check("1.a", stub)([1, 1]) == ([1], [2])
    assert "1.a: to do" in shown[0]


def leaves(units):
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: 1, "it raised `TypeError:"),
        (lambda units: units[9], "it raised `IndexError: list index out of range`"),
        (leaves, "`SystemExit: 3`"),
        (lambda units: iter(units), "expected `([7, 3, 9], [3, 2, 1])`, got `<list_iterator"),
    ],
)
def test_errors_of_the_learner_are_shown_not_raised(shown, function, message):
    check("1.a", function)
    assert "not yet" in shown[0] and message in shown[0]


def test_an_interrupt_is_no_answer():
    def endless(units):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("1.a", endless)


def test_unknown_exercise_names_the_known_ones(shown):
    assert check("9.z", len) is len
    assert "no exercise 9.z" in shown[0] and "1.a" in shown[0]


def test_changing_the_arguments_harms_neither_cases_nor_verdict():
    def greedy(units):
        answer = EXERCISES["1.a"].reference(list(units))
        units.clear()
        return answer

    before = json.dumps(EXERCISES["1.a"].cases)
    assert judge(EXERCISES["1.a"], greedy).state == "pass"
    assert judge(EXERCISES["1.a"], lambda units: units.clear()).state == "todo"
    assert json.dumps(EXERCISES["1.a"].cases) == before
    assert judge(EXERCISES["1.a"], greedy).state == "pass"


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        ([1, 2], (1, 2)),
        ([1.0, 2.0], np.array([1.00001, 2.0])),
        (torch.ones(2, 2, dtype=torch.bfloat16), [[1, 1], [1, 1]]),
        (float("nan"), np.float32("nan")),
        ({"a": [1]}, {"a": torch.tensor([1])}),
        ({1, 2}, frozenset({2, 1})),
        ("abc", "abc"),
        (None, None),
        (float("inf"), float("inf")),
        (10**400, 10**400),
        (10_000, np.float32(10_000)),
    ],
)
def test_equal_whatever_the_container(expected, got):
    assert difference(expected, got) is None


@pytest.mark.parametrize(
    ("expected", "got", "message"),
    [
        ([1, 2], [1], "expected 2 items, got 1"),
        ([[1], [2]], [[1], [3]], "at [1][0]: expected `2`, got `3`"),
        (1.0, 1.001, "expected `1.0`, got `1.001`"),
        (np.zeros(3), np.zeros((3, 1)), "at [0]: expected `0.0`, got `[0.0]`"),
        ({"a": 1}, {"b": 1}, "expected the keys `['a']`, got `['b']`"),
        ("12", [1, 2], "expected `'12'`, got `[1, 2]`"),
        ([1], None, "expected `[1]`, got `None`"),
        ([10_000], np.array([10_001]), "at [0]: expected `10000`, got `10001`"),
        (float("nan"), 1.0, "expected `nan`, got `1.0`"),
    ],
)
def test_first_difference(expected, got, message):
    assert message in difference(expected, got)


def test_a_huge_answer_is_shortened():
    assert len(difference([0], list(range(10**5)))) < 200


@pytest.mark.parametrize("exercise_id", sorted(EXERCISES))
def test_every_reference_passes_its_own_exercise(exercise_id):
    entry = EXERCISES[exercise_id]
    assert len(entry.cases) >= 3
    assert judge(entry, entry.reference) == exercise.Verdict(
        "pass", f"All {len(entry.cases)} cases agree."
    )


def test_expand_undoes_merge():
    units = [3, 3, 1, 1, 1, 3]
    merge, expand = EXERCISES["1.a"].reference, EXERCISES["1.b"].reference
    assert expand(*merge(units)) == units


def test_a_nondeterministic_case_is_compared_with_its_own_copy():
    shuffled = Exercise(cases=((np.arange(4),),), reference=lambda values: values[::-1])
    assert judge(shuffled, lambda values: np.flip(values)).state == "pass"
