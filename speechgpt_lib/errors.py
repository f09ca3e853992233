"""`UserError`, the one error meant for people: what was found, where, and what to try; and
`reading`, which makes one of whatever a file that others wrote lets its reader raise."""

import contextlib
import functools
import os
import re
import stat
from pathlib import Path

LONGEST = 1000  # characters of a message, whatever it quotes
_MEMORY = re.compile(
    "could not create a primitive|can'?t allocate memory|cannot allocate memory|bad.?alloc"
    "|failed to map segment|can't start new thread|unable to allocate|memoryerror|out of memory",
    re.IGNORECASE,
)


class UserError(Exception):
    """Bad input, a missing artefact or an impossible request, in at most `LONGEST` characters.

    The command line prints it and exits with code 1.
    """

    def __init__(self, message: object = ""):
        super().__init__(shortened(str(message), LONGEST))

    def __reduce__(self) -> tuple:  # from one process to another only its words go
        return UserError, self.args

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the line alone, without a trace through the library."""
        return [f"{type(self).__name__}: {self}"]


def shortened(text: str, longest: int) -> str:
    """The text, or its beginning and its end where it is longer."""
    end = longest // 3
    return text if len(text) <= longest else f"{text[: longest - end - 3]} … {text[-end:]}"


def one_line(error: BaseException) -> str:
    """What an exception says, on one line of at most 200 characters."""
    text = " ".join(str(error)[:2000].split()) or type(error).__name__
    return (f"it lacks {text}" if isinstance(error, KeyError) else text)[:200]


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, for which every library has words of its own."""
    return isinstance(error, MemoryError) or bool(_MEMORY.search(str(error)[:5000]))


@contextlib.contextmanager
def reading(path: Path | str, cure="get it again", what="is damaged or of another kind"):
    """Around all that makes sense of a file (a folder, a value) that may come from anywhere.

    Whatever is raised inside becomes one UserError: `path`, `what` is wrong with it, the reason,
    the `cure`.  No list of exceptions would be whole: parsers raise nearly all there are.
    """
    with contextlib.suppress(OSError, ValueError):
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # to open one may block for ever
            raise UserError(f"{path} is a pipe or device: save what it gives into a file first")
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # Panics of libraries in Rust are no `Exception`; interrupts aren't either.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, FileNotFoundError) and error.filename:
            raise UserError(f"{error.filename} is missing: {cure}") from None
        reason = "memory ran out: " * out_of_memory(error) + one_line(error)
        raise UserError(f"{path} {what} ({reason}): {cure}") from None


def reads(what="is damaged or of another kind", cure="get it again"):
    """Decorates a function whose first argument is what it reads: see `reading`."""

    def around(function):
        @functools.wraps(function)
        def guarded(path, *more, **named):
            with reading(path, cure, what):
                return function(path, *more, **named)

        return guarded

    return around
