"""Objects whose pickles run a command, and packages that exist only while a file is written."""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path


class Hostile:
    """Unpickled, it makes the file `marker`."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class HostileEval(Hostile):
    def __reduce__(self):
        return eval, (f"open({str(self.marker)!r}, 'w').close()",)


@contextlib.contextmanager
def module_with(name: str, class_name: str) -> Iterator[type]:
    """A class that pickles under `name.class_name`, as that of a package which isn't installed."""
    made = type(class_name, (), {"__module__": name, "__qualname__": class_name})
    before = {part: sys.modules.get(part) for part in _parents(name)}
    for part in _parents(name):
        sys.modules[part] = types.ModuleType(part)
    setattr(sys.modules[name], class_name, made)
    try:
        yield made
    finally:
        for part, module in before.items():
            if module is None:
                del sys.modules[part]
            else:
                sys.modules[part] = module


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: k + 1]) for k in range(len(parts))]
