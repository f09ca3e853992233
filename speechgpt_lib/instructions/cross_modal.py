"""Unit tables → the cross-modal set: pairs of units and text, each with a description.

The description asks for one or the other.  Hashes of id and seed draw, so the same rows come out in
any order and on any number of machines.  Memory holds a batch, whatever the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow

from speechgpt_lib.corpora.held_out import is_held_out, rule
from speechgpt_lib.corpora.tables import read_metadata
from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.descriptions import TASKS, draw, load_descriptions
from speechgpt_lib.instructions.parsing import BadRow, check_text, check_units
from speechgpt_lib.instructions.records import column_values, find_duplicates, read_batches
from speechgpt_lib.instructions.sets import SetFacts, ShardWriter, finish, is_made
from speechgpt_lib.runs.artefacts import hash_file, hash_json
from speechgpt_lib.units.inventory import check_inventory


@dataclass(frozen=True)
class Pairing:
    """How pairs become rows.

    "one" asks each pair for a transcript or for speech, by chance (the paper); "both" for both.
    Without `held_out_splits` a hash of the words holds out `held_out_share` of the sentences.
    """

    seed: int = 0
    pairing: str = "one"
    speaking_voices: tuple[str, ...] | None = None  # whose pairs are asked for speech; None: all
    splits: tuple[str, ...] | None = None  # that are used; None: all
    held_out_splits: tuple[str, ...] = ()
    held_out_share: float = 0.002
    templates: str = "paper"
    descriptions: dict[str, tuple[str, ...]] | None = None  # None: the shipped ones


def build_cross_modal(
    sources: Sequence[Path],
    out: Path,
    pairing: Pairing,
    *,
    inventory_id: str,
    unit_count: int,
    shards: slice = slice(None),
    source_facts: Sequence[dict] = (),
) -> dict:
    """Write the set of all pairs in the unit tables `sources` into `out`; keep finished shards.

    `shards` are those that this call is to make, as for the jobs of an array; `source_facts` are
    for the data card.  Returns the summary, also in summary.json once every shard is there.  Raises
    UserError where a table is missing, damaged or of another inventory, or `out` holds another set.
    """
    tables = [t for source in sources for t in sorted(source.glob("units-*.parquet"))]
    if not tables:
        cure = "run notebook 01_unit_extraction.ipynb or speechgpt units extract first"
        raise UserError(f"no unit table in {', '.join(map(str, sources))}: {cure}")
    for table in tables:
        found = read_metadata(table).get("inventory", "none")
        check_inventory(found, inventory_id, f"the set in {out}")
    lists = pairing.descriptions or {task: load_descriptions(task) for task in TASKS}
    settings = vars(pairing) | {"lists": lists}
    del settings["descriptions"]
    key = hash_json(settings)
    facts = SetFacts("cross_modal", inventory_id, unit_count, pairing.templates, key)
    chosen = range(len(tables))[shards]
    keys = {k: hash_json({"table": hash_file(tables[k])} | facts.metadata()) for k in chosen}
    missing = [k for k in chosen if not is_made(out, k, keys[k])]
    first = find_duplicates(tables) if missing else {}
    for k in missing:
        with ShardWriter(out, k, facts, keys[k]) as writer:
            _write(writer, tables[k], replace(pairing, descriptions=lists), first)
    splits = f"split {' or '.join(pairing.held_out_splits)} of the corpus"
    split_rule = splits if pairing.held_out_splits else rule(pairing.held_out_share)
    return finish(out, len(tables), facts, source_facts, split_rule, pairing=pairing.pairing)


def _write(
    writer: ShardWriter, table: Path, pairing: Pairing, first: dict[bytes, tuple[Path, int]]
) -> None:
    """Write the rows of a unit table; `first` says where an id that occurs several times stands
    first: that row is kept.
    """
    lists, start, names = pairing.descriptions, 0, ("id", "text", "voice", "split")
    for batch in read_batches(table, 4096, [*names, "units"]):
        rows, units = [], column_values(batch["units"])
        columns = (_strings(batch[name]) for name in names)
        for k, (identity, text, voice, split) in enumerate(zip(*columns, strict=True)):
            if pairing.splits is not None and split not in pairing.splits + pairing.held_out_splits:
                continue
            try:
                if identity is None or text is None:
                    raise BadRow("broken UTF-8", "its id or text is missing or no UTF-8")
                check_text(text, "text")
                check_units(units[k], writer.facts.unit_count)
                place = first.get(identity.encode(), here := (table, start + k))
                if place != here:
                    raise BadRow("duplicate id", "the same id stands in {}, row {}".format(*place))
            except BadRow as bad:
                writer.refuse(str(table), f"row {start + k}", str(identity), bad)
                continue
            held_out = split in pairing.held_out_splits
            if not pairing.held_out_splits:
                held_out = is_held_out(text, pairing.held_out_share)
            speaks = pairing.speaking_voices is None or voice in pairing.speaking_voices
            tasks = TASKS if speaks else ("asr",)
            if pairing.pairing == "one":
                tasks = (draw(tasks, "task", identity, pairing.seed),)
            for task in tasks:
                name = f"{task}-{identity}"
                rows.append((k, held_out, name, task, draw(lists[task], task, name, pairing.seed)))
        if rows:  # the other columns of the numbered pairs stay as they are
            pairs, held_out, *made = zip(*rows, strict=True)
            taken = batch.take(pyarrow.array(pairs, pyarrow.int32()))
            columns = dict(zip(("id", "task", "description"), made, strict=True))
            columns |= {name: taken[name] for name in ("text", "voice", "units")}
            writer.add(pyarrow.table(columns).select(writer.schema.names), held_out)
        start += batch.num_rows


def _strings(column: pyarrow.Array) -> list[str | None]:
    """Texts of a column; None where the bytes are no UTF-8, which Parquet doesn't look at."""
    values = column.cast(pyarrow.binary()).to_pylist()
    texts = (v if v is None else v.decode(errors="ignore") for v in values)
    return [t if t is None or t.encode() == v else None for t, v in zip(texts, values, strict=True)]
