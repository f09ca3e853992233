"""Written dialogues → the chain-of-modality set: quadruplets of spoken and written instruction and response, each in one of four formats.

Speech comes from a *voicing*: a text-to-unit model (the paper's way) or a synthesiser and the unit extractor (what its authors recommend).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow

from speechgpt_lib.corpora import held_out as split
from speechgpt_lib.instructions.parsing import marker_in
from speechgpt_lib.instructions.sets import (
    CHAIN_SCHEMA,
    SetFacts,
    ShardWriter,
    finish,
    is_made,
    row_digest,
)
from speechgpt_lib.instructions.templates import CHAIN_FORMATS
from speechgpt_lib.runs.artefacts import hash_json
from speechgpt_lib.units.inventory import check_inventory


class Voicing(Protocol):
    """What turns texts into merged units of `inventory` (its id); `name` says how, for the data card and the shards' keys."""

    inventory: str
    name: str

    def generate(self, texts: Sequence[str]) -> list[np.ndarray]: ...

    def refuses(self, text: str) -> str | None:
        """Why a text can't be voiced, or None."""


@dataclass(frozen=True)
class Dialogue:
    """One question and answer; `units` (n,) where the instruction was really spoken, `source` says where it comes from."""

    id: str
    instruction: str
    response: str
    kind: str = "dialogue"
    units: np.ndarray | None = None
    source: str = ""


def choose_format(identity: str, shares: dict[str, float], seed: int) -> str:
    """A format by its share: a function of id and seed, so neither order nor sharding matters."""
    bounds = np.cumsum([shares.get(name, 0.0) for name in CHAIN_FORMATS])
    draw = int.from_bytes(hashlib.sha256(f"{seed} {identity}".encode()).digest()[:7], "big") / 2**56
    last = max(
        k for k, name in enumerate(CHAIN_FORMATS) if shares.get(name)
    )  # where rounding leaves the sum a hair below 1
    return CHAIN_FORMATS[min(int(np.searchsorted(bounds, draw, side="right")), last)]


def build_chain(
    dialogues: Iterable[Dialogue],
    out: Path,
    questions: Voicing,
    answers: Voicing,
    shares: dict[str, float],
    seed: int,
    facts: SetFacts,
    *,
    held_out_share: float = 0.0,
    split_rule: str | None = None,
    shard_size: int = 1000,
    sources: list[dict] | None = None,
    selection: Callable[[], list[dict]] | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> dict:
    """Write the quadruplets of `dialogues` into `out`, `shard_size` dialogues a shard; finished shards are kept.

    `selection` is asked, once all dialogues are read, how they were selected (steps with dropped and left), for the data card.
    Returns the summary.  What can't be used goes to quarantine with its reason.

    Raises:
        UserError: a voicing of another inventory, or `out` holds shards of another set.
    """
    for voicing in (questions, answers):
        check_inventory(voicing.inventory, facts.inventory, f"the set in {out}")
    settings = {
        "shares": shares,
        "seed": seed,
        "questions": questions.name,
        "answers": answers.name,
        "held_out": held_out_share,
    }
    facts = replace(facts, settings=hash_json(settings))
    stream, seen, number = iter(dialogues), set(), 0
    while (group := list(islice(stream, shard_size))) or number == 0:
        key = hash_json({"dialogues": [_identity(d) for d in group]} | facts.metadata())
        fresh = [
            (
                d,
                None
                if _new(d.id, seen)
                else ("duplicate id", "the same id stands in a dialogue before it"),
            )
            for d in group
        ]
        if not is_made(out, number, key):
            with ShardWriter(out, number, facts, key) as writer:
                _write(writer, fresh, questions, answers, shares, seed, held_out_share)
        if on_rows is not None:
            on_rows(len(group))
        number += 1
    rule = split_rule or (split.rule(held_out_share) if held_out_share else "none held out")
    voices = {"questions": questions.name, "answers": answers.name}
    more = {"voicing": voices, "format_shares": shares} | (
        {"selection": selection()} if selection else {}
    )
    return finish(out, number, facts, sources or [], rule, **more)


def _identity(dialogue: Dialogue) -> list:
    return [
        dialogue.id,
        dialogue.instruction,
        dialogue.response,
        None if dialogue.units is None else dialogue.units.tolist(),
    ]


def _new(identity: str, seen: set[bytes]) -> bool:
    digest = hashlib.blake2b(identity.encode(errors="surrogatepass"), digest_size=8).digest()
    known = digest in seen
    seen.add(digest)
    return not known


def _write(
    writer: ShardWriter,
    dialogues: list[tuple[Dialogue, tuple[str, str] | None]],
    questions: Voicing,
    answers: Voicing,
    shares: dict[str, float],
    seed: int,
    held_out_share: float,
) -> None:
    good = []
    for dialogue, reason in dialogues:
        reason = reason or _reason(dialogue, questions, answers, writer.facts.unit_count)
        if reason:
            writer.refuse(dialogue.source, f"dialogue {dialogue.id}", dialogue.id, *reason)
        else:
            good.append(dialogue)
    spoken = _voice(questions, [d.instruction for d in good if d.units is None])
    answered = _voice(answers, [d.response for d in good])
    rows, held_out = [], []
    for d in good:
        instruction_units = d.units if d.units is not None else spoken[d.instruction]
        response_units = answered[d.response]
        if len(instruction_units) == 0 or len(response_units) == 0:
            writer.refuse(d.source, f"dialogue {d.id}", d.id, "no units", "its voicing gave none")
            continue
        chosen = choose_format(d.id, shares, seed)
        row = {
            "id": d.id,
            "format": chosen,
            "kind": d.kind,
            "instruction": d.instruction,
            "response": d.response,
        }
        row |= {"instruction_units": instruction_units, "response_units": response_units}
        (
            held_out
            if held_out_share and split.is_held_out(d.instruction, held_out_share)
            else rows
        ).append(row)
    writer.add(pyarrow.Table.from_pylist(rows, CHAIN_SCHEMA))
    if held_out:
        writer.add(pyarrow.Table.from_pylist(held_out, CHAIN_SCHEMA), held_out=True)
    count_rows(writer, rows)


def count_rows(writer: ShardWriter, rows: list[dict]) -> None:
    """Statistics and digests of quadruplets.  Only what a row's format shows counts: the rest is not in its text form either."""
    statistics = writer.counts.statistics
    shown = [shown_units(row) for row in rows]
    statistics.add(
        [row["format"] for row in rows],
        instruction_units=(len(a) for a, _ in shown if len(a)),
        response_units=(len(b) for _, b in shown if len(b)),
        instruction_words=(len(row["instruction"].split()) for row in rows),
        response_words=(len(row["response"].split()) for row in rows),
    )
    for row, (instruction, response) in zip(rows, shown, strict=True):
        statistics.add_units(np.concatenate([instruction, response]))
        writer.counts.digest += row_digest(
            (row["format"], row["instruction"], row["response"]), instruction, response
        )
    writer.counts.digest %= 2**256


def shown_units(row: dict) -> tuple[np.ndarray, np.ndarray]:
    nothing = np.array([], dtype=np.int64)
    first, second = row["format"].split("_")
    return (
        row["instruction_units"] if first == "speech" else nothing,
        row["response_units"] if second == "speech" else nothing,
    )


def _voice(voicing: Voicing, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Each different text once."""
    different = list(dict.fromkeys(texts))
    return dict(zip(different, voicing.generate(different), strict=True)) if different else {}


def _reason(
    dialogue: Dialogue, questions: Voicing, answers: Voicing, unit_count: int
) -> tuple[str, str] | None:
    for what, text, voicing in (
        ("instruction", dialogue.instruction, questions),
        ("response", dialogue.response, answers),
    ):
        if not text.strip():
            return f"empty {what}", f"the {what} has no words"
        if strange := marker_in(text):
            return "marker in text", f"the {what} has {strange} in it"
        voiced = what == "response" or dialogue.units is None
        if voiced and (cause := voicing.refuses(text)):
            return "can't be voiced", f"the {what}: {cause}"
    if dialogue.units is not None:
        if len(dialogue.units) == 0:
            return "no units", "its spoken instruction has none"
        if dialogue.units.min() < 0 or dialogue.units.max() >= unit_count:
            return (
                "unit out of range",
                f"its spoken instruction has units outside 0 to {unit_count - 1}",
            )
    return None


def moss_dialogues(samples: Iterable) -> Iterator[Dialogue]:
    """What `moss.select` keeps, as dialogues."""
    for sample in samples:
        yield Dialogue(sample.id, sample.instruction, sample.response, "moss", source=sample.source)
