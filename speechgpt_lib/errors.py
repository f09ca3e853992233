"""The one error meant for people: its message is a single line with what was found, where, what was expected and what to try."""


class UserError(Exception):
    """Bad input, a missing artefact or an impossible request; the command line prints it and exits with code 1."""
