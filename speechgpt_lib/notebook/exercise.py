"""**Try it yourself**: a learner's function → a verdict, and a function that works either way:
`merge = check("1.a", merge)`.  Its notebook asks, `exercises` has cases and reference."""

import copy
import reprlib
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
from IPython import display

from speechgpt_lib.notebook.exercises import EXERCISES, Exercise

TOLERANCE = 1e-4  # relative and absolute, of floats
_USES_REFERENCE = "The cells below use the reference solution."
_TITLES = {"todo": ("✏️", "to do"), "pass": ("✅", "passed"), "fail": ("❌", "not yet")}
_NUMBER = int | float | complex


class Verdict(NamedTuple):
    """`state` is "todo", "pass" or "fail"; `details` is Markdown."""

    state: str
    details: str


def check(exercise_id: str, learners_function: Callable | None) -> Callable:
    """Show, and never raise, how a function does; return it if it passes, else the reference."""
    if exercise_id not in EXERCISES:
        title = f"❓ **There is no exercise {exercise_id}.**"
        details = f"Known are {', '.join(sorted(EXERCISES))}. Your function is used unchecked."
        chosen = learners_function
    else:
        exercise = EXERCISES[exercise_id]
        state, details = judge(exercise, learners_function)
        sign, says = _TITLES[state]
        title = f"{sign} **Exercise {exercise_id}: {says}.**"
        chosen = learners_function if state == "pass" else exercise.reference
    display.display(display.Markdown(f"{title} {details}"))
    return chosen


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
            got, said = error, " ".join(str(error)[:200].replace("`", "'").split())
            problem = f"it raised `{type(error).__name__}: {said}`"
        unanswered += got is ... or (got is None and expected is not None)
        if problem:
            call = f"{getattr(function, '__name__', 'it')}({', '.join(map(_short, case))})"
            failures.append(f"`{call}`: {problem}.")
    total = len(exercise.cases)
    if unanswered == total:
        return Verdict("todo", f"Nothing is returned yet (a missing `return`?). {_USES_REFERENCE}")
    if not failures:
        return Verdict("pass", f"All {total} cases agree.")
    score = f"{total - len(failures)} of {total} cases pass."
    return Verdict("fail", f"{failures[0]} {score} {_USES_REFERENCE}")


def difference(expected: Any, got: Any, where: str = "") -> str | None:
    """The first difference between two values in words, or None when they agree.

    Lists, tuples, arrays and tensors are compared element by element whatever their type, floats
    with `TOLERANCE` (NaN equals NaN), everything else exactly.
    """
    expected, got = _plain(expected), _plain(got)
    at = f"at {where}: " if where else ""
    unlike = f"expected `{_short(expected)}`, got `{_short(got)}`"
    if all(isinstance(value, Mapping) for value in (expected, got)):
        if set(expected) != set(got):
            keys, found = (_short(sorted(value, key=str)) for value in (expected, got))
            return f"{at}expected the keys `{keys}`, got `{found}`"
        keys = list(expected)
    elif all(isinstance(v, Sequence) and not isinstance(v, str | bytes) for v in (expected, got)):
        if len(expected) != len(got):
            lengths = f"{len(expected)} item{'s' * (len(expected) != 1)}, got {len(got)}"
            return f"{at}expected {lengths} ({unlike})"
        keys = range(len(expected))
    else:
        return None if _same(expected, got) else at + unlike
    found = (difference(expected[key], got[key], f"{where}[{key!r}]") for key in keys)
    return next(filter(None, found), None)


def _same(expected: Any, got: Any) -> bool:
    if isinstance(expected, _NUMBER) and isinstance(got, _NUMBER):
        if expected == got or (isinstance(expected, int) and isinstance(got, int)):
            return expected == got  # a count is right or wrong, nothing between
        return bool(np.isclose(got, expected, TOLERANCE, TOLERANCE, equal_nan=True))
    alike = type(expected) is type(got) or (isinstance(expected, Set) and isinstance(got, Set))
    return alike and expected == got


def _plain(value: Any) -> Any:
    """Tensors and arrays as nested lists of Python numbers, without importing torch for it."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()  # no bfloat16 there
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _short(value: Any) -> str:
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 120
    shortener.maxlist = shortener.maxtuple = shortener.maxdict = shortener.maxset = 8
    return " ".join(shortener.repr(_plain(value)).replace("`", "'").split())
