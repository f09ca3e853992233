"""**Try it yourself**: a learner's function → todo, pass or fail, and a function that works either way.

    merge = check("1.a", merge)

`check` never raises: it shows its verdict and returns the learner's function when that passes, else the reference, so
the cells below always run.  What an exercise asks stands in its notebook, its cases and reference in `exercises`.
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


@dataclass(frozen=True)
class Verdict:
    """`state` is "todo", "pass" or "fail"; `details` is Markdown."""

    state: str
    details: str


def check(exercise_id: str, learners_function: Callable | None) -> Callable:
    """Show how `learners_function` does on the cases of an exercise; return it if it passes, else the reference."""
    from IPython.display import Markdown, display

    exercise = EXERCISES.get(exercise_id)
    if exercise is None:
        known = ", ".join(sorted(EXERCISES))
        display(
            Markdown(
                f"❓ **There is no exercise {exercise_id}.** Known are {known}. Your function is used unchecked."
            )
        )
        return learners_function
    verdict = judge(exercise, learners_function)
    title = {
        "todo": "✏️ **Exercise {}: to do.**",
        "pass": "✅ **Exercise {}: passed.**",
        "fail": "❌ **Exercise {}: not yet.**",
    }
    display(Markdown(f"{title[verdict.state].format(exercise_id)} {verdict.details}"))
    return learners_function if verdict.state == "pass" else exercise.reference


def judge(exercise: Exercise, function: Callable | None) -> Verdict:
    """Compare `function` with the reference on copies of every case; the arguments may be changed freely by either."""
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
        except (
            Exception,
            SystemExit,
        ) as error:  # an interrupt from the keyboard is no answer and does stop the cell
            got, problem = (
                error,
                f"it raised `{type(error).__name__}: {_short(str(error), quote=False)}`",
            )
        unanswered += got is ... or (got is None and expected is not None)
        if problem:
            failures.append((case, problem))
    total = len(exercise.cases)
    if unanswered == total:
        return Verdict("todo", f"Nothing is returned yet (a missing `return`?). {_USES_REFERENCE}")
    if not failures:
        return Verdict("pass", f"All {total} cases agree.")
    case, problem = failures[0]
    call = (
        f"{getattr(function, '__name__', 'it')}({', '.join(_short(argument) for argument in case)})"
    )
    return Verdict(
        "fail",
        f"`{call}`: {problem}. {total - len(failures)} of {total} cases pass. {_USES_REFERENCE}",
    )


def difference(expected: Any, got: Any, tolerance: float = 1e-4, where: str = "") -> str | None:
    """The first difference between two values in words, or None when they agree.

    Lists, tuples, arrays and tensors are compared element by element whatever their type, floats with a relative and
    absolute `tolerance` (NaN equals NaN), everything else exactly.
    """
    expected, got = _plain(expected), _plain(got)
    at = f"at {where}: " if where else ""
    if _is_number(expected) and _is_number(got):
        same = expected == got or (_is_nan(expected) and _is_nan(got))
        if not same and not (
            isinstance(expected, int) and isinstance(got, int)
        ):  # counts and units are right or wrong
            same = bool(np.isclose(got, expected, rtol=tolerance, atol=tolerance))
        return None if same else f"{at}expected `{_short(expected)}`, got `{_short(got)}`"
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        if set(expected) != set(got):
            return f"{at}expected the keys `{_short(sorted(expected, key=str))}`, got `{_short(sorted(got, key=str))}`"
        pairs = [(expected[key], got[key], f"{where}[{key!r}]") for key in expected]
    elif _is_sequence(expected) and _is_sequence(got):
        if len(expected) != len(got):
            lengths = f"{len(expected)} item{'s' * (len(expected) != 1)}, got {len(got)}"
            return f"{at}expected {lengths} (expected `{_short(expected)}`, got `{_short(got)}`)"
        pairs = [
            (a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(expected, got, strict=True))
        ]
    else:
        same = type(expected) is type(got) or (isinstance(expected, Set) and isinstance(got, Set))
        return (
            None
            if same and expected == got
            else f"{at}expected `{_short(expected)}`, got `{_short(got)}`"
        )
    return next(
        (found for a, b, place in pairs if (found := difference(a, b, tolerance, place))), None
    )


def _plain(value: Any) -> Any:
    """Tensors and arrays as nested lists of Python numbers, without importing torch for it."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value  # numpy has no bfloat16
        return value.numpy().tolist()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | complex)


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
