"""Stand-ins for classes that a foreign pickle names: they keep what it gives them and do nothing.

Reading a pickle means calling what it names.  So whatever it names gets one of these classes; names
from packages that such files have no business with are refused before, since whoever wrote them
meant them to be called.
"""

from __future__ import annotations

import argparse
from typing import Any


class Stub:
    """An object of a class that is not here.

    `arguments` is what it was called with, `state` its pickled state, whose items are attributes.
    """

    name = "?"

    def __new__(cls, *arguments: Any, **keywords: Any) -> Stub:
        made = object.__new__(cls)
        made.__dict__.update(keywords, arguments=arguments)
        return made

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.__dict__.update({str(key): value for key, value in part.items()})
        self.state = state

    def ignore(self, *items: Any) -> None:
        """Takes what a pickle puts into a list, set or dictionary of its own class."""

    append = extend = add = __setitem__ = ignore


def stub_class(name: str) -> type[Stub]:
    """A class of stand-ins for `name`, a dotted path."""
    return type(name.rsplit(".", 1)[-1], (Stub,), {"name": name})


def plain(value: Any) -> Any:
    """Namespaces of argparse and containers of OmegaConf, at any depth, as plain Python values."""
    if isinstance(value, Stub | argparse.Namespace):  # a real one where PyTorch may read it
        known = vars(value)
        for inside in ("_content", "_val"):  # an OmegaConf container, an OmegaConf node
            if inside in known:
                return plain(known[inside])
        value = {k: item for k, item in known.items() if k not in ("arguments", "state")}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
