"""Asks a language model behind a server with OpenAI's chat interface.

The key goes to the server and nowhere else: no message and no answer repeats it.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from speechgpt_lib.errors import UserError

ATTEMPTS, LONGEST_WAIT_S = 4, 60.0  # of a request that fails in passing, with growing pauses
KEY_PART = 8  # so many characters of a key, from its beginning, are as secret as the whole


class Answer(NamedTuple):
    """What came back, also where it is of no use; tokens are as the server counts them."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cut: bool  # at a limit


@dataclass
class ChatServer:
    """A model of a server, and how it is asked."""

    model: str
    base_url: str | None = None  # OPENAI_BASE_URL
    api_key: str | None = field(default=None, repr=False)  # OPENAI_API_KEY
    temperature: float = 1.0
    timeout: float = 60.0  # seconds without a byte
    say: Callable[[str], None] = print
    sleep: Callable[[float], None] = time.sleep

    def connect(self) -> None:
        """Open the client; a UserError where address, key or package are missing or can't be."""
        url = self.base_url or os.environ.get("OPENAI_BASE_URL") or None
        self._key = key = (self.api_key or os.environ.get("OPENAI_API_KEY") or "").strip()
        if not (url or key):
            raise UserError("no server to ask: set OPENAI_API_KEY for OpenAI's own, or --base-url")
        if url and not re.match(r"https?://[^/\s]", url):
            wanted = "expected one such as http://localhost:8000/v1"
            raise UserError(f"the base URL is {_hide(url, key)!r}: {wanted}")
        # Such a key would fail later, in a message that holds it.
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise UserError("the key has characters in it that no key has: was it pasted whole?")
        try:
            import openai
        except ImportError:
            cure = "pip install 'speechgpt_lib[descriptions]'"
            raise UserError(f"this needs the package openai, which isn't here: {cure}") from None
        self._openai, options = openai, {"timeout": self.timeout, "max_retries": 0}
        # Some servers want no key, but the client insists on one.
        self._client = openai.OpenAI(api_key=key or "none", base_url=url, **options)
        # A password may stand in the address, too.
        self._where = self._safe(re.sub("//[^/@]*@", "//", str(self._client.base_url).rstrip("/")))

    def ask(self, messages: list[dict]) -> Answer:
        """Send a conversation; all that can go wrong is a UserError without the key."""
        what = {"model": self.model, "messages": messages, "temperature": self.temperature}
        for attempt in range(1, ATTEMPTS + 1):
            try:
                raw = self._client.chat.completions.with_raw_response.create(**what)
                answer = read_answer(raw.http_response.text)
                # A shorter key may be a word of the answer.
                key = self._key if len(self._key) >= KEY_PART else ""
                return answer._replace(text=_hide(answer.text, key))
            except self._openai.OpenAIError as error:
                reason, pause = self._failure(error)
            if attempt < ATTEMPTS:
                pause = min(LONGEST_WAIT_S, 2.0 ** (attempt - 1) if pause is None else pause)
                self.say(f"{self._where}: {reason}; asking again in {pause:g} s")
                self.sleep(pause)
        raise UserError(f"{self._where}: {reason}, {ATTEMPTS} times running")

    def _failure(self, error) -> tuple[str, float | None]:
        """(what happened, the pause asked for); raises at once where asking again is of no use."""
        if isinstance(error, self._openai.APITimeoutError):
            return f"no answer in {self.timeout:g} seconds", None
        if isinstance(error, self._openai.APIConnectionError):
            return f"no connection ({self._safe(str(error.__cause__ or error))})", None
        if not isinstance(error, self._openai.APIStatusError):
            raise UserError(f"{self._where}: {self._safe(str(error))}") from None
        says = error.body  # what the server says: one of the usual fields of its body, or all of it
        if isinstance(says, dict):
            says = next((says[k] for k in ("message", "detail", "error") if says.get(k)), says)
        status, says = error.status_code, self._safe(str(says or error.response.reason_phrase))
        if status >= 500 or status in (408, 409, 429):
            pause = _retry_after(error.response.headers.get("Retry-After", ""))
            return f"it answers {status}: {says}", pause
        told = {  # a 401 without its words: OpenAI repeats both ends of a wrong key
            401: "refuses the key (401): is OPENAI_API_KEY the right one for this server?",
            403: f"refuses this to the key (403: {says}): may it use {self.model!r}?",
            404: f"has no model {self.model!r}, or is not a base URL ({says}): "
            "check --model and --base-url",
        }
        raise UserError(f"{self._where} {told.get(status, f'answers {status}: {says}')}") from None

    def _safe(self, text: str) -> str:
        return " ".join(_hide(text, self._key).split())[:300]


def read_answer(body: str) -> Answer:
    """What a server sent → Answer; whatever isn't of the form expected counts as nothing."""
    try:
        value = json.loads(body)
    except (json.JSONDecodeError, RecursionError):
        value = None
    text = _item(value, "choices", 0, "message", "content")
    counts = [_item(value, "usage", name) for name in ("prompt_tokens", "completion_tokens")]
    tokens = [count if isinstance(count, int) and count > 0 else 0 for count in counts]
    cut = _item(value, "choices", 0, "finish_reason") == "length"
    return Answer(text if isinstance(text, str) else "", *tokens, cut)


def _item(value: Any, *path: str | int) -> Any:
    """What stands at a path in JSON, or None."""
    try:
        for key in path:
            value = value[key]
    except (KeyError, IndexError, TypeError):
        return None
    return value


def _hide(text: str, key: str) -> str:
    """`text` without the key, whole or cut short, and without halves of characters."""
    for length in range(len(key), min(len(key), KEY_PART) - 1, -1):
        text = text.replace(key[:length], "[key]") if length else text
    return text.encode("utf-8", "replace").decode()


def _retry_after(value: str) -> float | None:
    """The seconds of a Retry-After header: a number, or a date."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None
