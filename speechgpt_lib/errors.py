"""The one error meant for people: its message is a single line with what was found, where, what was expected and what to try."""


class UserError(Exception):
    """Bad input, a missing artefact or an impossible request; the command line prints it and exits with code 1."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the line alone, without a trace through the library."""
        return [f"{type(self).__name__}: {self}"]
