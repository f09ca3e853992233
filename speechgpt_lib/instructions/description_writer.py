"""A language model writes task descriptions, as GPT-4 wrote the paper's: a server with OpenAI's chat interface is asked for them.

Every answer is kept in `OUT.progress.json` at once, since answers cost money: whatever stops the program, the same command goes on there.
The key goes to the server and nowhere else.
"""

from __future__ import annotations

import collections
import datetime
import email.utils
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Literal

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.description_lists import parse_list, sift
from speechgpt_lib.instructions.descriptions import TASKS
from speechgpt_lib.runs.artefacts import hash_file, read_json, write_json, write_text

PROMPTS = {
    "asr": "asr",
    "tts": "tts",
    "tts_seed": "tts",
}  # prompt → its task; the paper's own for TTS asks for ASR, `tts` is corrected
IN_PROMPT = 100  # the number of descriptions that the prompts ask for
IDLE = 3  # answers running without anything new, after which a model is given up
LONGEST_WAIT_S = 60.0
KEY_PART = 8  # so many characters of a key, from its beginning, are as secret as the whole
NO_KEY = "none"  # for servers that want none, though the client insists on one

Say = Callable[[str], None]
Sleep = Callable[[float], None]


@dataclass(frozen=True)
class Answer:
    """What came back: its text ("" when it is of no use), tokens as the server counts them, and whether it was cut at a limit."""

    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut: bool = False


def load_prompt(name: str, count: int = IN_PROMPT) -> str:
    """A prompt of data/prompts, asking for `count` descriptions."""
    if name not in PROMPTS:
        raise UserError(f"unknown prompt {name!r}: expected one of {', '.join(PROMPTS)}")
    text = (
        resources.files(__package__)
        .joinpath("data", "prompts", f"{name}.txt")
        .read_text(encoding="utf-8")
        .strip()
    )
    return re.sub(rf"\b{IN_PROMPT}\b", str(count), text)


def write_descriptions(
    task: Literal["asr", "tts"],
    out: Path | str,
    *,
    model: str,
    base_url: str | None = None,
    api_key: str | None = None,
    prompt: str | None = None,
    count: int = 100,
    temperature: float = 1.0,
    timeout: float = 60.0,
    attempts: int = 4,
    max_requests: int = 20,
    price_in: float | None = None,
    price_out: float | None = None,
    say: Say = print,
    sleep: Sleep = time.sleep,
) -> dict:
    """Have `model` write `count` descriptions into `out`, one a line, and what is known of them into `OUT.json`; returns the latter.

    Args:
        base_url, api_key: of the server; by default those of OPENAI_BASE_URL and OPENAI_API_KEY.
        prompt: one of `PROMPTS`; by default the task's own.
        timeout: seconds without a byte; a request that fails in passing is sent `attempts` times, with growing pauses.
        max_requests: answers that this call pays for at most.
        price_in, price_out: of a million tokens of prompts and of answers, in any currency; both or neither.

    Raises:
        UserError: settings that don't fit together, or not what is there; a server that refuses or isn't reached; too little that is new.
    """
    out, prompt = Path(out).expanduser(), prompt or task
    _check(task, prompt, count, attempts, max_requests, (price_in, price_out))
    made_by = {
        "task": task,
        "prompt": prompt,
        "prompt_sha256": hashlib.sha256(load_prompt(prompt).encode()).hexdigest(),
        "model": model,
    }
    facts_path, progress = Path(f"{out}.json"), Path(f"{out}.progress.json")
    if out.exists():
        facts = _finished(out, facts_path, made_by | {"count": count})
        progress.unlink(missing_ok=True)
        say(f"{out} is there already: {count} descriptions by {model}")
        return facts
    state = _resume(progress, made_by, count)
    if state["accepted"]:
        say(f"{progress} has {len(state['accepted'])} of {count}: going on there")
    ask = _connect(model, base_url, api_key, temperature, timeout, attempts, say, sleep)
    write_json(progress, state)  # before anything is paid for: can it be written at all?
    idle = asked = 0
    while len(state["accepted"]) < count:
        kept = f"{len(state['accepted'])} of {count} descriptions are kept in {progress}: the same command goes on there"
        if asked >= max_requests or idle >= IDLE:
            why = (
                f"{IDLE} answers running brought nothing new"
                if idle >= IDLE
                else f"{max_requests} requests were not enough"
            )
            raise UserError(f"{model}: {why}; {kept}, another model needs another --out")
        try:
            answer = ask(_messages(prompt, state["accepted"], count))
        except UserError as error:
            if state["requests"]:
                raise UserError(f"{error}; {kept}") from None
            progress.unlink()
            raise
        new, refused = _take(state, answer, count)
        asked, idle = asked + 1, 0 if new else idle + 1
        write_json(progress, state)
        say(_line(state, new, refused, price_in, price_out))
    facts = _finish(out, facts_path, state, temperature, price_in, price_out)
    progress.unlink()
    return facts


def _check(
    task: str,
    prompt: str,
    count: int,
    attempts: int,
    max_requests: int,
    prices: tuple[float | None, float | None],
) -> None:
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}")
    load_prompt(prompt)  # is there such a prompt?
    if PROMPTS[prompt] != task:
        raise UserError(
            f"prompt {prompt!r} is for {PROMPTS[prompt]}, not for {task}: leave it out, or choose another"
        )
    for name, value in (("count", count), ("attempts", attempts), ("max_requests", max_requests)):
        if value < 1:
            raise UserError(f"{name} is {value}: expected 1 or more")
    if (prices[0] is None) != (prices[1] is None):
        raise UserError("one price is given: give that of prompts and that of answers, or neither")


def _finished(out: Path, facts_path: Path, wanted: dict) -> dict:
    """The facts of `out`, if it is what is `wanted` and still as it was written."""
    if not (out.is_file() and facts_path.is_file()):
        raise UserError(
            f"{out} is there, but not {facts_path} that would say what it is: choose another --out, or move it away"
        )
    facts = read_json(facts_path)
    if other := [
        f"{name} {facts.get(name)}, asked for {value}"
        for name, value in wanted.items()
        if facts.get(name) != value
    ]:
        raise UserError(
            f"{out} was made with {'; '.join(other)}: choose another --out, or delete it"
        )
    if facts.get("sha256") != hash_file(out):
        raise UserError(
            f"{out} was changed since it was written: choose another --out, or move it away"
        )
    return facts


def _resume(progress: Path, made_by: dict, count: int) -> dict:
    """The state that `progress` holds, or a fresh one.  One without an answer in it binds nobody to its model."""
    fresh = made_by | {
        "count": count,
        "requests": 0,
        "useless_answers": 0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
    }
    fresh |= {"accepted": [], "refused": []}
    if not progress.exists():
        return fresh
    state = read_json(progress)
    if not isinstance(state, dict) or any(
        type(state.get(name)) is not type(value) for name, value in fresh.items()
    ):
        raise UserError(
            f"{progress} is not the progress of this command: delete it, or choose another --out"
        )
    if not state["requests"]:
        return fresh
    if other := [
        f"{name} {state[name]}, now {value}"
        for name, value in made_by.items()
        if state[name] != value
    ]:
        raise UserError(
            f"{progress} was begun with {'; '.join(other)}: delete it, or choose another --out"
        )
    return state | {"count": count, "accepted": state["accepted"][:count]}


def _messages(prompt: str, accepted: list[str], count: int) -> list[dict]:
    """The conversation so far, as if the model had given all it has got right in one answer, and the wish for the rest."""
    messages = [{"role": "user", "content": load_prompt(prompt, count)}]
    if accepted:
        missing, have = (
            count - len(accepted),
            "\n".join(f"{k}. {line}" for k, line in enumerate(accepted, 1)),
        )
        more = f"List {missing} more, numbered from {len(accepted) + 1}. The same requirements hold; do not repeat any of those above."
        messages += [{"role": "assistant", "content": have}, {"role": "user", "content": more}]
    return messages


def _take(state: dict, answer: Answer, count: int) -> tuple[int, int]:
    """Add an answer to the state, in place; returns how many descriptions it brought, and how many were refused."""
    items = parse_list(answer.text)
    new, refused = sift(
        items[:-1] if answer.cut else items, state["accepted"]
    )  # where it was cut off, the last one isn't whole
    new = new[: count - len(state["accepted"])]
    state["accepted"] += new
    state["refused"] += [[line[:200], reason] for line, reason in refused]
    state["requests"] += 1
    state["useless_answers"] += not items
    state["prompt_tokens"] += answer.prompt_tokens
    state["completion_tokens"] += answer.completion_tokens
    return len(new), len(refused)


def _cost(state: dict, price_in: float | None, price_out: float | None) -> float | None:
    if price_in is None or price_out is None:
        return None
    return (state["prompt_tokens"] * price_in + state["completion_tokens"] * price_out) / 1e6


def _line(
    state: dict, new: int, refused: int, price_in: float | None, price_out: float | None
) -> str:
    cost = _cost(state, price_in, price_out)
    brought = f"{new} new, {refused} refused" if new or refused else "no list in the answer"
    return (
        f"request {state['requests']}: {brought}, {len(state['accepted'])} of {state['count']} in all; "
        f"{state['prompt_tokens']} + {state['completion_tokens']} tokens"
        + (f", cost {cost:.4f}" if cost is not None else "")
    )


def _finish(
    out: Path,
    facts_path: Path,
    state: dict,
    temperature: float,
    price_in: float | None,
    price_out: float | None,
) -> dict:
    text = "".join(f"{line}\n" for line in state["accepted"])
    facts = {
        name: value for name, value in state.items() if name not in ("accepted", "refused")
    } | {
        "refused": dict(collections.Counter(reason for _, reason in state["refused"])),
        "temperature": temperature,
        "cost": _cost(state, price_in, price_out),
        "prices_per_million": None if price_in is None else [price_in, price_out],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    write_json(facts_path, facts)  # first: where `out` is, everything is
    write_text(out, text)
    return facts


def _connect(
    model: str,
    base_url: str | None,
    api_key: str | None,
    temperature: float,
    timeout: float,
    attempts: int,
    say: Say,
    sleep: Sleep,
) -> Callable[[list[dict]], Answer]:
    """A function that sends a conversation and returns the answer; all that can go wrong in it is a UserError without the key."""
    base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
    key = (api_key or os.environ.get("OPENAI_API_KEY") or "").strip()
    if not (base_url or key):
        raise UserError(
            "no server to ask: set OPENAI_API_KEY for OpenAI's own, or --base-url (OPENAI_BASE_URL) for another"
        )
    if base_url and not re.match(r"https?://[^/\s]", base_url):
        raise UserError(
            f"the base URL is {_hide(base_url, key)!r}: expected one such as http://localhost:8000/v1"
        )
    if not (
        key.isascii() and key.isprintable() and " " not in key
    ):  # it would fail later, in a message that holds it
        raise UserError(
            "the key has characters in it that no key has: was OPENAI_API_KEY pasted whole, and nothing else?"
        )
    try:
        import openai
    except ImportError:
        raise UserError(
            "models are asked through the package openai, which isn't here: pip install 'speechgpt_lib[descriptions]'"
        ) from None
    client = openai.OpenAI(api_key=key or NO_KEY, base_url=base_url, timeout=timeout, max_retries=0)

    def safe(text: str) -> str:
        return " ".join(_hide(text, key).split())[:300]

    where = safe(
        re.sub(r"//[^/@]*@", "//", str(client.base_url).rstrip("/"))
    )  # a password may stand in it, too

    def failure(error: openai.OpenAIError) -> tuple[str, float | None]:
        """(what happened, the pause that the server asks for); raised at once where asking again is of no use."""
        if isinstance(error, openai.APITimeoutError):
            return f"no answer in {timeout:g} seconds", None
        if isinstance(error, openai.APIConnectionError):
            return f"no connection ({safe(str(error.__cause__ or error))})", None
        if not isinstance(error, openai.APIStatusError):
            raise UserError(f"{where}: {safe(str(error))}") from None
        status, says = error.status_code, safe(_words(error))
        if status == 401:  # without its words: OpenAI repeats both ends of a wrong key
            raise UserError(
                f"{where} refuses the key (401): is OPENAI_API_KEY the right one for this server?"
            ) from None
        if status == 403:
            raise UserError(
                f"{where} refuses this to the key (403: {says}): may it use {model!r}?"
            ) from None
        if status == 404:
            raise UserError(
                f"{where} has no model {model!r}, or is not a base URL ({says}): check --model and --base-url"
            ) from None
        if status < 500 and status not in (408, 409, 429):
            raise UserError(f"{where} answers {status}: {says}") from None
        return f"it answers {status}: {says}", _retry_after(
            error.response.headers.get("Retry-After")
        )

    def ask(messages: list[dict]) -> Answer:
        for attempt in range(1, attempts + 1):
            try:
                raw = client.chat.completions.with_raw_response.create(
                    model=model, messages=messages, temperature=temperature
                )
                answer = read_answer(raw.http_response.text)
                return replace(
                    answer, text=_hide(answer.text, key if len(key) >= KEY_PART else "")
                )  # a shorter one may be a word
            except openai.OpenAIError as error:
                reason, pause = failure(error)
            if attempt < attempts:
                pause = min(LONGEST_WAIT_S, 2.0 ** (attempt - 1) if pause is None else pause)
                say(f"{where}: {reason}; asking again in {pause:g} s")
                sleep(pause)
        raise UserError(f"{where}: {reason}, {attempts} times running")

    return ask


def read_answer(body: str) -> Answer:
    """What a server sent → Answer; whatever isn't of the form expected counts as nothing."""
    try:
        value = json.loads(body)
    except (json.JSONDecodeError, RecursionError):
        return Answer()
    usage = value.get("usage") if isinstance(value, dict) else None
    tokens = [
        usage.get(name) if isinstance(usage, dict) else 0
        for name in ("prompt_tokens", "completion_tokens")
    ]
    tokens = [number if isinstance(number, int) and number > 0 else 0 for number in tokens]
    try:
        choice = value["choices"][0]
        text, cut = choice["message"]["content"], choice.get("finish_reason") == "length"
    except (KeyError, IndexError, TypeError, AttributeError):
        return Answer("", *tokens)
    return Answer(text if isinstance(text, str) else "", *tokens, cut)


def _words(error) -> str:
    """What a server says about an error: one of the usual fields of its body, or all of it."""
    body = error.body
    text = (
        next((body[name] for name in ("message", "detail", "error") if body.get(name)), body)
        if isinstance(body, dict)
        else body
    )
    return str(text or error.response.reason_phrase)


def _hide(text: str, key: str) -> str:
    """`text` without the key, which some servers repeat, be it cut short; and without halves of characters, which no file can hold."""
    for length in range(len(key), min(len(key), KEY_PART) - 1, -1):
        text = text.replace(key[:length], "[key]") if length else text
    return text.encode("utf-8", "replace").decode()


def _retry_after(value: str | None) -> float | None:
    """The seconds of a Retry-After header: a number, or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
