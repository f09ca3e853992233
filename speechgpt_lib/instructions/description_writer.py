"""A language model writes task descriptions, as GPT-4 wrote the paper's.

Answers cost money, so each is kept in `OUT.progress.json` at once, where the same command goes on.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.chat_server import Answer, ChatServer
from speechgpt_lib.instructions.descriptions import TASKS, parse_list, sift
from speechgpt_lib.runs.artefacts import hash_file, read_json, write_json, write_text

# Prompt → its task.  The paper's own for TTS asks for ASR by mistake; `tts` is corrected.
PROMPTS = {"asr": "asr", "tts": "tts", "tts_seed": "tts"}
IN_PROMPT = 100  # the number of descriptions that the prompts ask for
IDLE = 3  # answers running without anything new, after which a model is given up
MOST_REQUESTS = 20  # that a call pays for
MADE_BY = ("task", "prompt", "prompt_sha256", "model")
Prices = tuple[float, float] | None  # of a million tokens of prompts, and of answers


@dataclass
class Progress:
    """What has been asked for, and what the answers have brought so far."""

    task: str
    prompt: str
    prompt_sha256: str
    model: str
    count: int
    requests: int = 0
    useless_answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    accepted: list[str] = field(default_factory=list)
    refused: list[list[str]] = field(default_factory=list)

    def take(self, answer: Answer) -> tuple[int, int]:
        """Add an answer; returns how many descriptions it brought, and how many were refused."""
        items = parse_list(answer.text)
        whole = items[:-1] if answer.cut else items  # where it was cut off, the last one isn't
        new, refused = sift(whole, self.accepted)
        new = new[: self.count - len(self.accepted)]
        self.accepted += new
        self.refused += [[line[:200], reason] for line, reason in refused]
        self.requests += 1
        self.useless_answers += not items
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        return len(new), len(refused)

    def messages(self) -> list[dict]:
        """The conversation, as if one answer had given all that is right, and the wish for more."""
        messages = [{"role": "user", "content": load_prompt(self.prompt, self.count)}]
        if have := len(self.accepted):
            given = "\n".join(f"{k}. {line}" for k, line in enumerate(self.accepted, 1))
            more = f"List {self.count - have} more, numbered from {have + 1}. "
            more += "The same requirements hold; do not repeat any of those above."
            messages += [{"role": "assistant", "content": given}, {"role": "user", "content": more}]
        return messages

    def cost(self, prices: Prices) -> float | None:
        """What the answers cost."""
        counts = (self.prompt_tokens, self.completion_tokens)
        return prices and sum(n * price for n, price in zip(counts, prices, strict=True)) / 1e6


def load_prompt(name: str, count: int = IN_PROMPT) -> str:
    """A prompt of data/prompts, asking for `count` descriptions."""
    if name not in PROMPTS:
        raise UserError(f"unknown prompt {name!r}: expected one of {', '.join(PROMPTS)}")
    text = (resources.files(__package__) / "data" / "prompts" / f"{name}.txt").read_text("utf-8")
    return re.sub(rf"\b{IN_PROMPT}\b", str(count), text.strip())


def write_descriptions(
    task: str,
    out: Path | str,
    server: ChatServer,
    *,
    prompt: str | None = None,
    count: int = 100,
    price_in: float | None = None,
    price_out: float | None = None,
) -> dict:
    """Have a model write `count` descriptions into `out`, one a line.

    What is known of them goes into `OUT.json` and is returned.  `prompt` is one of `PROMPTS`, by
    default the task's own; prices are of a million tokens of prompts and of answers, both or
    neither.  Raises UserError for settings that don't fit together or what is there, a server that
    fails, or too little that is new.
    """
    out, prompt = Path(out).expanduser(), prompt or task
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}")
    digest = hashlib.sha256(load_prompt(prompt).encode()).hexdigest()
    if PROMPTS[prompt] != task:
        raise UserError(f"prompt {prompt!r} is for {PROMPTS[prompt]}, not for {task}: leave it out")
    if count < 1:
        raise UserError(f"count is {count}: expected 1 or more")
    if (price_in is None) != (price_out is None):
        raise UserError("one price is given: expected that of prompts and that of answers")
    prices = None if price_in is None else (price_in, price_out)
    wanted = Progress(task, prompt, digest, server.model, count)
    facts_path, kept_in = Path(f"{out}.json"), Path(f"{out}.progress.json")
    if out.exists():
        facts = _finished(out, facts_path, wanted)
        kept_in.unlink(missing_ok=True)
        server.say(f"{out} is there already: {count} descriptions by {server.model}")
        return facts
    progress = _resume(kept_in, wanted)
    if progress.accepted:
        server.say(f"{kept_in} has {len(progress.accepted)} of {count}: going on there")
    server.connect()
    write_json(kept_in, asdict(progress))  # before anything is paid for: can it be written at all?
    _fill(progress, server, kept_in, prices)
    text = "".join(f"{line}\n" for line in progress.accepted)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = asdict(progress) | {"refused": Counter(reason for _, reason in progress.refused)}
    facts |= {"temperature": server.temperature, "cost": progress.cost(prices)}
    facts |= {"prices_per_million": prices and list(prices), "date": now}
    facts |= {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    del facts["accepted"]
    write_json(facts_path, facts)  # first: where `out` is, everything is
    write_text(out, text)
    kept_in.unlink()
    return facts


def _fill(progress: Progress, server: ChatServer, kept_in: Path, prices: Prices) -> None:
    """Ask until there are enough descriptions; every answer is kept."""
    idle, begun = 0, progress.requests
    while (have := len(progress.accepted)) < (count := progress.count):
        kept = f"{have} of {count} descriptions are kept in {kept_in}"
        kept += ": the same command goes on there"
        if idle >= IDLE or progress.requests - begun >= MOST_REQUESTS:
            why = f"{MOST_REQUESTS} requests were not enough"
            why = f"{IDLE} answers running brought nothing new" if idle >= IDLE else why
            raise UserError(f"{server.model}: {why}; {kept}, another model needs another --out")
        try:
            answer = server.ask(progress.messages())
        except UserError as error:
            if progress.requests:
                raise UserError(f"{error}; {kept}") from None
            kept_in.unlink()
            raise
        new, refused = progress.take(answer)
        idle = 0 if new else idle + 1
        write_json(kept_in, asdict(progress))
        brought = f"{new} new, {refused} refused" if new or refused else "no list in the answer"
        tokens = f"{progress.prompt_tokens} + {progress.completion_tokens} tokens"
        tokens += "" if prices is None else f", cost {progress.cost(prices):.4f}"
        told = f"request {progress.requests}: {brought}, {have + new} of {count} in all; {tokens}"
        server.say(told)


def _finished(out: Path, facts_path: Path, wanted: Progress) -> dict:
    """The facts of `out`, if it is what is `wanted` and still as it was written."""
    cure = "choose another --out, or move it away"
    if not (out.is_file() and facts_path.is_file()):
        raise UserError(f"{out} is there, but not {facts_path} that would say what it is: {cure}")
    facts = read_json(facts_path)
    if other := _differences(facts, wanted, "asked for", *MADE_BY, "count"):
        raise UserError(f"{out} was made with {other}: choose another --out, or delete it")
    if facts.get("sha256") != hash_file(out):
        raise UserError(f"{out} was changed since it was written: {cure}")
    return facts


def _resume(kept_in: Path, wanted: Progress) -> Progress:
    """What is kept there, or a fresh start.  No model is bound before its first answer."""
    if not kept_in.exists():
        return wanted
    found, fresh, cure = read_json(kept_in), vars(wanted), "delete it, or choose another --out"
    if not isinstance(found, dict) or any(type(found.get(k)) is not type(fresh[k]) for k in fresh):
        raise UserError(f"{kept_in} is not the progress of this command: {cure}")
    if not found["requests"]:
        return wanted
    if other := _differences(found, wanted, "now", *MADE_BY):
        raise UserError(f"{kept_in} was begun with {other}: {cure}")
    kept = Progress(**{name: found[name] for name in fresh})
    return replace(kept, count=wanted.count, accepted=kept.accepted[: wanted.count])


def _differences(found: dict, wanted: Progress, but: str, *names: str) -> str:
    asked = vars(wanted)
    other = (name for name in names if found.get(name) != asked[name])
    return "; ".join(f"{name} {found.get(name)}, {but} {asked[name]}" for name in other)
