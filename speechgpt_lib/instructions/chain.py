"""Written dialogues → the chain-of-modality set: quadruplets of spoken and written turns.

Speech comes from a *voicing*: a text-to-unit model (the paper's way) or a synthesiser and the unit
extractor (what its authors recommend).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora.held_out import is_held_out, rule
from speechgpt_lib.instructions.parsing import BadRow, check_text, check_units
from speechgpt_lib.instructions.records import ChainRecord, Seen, to_table
from speechgpt_lib.instructions.sets import SetFacts, ShardWriter, finish, in_shards, is_made
from speechgpt_lib.instructions.templates import CHAIN_FORMATS
from speechgpt_lib.runs.artefacts import hash_json
from speechgpt_lib.text_to_unit.speech import SpeechVoicing
from speechgpt_lib.text_to_unit.synthesis import TextToUnit
from speechgpt_lib.units.inventory import check_inventory

Voicing = TextToUnit | SpeechVoicing
MOST_SHARDS = 1 << 40  # of a stream whose length is not known beforehand


@dataclass(frozen=True)
class Dialogue:
    """A question and its answer; `units` (n,) where the instruction was really spoken."""

    id: str
    instruction: str
    response: str
    kind: str = "dialogue"
    units: np.ndarray | None = None
    source: str = ""  # where it comes from, such as path:line or path:record N


def choose_format(identity: str, shares: dict[str, float], seed: int) -> str:
    """A format by its share: a hash of id and seed draws it, so order and sharding don't matter."""
    formats = [name for name in CHAIN_FORMATS if shares.get(name)]
    bounds = np.cumsum([shares[name] for name in formats])
    digest = hashlib.sha256(f"{seed} {identity}".encode()).digest()
    place = np.searchsorted(bounds, int.from_bytes(digest[:7], "big") / 2**56, side="right")
    # Rounding may leave the sum a hair below 1: a draw beyond it falls to the last format.
    return formats[min(place, len(formats) - 1)]


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
    sources: Sequence[dict] = (),
    selection: Callable[[], list[dict]] | None = None,
    shards: slice = slice(None),
    on_rows: Callable[[int], None] | None = None,
) -> dict:
    """Write the quadruplets of `dialogues` into `out`, `shard_size` a shard; keep finished shards.

    All dialogues are read; those of the `shards` are voiced, others belong to other processes.
    `selection` is asked, once all dialogues are read, how they were selected (steps with dropped
    and left), for the data card.  What can't be used goes to quarantine.  Returns the summary;
    raises UserError for a voicing of another inventory, or where `out` holds another set.
    """
    for voicing in (questions, answers):
        check_inventory(voicing.inventory, facts.inventory, f"the set in {out}")
    voices, seen = {"questions": questions.name, "answers": answers.name}, Seen()
    settings = voices | {"shares": shares, "seed": seed, "held_out": held_out_share}
    facts = replace(facts, settings=hash_json(settings))
    own = range(MOST_SHARDS)[shards]
    for number, group in enumerate(in_shards(dialogues, shard_size)):
        units = [None if d.units is None else d.units.tolist() for d in group]
        told = [[d.id, d.instruction, d.response, u] for d, u in zip(group, units, strict=True)]
        key = hash_json({"dialogues": told} | facts.metadata())
        again = {k for k, d in enumerate(group) if not seen.is_new(d.id)}
        if number in own and not is_made(out, number, key):
            with ShardWriter(out, number, facts, key) as writer:
                rows = [
                    replace(row, format=choose_format(row.id, shares, seed))
                    for row in _voiced(writer, group, again, questions, answers)
                ]
                held_out = [is_held_out(row.instruction, held_out_share) for row in rows]
                writer.add(to_table(rows, writer.schema), held_out)
        if on_rows is not None and number in own:
            on_rows(len(group))
    more = {"voicing": voices, "format_shares": shares}
    more |= {"selection": selection()} if selection else {}
    split_rule = split_rule or (rule(held_out_share) if held_out_share else "none held out")
    return finish(out, number + 1, facts, sources, split_rule, **more)


def _voiced(
    writer: ShardWriter, group: list[Dialogue], again: set[int], asks: Voicing, answers: Voicing
) -> Iterator[ChainRecord]:
    """Usable dialogues as records without format; numbers `again` have the id of one before."""
    good = []
    for k, d in enumerate(group):
        try:
            if k in again:
                raise BadRow("duplicate id", "the same id stands in a dialogue before it")
            asked = asks if d.units is None else None  # None: it was really spoken
            turns = (("instruction", d.instruction, asked), ("response", d.response, answers))
            for what, text, voicing in turns:
                check_text(text, what)
                if voicing and (cause := voicing.refuses(text)):
                    raise BadRow("can't be voiced", f"the {what}: {cause}")
            if d.units is not None:
                check_units(d.units, writer.facts.unit_count)
            good.append(d)
        except BadRow as bad:
            writer.refuse(d.source, f"dialogue {d.id}", d.id, bad)
    heard = _voice(asks, [d.instruction for d in good if d.units is None])
    spoken = _voice(answers, [d.response for d in good])
    for d in good:
        units = (heard[d.instruction] if d.units is None else d.units, spoken[d.response])
        if all(map(len, units)):
            yield ChainRecord(d.id, "", d.kind, d.instruction, d.response, *units)
        else:
            bad = BadRow("no units", "its voicing gave none")
            writer.refuse(d.source, f"dialogue {d.id}", d.id, bad)


def _voice(voicing: Voicing, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Text → units (n,); each different text is voiced once."""
    different = list(dict.fromkeys(texts))
    return dict(zip(different, voicing.generate(different), strict=True)) if different else {}
