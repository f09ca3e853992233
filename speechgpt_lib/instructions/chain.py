"""Written dialogues → the chain-of-modality set: quadruplets of spoken and written turns.

Speech comes from a *voicing*: a text-to-unit model (the paper's way) or a synthesiser and the unit
extractor (what its authors recommend).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from speechgpt_lib.corpora.held_out import is_held_out, rule
from speechgpt_lib.instructions.duplicates import Seen
from speechgpt_lib.instructions.parsing import BadRow, check_text, check_units
from speechgpt_lib.instructions.records import ChainRecord, to_table
from speechgpt_lib.instructions.sets import SetFacts, ShardWriter, finish, in_shards, is_made
from speechgpt_lib.instructions.templates import CHAIN_FORMATS
from speechgpt_lib.runs.artefacts import hash_json
from speechgpt_lib.units.inventory import check_inventory


class Voicing(Protocol):
    """Turns texts into merged units of `inventory` (its id); `name` says how, for card and keys."""

    inventory: str
    name: str

    def generate(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Merged units (n,) of each text."""

    def refuses(self, text: str) -> str | None:
        """Why a text can't be voiced, or None."""


@dataclass(frozen=True)
class Dialogue:
    """A question and its answer; `units` (n,) where the instruction was really spoken."""

    id: str
    instruction: str
    response: str
    kind: str = "dialogue"
    units: np.ndarray | None = None
    source: str = ""  # where it comes from, such as path:line or path:record N


@dataclass(frozen=True)
class _Plan:
    """How dialogues become rows."""

    questions: Voicing
    answers: Voicing
    shares: dict[str, float]
    seed: int
    held_out_share: float


def choose_format(identity: str, shares: dict[str, float], seed: int) -> str:
    """A format by its share: a hash of id and seed draws it, so order and sharding don't matter."""
    bounds = np.cumsum([shares.get(name, 0.0) for name in CHAIN_FORMATS])
    digest = hashlib.sha256(f"{seed} {identity}".encode()).digest()
    place = int(np.searchsorted(bounds, int.from_bytes(digest[:7], "big") / 2**56, side="right"))
    # Rounding may leave the sum a hair below 1: a draw beyond it falls to the last format in use.
    last = max(k for k, name in enumerate(CHAIN_FORMATS) if shares.get(name))
    return CHAIN_FORMATS[min(place, last)]


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
    """Write the quadruplets of `dialogues` into `out`, `shard_size` a shard; keep finished shards.

    `selection` is asked, once all dialogues are read, how they were selected (steps with dropped
    and left), for the data card.  What can't be used goes to quarantine.  Returns the summary;
    raises UserError for a voicing of another inventory, or where `out` holds another set.
    """
    for voicing in (questions, answers):
        check_inventory(voicing.inventory, facts.inventory, f"the set in {out}")
    plan, seen = _Plan(questions, answers, shares, seed, held_out_share), Seen()
    voices = {"questions": questions.name, "answers": answers.name}
    settings = voices | {"shares": shares, "seed": seed, "held_out": held_out_share}
    facts = replace(facts, settings=hash_json(settings))
    for number, group in enumerate(in_shards(dialogues, shard_size)):
        key = hash_json({"dialogues": list(map(_identity, group))} | facts.metadata())
        new = [seen.is_new(dialogue.id) for dialogue in group]
        if not is_made(out, number, key):
            with ShardWriter(out, number, facts, key) as writer:
                _write(writer, plan, group, new)
        if on_rows is not None:
            on_rows(len(group))
    more = {"voicing": voices, "format_shares": shares}
    more |= {"selection": selection()} if selection else {}
    split_rule = split_rule or (rule(held_out_share) if held_out_share else "none held out")
    return finish(out, number + 1, facts, sources or [], split_rule, **more)


def _identity(d: Dialogue) -> list:
    return [d.id, d.instruction, d.response, None if d.units is None else d.units.tolist()]


def _write(writer: ShardWriter, plan: _Plan, dialogues: list[Dialogue], new: list[bool]) -> None:
    """Voice the dialogues of a shard, each different text once, and write their rows."""
    good = []
    for d, is_new in zip(dialogues, new, strict=True):
        try:
            if not is_new:
                raise BadRow("duplicate id", "the same id stands in a dialogue before it")
            _check(d, plan, writer.facts.unit_count)
            good.append(d)
        except BadRow as bad:
            writer.refuse(d.source, f"dialogue {d.id}", d.id, bad)
    asked = _voice(plan.questions, [d.instruction for d in good if d.units is None])
    answered = _voice(plan.answers, [d.response for d in good])
    training, held_out = [], []
    for d in good:
        heard = asked[d.instruction] if d.units is None else d.units
        spoken = answered[d.response]
        if len(heard) == 0 or len(spoken) == 0:
            bad = BadRow("no units", "its voicing gave none")
            writer.refuse(d.source, f"dialogue {d.id}", d.id, bad)
            continue
        form = choose_format(d.id, plan.shares, plan.seed)
        row = ChainRecord(d.id, form, d.kind, d.instruction, d.response, heard, spoken)
        share = plan.held_out_share
        (held_out if share and is_held_out(d.instruction, share) else training).append(row)
    writer.add(to_table(training, writer.schema))
    if held_out:
        writer.add(to_table(held_out, writer.schema), held_out=True)


def _voice(voicing: Voicing, texts: Sequence[str]) -> dict[str, np.ndarray]:
    different = list(dict.fromkeys(texts))
    return dict(zip(different, voicing.generate(different), strict=True)) if different else {}


def _check(d: Dialogue, plan: _Plan, unit_count: int) -> None:
    """Raises BadRow for a dialogue that can't be used."""
    asked = plan.questions if d.units is None else None  # None: it was really spoken
    turns = (("instruction", d.instruction, asked), ("response", d.response, plan.answers))
    for what, text, voicing in turns:
        check_text(text, what)
        if voicing and (cause := voicing.refuses(text)):
            raise BadRow("can't be voiced", f"the {what}: {cause}")
    if d.units is not None:
        check_units(d.units, unit_count)
