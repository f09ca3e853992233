"""The one error meant for people: a single line with what was found, where, and what to try."""


class UserError(Exception):
    """Bad input, a missing artefact or an impossible request.

    The command line prints it and exits with code 1.
    """

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the line alone, without a trace through the library."""
        return [f"{type(self).__name__}: {self}"]


def one_line(error: Exception) -> str:
    """What an exception says, on one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
