"""**Try it yourself**: a learner's function → a verdict, and a function that works either way.

    merge = check("1.a", merge)

`check` never raises: it shows its verdict and returns the learner's function when that passes, else
the reference, so the cells below always run.  What an exercise asks stands in its notebook, its
cases and reference in `exercises`.
"""

from __future__ import annotations

import copy
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from speechgpt_lib.notebook.exercises import EXERCISES, Exercise

_USES_REFERENCE = "The cells below use the reference solution."
_TITLES = {"todo": ("✏️", "to do"), "pass": ("✅", "passed"), "fail": ("❌", "not yet")}
_NUMBER = int | float | complex


@dataclass(frozen=True)
class Verdict:
    """`state` is "todo", "pass" or "fail"; `details` is Markdown."""

    state: str
    details: str


def check(exercise_id: str, learners_function: Callable | None) -> Callable:
    """Show how a function does on an exercise; return it if it passes, else the reference."""
    from IPython.display import Markdown, display

    exercise = EXERCISES.get(exercise_id)
    if exercise is None:
        known = f"Known are {', '.join(sorted(EXERCISES))}. Your function is used unchecked."
        display(Markdown(f"❓ **There is no exercise {exercise_id}.** {known}"))
        return learners_function
    verdict = judge(exercise, learners_function)
    sign, says = _TITLES[verdict.state]
    display(Markdown(f"{sign} **Exercise {exercise_id}: {says}.** {verdict.details}"))
    return learners_function if verdict.state == "pass" else exercise.reference


def judge(exercise: Exercise, function: Callable | None) -> Verdict:
    """Compare `function` with the reference on copies of every case."""
    if not callable(function):
        return Verdict("todo", f"Write the function and run its cell again. {_USES_REFERENCE}")
    failures, unanswered = [], 0
    for case in exercise.cases:
        expected = exercise.reference(*copy.deepcopy(case))
        try:
            got = function(*copy.deepcopy(case))
            problem = difference(expected, got)
        except NotImplementedError:
            got, problem = ..., "not attempted"
        except (Exception, SystemExit) as error:  # not an interrupt from the keyboard
            got, what = error, _short(str(error), quote=False)
            problem = f"it raised `{type(error).__name__}: {what}`"
        unanswered += got is ... or (got is None and expected is not None)
        if problem:
            failures.append((case, problem))
    total = len(exercise.cases)
    if unanswered == total:
        return Verdict("todo", f"Nothing is returned yet (a missing `return`?). {_USES_REFERENCE}")
    if not failures:
        return Verdict("pass", f"All {total} cases agree.")
    case, problem = failures[0]
    call = f"{getattr(function, '__name__', 'it')}({', '.join(map(_short, case))})"
    score = f"{total - len(failures)} of {total} cases pass."
    return Verdict("fail", f"`{call}`: {problem}. {score} {_USES_REFERENCE}")


def difference(expected: Any, got: Any, tolerance: float = 1e-4, where: str = "") -> str | None:
    """The first difference between two values in words, or None when they agree.

    Lists, tuples, arrays and tensors are compared element by element whatever their type, floats
    with a relative and absolute `tolerance` (NaN equals NaN), everything else exactly.
    """
    expected, got = _plain(expected), _plain(got)
    at = f"at {where}: " if where else ""
    unlike = f"expected `{_short(expected)}`, got `{_short(got)}`"
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        if set(expected) != set(got):
            keys, found = (_short(sorted(value, key=str)) for value in (expected, got))
            return f"{at}expected the keys `{keys}`, got `{found}`"
        pairs = [(expected[key], got[key], f"{where}[{key!r}]") for key in expected]
    elif _is_sequence(expected) and _is_sequence(got):
        if len(expected) != len(got):
            lengths = f"{len(expected)} item{'s' * (len(expected) != 1)}, got {len(got)}"
            return f"{at}expected {lengths} ({unlike})"
        both = enumerate(zip(expected, got, strict=True))
        pairs = [(a, b, f"{where}[{i}]") for i, (a, b) in both]
    else:
        return None if _same(expected, got, tolerance) else at + unlike
    found = (difference(a, b, tolerance, place) for a, b, place in pairs)
    return next((problem for problem in found if problem), None)


def _same(expected: Any, got: Any, tolerance: float) -> bool:
    if isinstance(expected, _NUMBER) and isinstance(got, _NUMBER):
        if expected == got or (_is_nan(expected) and _is_nan(got)):
            return True
        counts = isinstance(expected, int) and isinstance(
            got, int
        )  # right or wrong, nothing between
        return not counts and bool(np.isclose(got, expected, rtol=tolerance, atol=tolerance))
    alike = type(expected) is type(got) or (isinstance(expected, Set) and isinstance(got, Set))
    return alike and expected == got


def _plain(value: Any) -> Any:
    """Tensors and arrays as nested lists of Python numbers, without importing torch for it."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value  # numpy has no bfloat16
        return value.numpy().tolist()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _short(value: Any, quote: bool = True) -> str:
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 120
    shortener.maxlist = shortener.maxtuple = shortener.maxdict = shortener.maxset = 8
    text = shortener.repr(_plain(value)) if quote else str(value)[:200]
    return " ".join(text.replace("`", "'").split())
