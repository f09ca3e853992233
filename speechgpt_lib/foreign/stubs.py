"""Stand-ins for classes that a foreign pickle names: they keep what the pickle gives them and do nothing.

Reading a pickle means calling what it names.  So whatever it names, it gets one of these classes; names from packages that such files
have no business with are refused before, since whoever wrote them meant them to be called.
"""

from __future__ import annotations

import argparse
from typing import Any


class Stub:
    """An object of a class that is not here; `arguments` as called with, attributes as in the pickled state."""

    name = "?"

    def __init__(self, *arguments: Any, **keywords: Any):
        self.__dict__.update(keywords)
        self.arguments = arguments

    def __new__(cls, *arguments: Any, **keywords: Any) -> Stub:
        made = object.__new__(cls)
        made.arguments = arguments
        return made

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.__dict__.update({str(key): value for key, value in part.items()})
        self.state = state

    # Pickles fill lists, sets and dictionaries through these, also those of their own classes.
    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def add(self, item: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __repr__(self) -> str:
        return f"<stand-in for {self.name}>"


def stub_class(name: str) -> type[Stub]:
    return type(name.rsplit(".", 1)[-1], (Stub,), {"name": name})


def plain(value: Any) -> Any:
    """Stand-ins of argparse namespaces and OmegaConf containers, at any depth, as dictionaries, lists and values."""
    if isinstance(
        value, Stub | argparse.Namespace
    ):  # the latter where somebody has told PyTorch that it may be read
        known = vars(value)
        if "_content" in known:  # an OmegaConf container
            return plain(known["_content"])
        if "_val" in known:  # an OmegaConf node
            return plain(known["_val"])
        return {
            key: plain(item) for key, item in known.items() if key not in ("arguments", "state")
        }
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
