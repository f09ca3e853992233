"""Checks a set on disk: every row well-formed, no sentence on both sides, the hash as recorded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora.held_out import same_words
from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.descriptions import TASKS
from speechgpt_lib.instructions.duplicates import Seen
from speechgpt_lib.instructions.parsing import BadRow, check_text, check_units
from speechgpt_lib.instructions.records import CrossModalRecord, Record
from speechgpt_lib.instructions.sets import read_set, read_summary
from speechgpt_lib.instructions.statistics import Statistics
from speechgpt_lib.instructions.templates import CHAIN_FORMATS
from speechgpt_lib.units.inventory import check_inventory

MOST = 100  # problems, after which the rest is not looked at


def check_set(folder: Path, inventory_id: str | None = None) -> list[str]:
    """All that is wrong with the set in `folder`, with places; at most `MOST` things."""
    summary, found, ids = read_summary(folder), Statistics(), Seen()
    if inventory_id is not None:
        check_inventory(summary["inventory"], inventory_id, f"the reader of {folder}")
    problems: list[str] = []
    try:
        held_out = {_words(record) for record in read_set(folder, part="held_out")}
        for number, record in enumerate(read_set(folder)):
            found.add(record)
            reasons = list(_faults(record, summary["unit_count"]))
            if not ids.is_new(record.id):
                reasons.append(f"id {record.id!r} stands more than once")
            if _words(record) in held_out:
                reasons.append("its sentence is held out")
            problems += [f"{folder}, row {number}: {reason}" for reason in reasons]
            if len(problems) >= MOST:
                return problems[:MOST]
    except UserError as error:
        return [*problems, str(error)]
    if f"{found.digest:064x}" != summary["table_hash"]:
        problems.append(f"{folder}: another table hash than in summary.json: was a shard changed?")
    if (rows := found.groups.total()) != (wanted := summary["statistics"]["rows"]):
        problems.append(f"{folder}: it has {rows} rows, summary.json says {wanted}")
    return problems


def _words(record: Record) -> int:
    sentence = record.text if isinstance(record, CrossModalRecord) else record.instruction
    return hash(same_words(sentence))


def _faults(record: Record, unit_count: int) -> Iterator[str]:
    """What is wrong with a row."""
    group, texts, shown = record.content
    if group not in (*TASKS, *CHAIN_FORMATS):
        yield f"unknown task or format {group!r}"
    checks = [partial(check_text, text or "", what) for what, text in texts.items()]
    if group != "text_text":
        checks.append(partial(check_units, np.concatenate(shown), unit_count))
    for check in checks:
        try:
            check()
        except BadRow as bad:
            yield bad.detail
