"""A training that is asked to stop does so after the step it is in, saved."""

from __future__ import annotations

import signal
import threading
from typing import Any


class StopRequest:
    """Turns SIGTERM, SIGINT and SIGUSR1 into a wish that the loop answers after its step."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        self.requested = True
