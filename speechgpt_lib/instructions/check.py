"""Checks a set on disk: every row well-formed, no sentence on both sides, the hash as recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora.held_out import same_words
from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions import sets
from speechgpt_lib.instructions.descriptions import TASKS
from speechgpt_lib.instructions.duplicates import Seen, hash64
from speechgpt_lib.instructions.parsing import BadRow, check_text, check_units
from speechgpt_lib.instructions.records import CrossModalRecord, Record, row_digest
from speechgpt_lib.instructions.templates import CHAIN_FORMATS
from speechgpt_lib.units.inventory import check_inventory

MOST = 100  # problems, after which the rest is not looked at


def check_set(folder: Path, inventory_id: str | None = None) -> list[str]:
    """All that is wrong with the set in `folder`, with places; at most `MOST` things."""
    facts, summary = sets.set_facts(folder), sets.read_summary(folder)
    if inventory_id is not None:
        check_inventory(facts.inventory, inventory_id, f"the reader of {folder}")
    problems: list[str] = []
    digest, rows, ids = 0, 0, Seen()
    try:
        held_out = {_words(record) for record in sets.read_set(folder, part="held_out")}
        for number, record in enumerate(sets.read_set(folder)):
            rows += 1
            digest += row_digest(record)
            reasons = list(_faults(record, facts.unit_count))
            if not ids.is_new(record.id):
                reasons.append(f"id {record.id!r} stands more than once")
            if _words(record) in held_out:
                reasons.append("its sentence is held out")
            problems += [f"{folder}, row {number}: {reason}" for reason in reasons]
            if len(problems) >= MOST:
                return problems[:MOST]
    except UserError as error:
        return [*problems, str(error)]
    if f"{digest % 2**256:064x}" != summary["table_hash"]:
        problems.append(f"{folder}: another table hash than in summary.json: was a shard changed?")
    if rows != (wanted := summary["statistics"]["rows"]):
        problems.append(f"{folder}: it has {rows} rows, summary.json says {wanted}")
    return problems


def _words(record: Record) -> int:
    sentence = record.text if isinstance(record, CrossModalRecord) else record.instruction
    return hash64(same_words(sentence))


def _faults(record: Record, unit_count: int) -> Iterator[str]:
    """What is wrong with a row."""
    if record.group not in (*TASKS, *CHAIN_FORMATS):
        yield f"unknown task or format {record.group!r}"
    for what, text in record.texts.items():
        try:
            check_text(text or "", what)
        except BadRow as bad:
            yield bad.detail
    units = np.concatenate(record.shown)
    if record.group != "text_text":
        try:
            check_units(units, unit_count)
        except BadRow as bad:
            yield bad.detail
