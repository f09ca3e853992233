"""Asks a language model behind a server with OpenAI's chat interface.

The key goes to the server and nowhere else: no message and no answer repeats it.
"""

from __future__ import annotations

import email.utils
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from speechgpt_lib.errors import UserError

LONGEST_WAIT_S = 60.0
KEY_PART = 8  # so many characters of a key, from its beginning, are as secret as the whole
NO_KEY = "none"  # for servers that want none, though the client insists on one


@dataclass(frozen=True)
class Answer:
    """What came back; tokens are as the server counts them."""

    text: str = ""  # also where it is of no use
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut: bool = False  # at a limit


@dataclass
class ChatServer:
    """A model of a server, and how it is asked."""

    model: str
    base_url: str | None = None  # OPENAI_BASE_URL
    api_key: str | None = field(default=None, repr=False)  # OPENAI_API_KEY
    temperature: float = 1.0
    timeout: float = 60.0  # seconds without a byte
    attempts: int = 4  # of a request that fails in passing, with growing pauses
    say: Callable[[str], None] = print
    sleep: Callable[[float], None] = time.sleep

    def connect(self) -> None:
        """Open the client; a UserError where address, key or package are missing or can't be."""
        url = self.base_url or os.environ.get("OPENAI_BASE_URL") or None
        self._key = key = (self.api_key or os.environ.get("OPENAI_API_KEY") or "").strip()
        if not (url or key):
            wanted = "set OPENAI_API_KEY for OpenAI's own, or --base-url (OPENAI_BASE_URL)"
            raise UserError(f"no server to ask: {wanted} for another")
        if url and not re.match(r"https?://[^/\s]", url):
            wanted = "expected one such as http://localhost:8000/v1"
            raise UserError(f"the base URL is {_hide(url, key)!r}: {wanted}")
        # Such a key would fail later, in a message that holds it.
        if not (key.isascii() and key.isprintable() and " " not in key):
            wanted = "was OPENAI_API_KEY pasted whole, and nothing else?"
            raise UserError(f"the key has characters in it that no key has: {wanted}")
        try:
            import openai
        except ImportError:
            cure = "pip install 'speechgpt_lib[descriptions]'"
            raise UserError(f"this needs the package openai, which isn't here: {cure}") from None
        self._openai = openai
        options = {"base_url": url, "timeout": self.timeout, "max_retries": 0}
        self._client = openai.OpenAI(api_key=key or NO_KEY, **options)
        # A password may stand in the address, too.
        self._where = self._safe(re.sub("//[^/@]*@", "//", str(self._client.base_url).rstrip("/")))

    def ask(self, messages: list[dict]) -> Answer:
        """Send a conversation; all that can go wrong is a UserError without the key."""
        for attempt in range(1, self.attempts + 1):
            try:
                raw = self._client.chat.completions.with_raw_response.create(
                    model=self.model, messages=messages, temperature=self.temperature
                )
                answer = read_answer(raw.http_response.text)
                # A shorter key may be a word of the answer.
                key = self._key if len(self._key) >= KEY_PART else ""
                return replace(answer, text=_hide(answer.text, key))
            except self._openai.OpenAIError as error:
                reason, pause = self._failure(error)
            if attempt < self.attempts:
                pause = min(LONGEST_WAIT_S, 2.0 ** (attempt - 1) if pause is None else pause)
                self.say(f"{self._where}: {reason}; asking again in {pause:g} s")
                self.sleep(pause)
        raise UserError(f"{self._where}: {reason}, {self.attempts} times running")

    def _failure(self, error) -> tuple[str, float | None]:
        """(what happened, the pause asked for); raises at once where asking again is of no use."""
        openai, where, model = self._openai, self._where, repr(self.model)
        if isinstance(error, openai.APITimeoutError):
            return f"no answer in {self.timeout:g} seconds", None
        if isinstance(error, openai.APIConnectionError):
            return f"no connection ({self._safe(str(error.__cause__ or error))})", None
        if not isinstance(error, openai.APIStatusError):
            raise UserError(f"{where}: {self._safe(str(error))}") from None
        status, says = error.status_code, self._safe(_words(error))
        if status >= 500 or status in (408, 409, 429):
            pause = _retry_after(error.response.headers.get("Retry-After"))
            return f"it answers {status}: {says}", pause
        told = {  # a 401 without its words: OpenAI repeats both ends of a wrong key
            401: "refuses the key (401): is OPENAI_API_KEY the right one for this server?",
            403: f"refuses this to the key (403: {says}): may it use {model}?",
            404: f"has no model {model}, or is not a base URL ({says}): "
            "check --model and --base-url",
        }
        raise UserError(f"{where} {told.get(status, f'answers {status}: {says}')}") from None

    def _safe(self, text: str) -> str:
        return " ".join(_hide(text, self._key).split())[:300]


def read_answer(body: str) -> Answer:
    """What a server sent → Answer; whatever isn't of the form expected counts as nothing."""
    try:
        value = json.loads(body)
    except (json.JSONDecodeError, RecursionError):
        return Answer()
    usage = value.get("usage") if isinstance(value, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    tokens = [number if isinstance(number, int) and number > 0 else 0 for number in tokens]
    try:
        choice = value["choices"][0]
        text, cut = choice["message"]["content"], choice.get("finish_reason") == "length"
    except (KeyError, IndexError, TypeError, AttributeError):
        return Answer("", *tokens)
    return Answer(text if isinstance(text, str) else "", *tokens, cut)


def _words(error) -> str:
    """What a server says about an error: one of the usual fields of its body, or all of it."""
    text = error.body
    if isinstance(text, dict):
        text = next((text[name] for name in ("message", "detail", "error") if text.get(name)), text)
    return str(text or error.response.reason_phrase)


def _hide(text: str, key: str) -> str:
    """`text` without the key, whole or cut short, and without halves of characters."""
    for length in range(len(key), min(len(key), KEY_PART) - 1, -1):
        text = text.replace(key[:length], "[key]") if length else text
    return text.encode("utf-8", "replace").decode()


def _retry_after(value: str | None) -> float | None:
    """The seconds of a Retry-After header: a number, or a date."""
    try:
        return max(0.0, float(value or ""))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value or "").timestamp() - time.time())
    except (ValueError, TypeError):
        return None
