"""A set on disk, looked at again: every row as it should be, nothing on both sides of the split, and the hash that was written down."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora.held_out import same_words
from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions import sets
from speechgpt_lib.instructions.chain import shown_units
from speechgpt_lib.instructions.parsing import marker_in
from speechgpt_lib.instructions.templates import CHAIN_FORMATS
from speechgpt_lib.units.inventory import check_inventory

MOST = 100  # problems, after which the rest is not looked at


def check_set(folder: Path, inventory_id: str | None = None) -> list[str]:
    """Everything that is wrong with the set in `folder`, at most `MOST` things, each with its place; an empty list if nothing is."""
    facts, summary = sets.set_facts(folder), sets.read_summary(folder)
    if inventory_id is not None:
        check_inventory(facts.inventory, inventory_id, f"the reader of {folder}")
    problems: list[str] = []
    digest, rows, held_out = 0, 0, _sentences(folder)
    identities: set[bytes] = set()
    try:
        for number, record in enumerate(sets.read_set(folder)):
            rows += 1
            digest += _digest(record)
            identity = hashlib.blake2b(record["id"].encode(), digest_size=8).digest()
            reasons = _wrong(record, facts.unit_count)
            if identity in identities:
                reasons.append(f"id {record['id']!r} stands more than once")
            identities.add(identity)
            if _words(record) in held_out:
                reasons.append("its sentence is held out")
            problems += [f"{folder}, row {number}: {reason}" for reason in reasons]
            if len(problems) >= MOST:
                return problems[:MOST]
    except UserError as error:
        return [*problems, str(error)]
    if f"{digest % 2**256:064x}" != summary["table_hash"]:
        problems.append(
            f"{folder}: its rows make another table hash than summary.json says: a shard was changed, or is of another set"
        )
    if rows != summary["statistics"]["rows"]:
        problems.append(
            f"{folder}: it has {rows} rows, summary.json says {summary['statistics']['rows']}"
        )
    return problems


def _sentences(folder: Path) -> set[bytes]:
    return {_words(record) for record in sets.read_set(folder, part="held_out")}


def _words(record: dict) -> bytes:
    text = record["text"] if "task" in record else record["instruction"]
    return hashlib.blake2b(same_words(text).encode(), digest_size=8).digest()


def _digest(record: dict) -> int:
    if "task" in record:
        return sets.row_digest(
            (record["task"], record["description"], record["text"]), record["units"]
        )
    return sets.row_digest(
        (record["format"], record["instruction"], record["response"]), *shown_units(record)
    )


def _wrong(record: dict, unit_count: int) -> list[str]:
    """What is wrong with a row, in words."""
    reasons = []
    texts, units = (
        [("text", record.get("text"))],
        [record["units"]] if "task" in record else list(shown_units(record)),
    )
    if "task" in record:
        wanted = record["task"] in ("asr", "tts") and len(record["units"])
        texts.append(("description", record["description"]))
    else:
        wanted = record["format"] in CHAIN_FORMATS and (
            "speech" not in record["format"] or any(map(len, units))
        )
        texts = [("instruction", record["instruction"]), ("response", record["response"])]
    if not wanted:
        reasons.append(f"no units, or unknown {'task' if 'task' in record else 'format'}")
    for what, text in texts:
        if not (text or "").strip():
            reasons.append(f"empty {what}")
        elif strange := marker_in(text):
            reasons.append(f"the {what} has {strange} in it")
    joined = np.concatenate(units)
    if len(joined) and (joined.min() < 0 or joined.max() >= unit_count):
        reasons.append(f"units outside 0 to {unit_count - 1}")
    return reasons
