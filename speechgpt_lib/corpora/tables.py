"""Utterance tables: Parquet shards of sentences with FLAC audio and phones, written one by one and read as a stream.

Columns: id, text, answer (or ""), kind, voice, rate, pitch, split, seconds, audio (FLAC bytes, 16 kHz mono), phones.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile

from speechgpt_lib.corpora.speech import Phone
from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.runs.artefacts import atomic_path

_PHONE = pyarrow.struct(
    [("start", pyarrow.float32()), ("end", pyarrow.float32()), ("label", pyarrow.string())]
)
SCHEMA = pyarrow.schema(
    [(n, pyarrow.string()) for n in ("id", "text", "answer", "kind", "voice")]
    + [
        ("rate", pyarrow.int32()),
        ("pitch", pyarrow.float32()),
        ("split", pyarrow.string()),
        ("seconds", pyarrow.float32()),
    ]
    + [("audio", pyarrow.binary()), ("phones", pyarrow.list_(_PHONE))]
)


@dataclass(frozen=True)
class Utterance:
    """One sentence as spoken by one voice; `wave` is float32 (samples,) at 16 kHz, or None when read without audio.

    `audio` is the wave as FLAC, kept only where it was read as bytes.
    """

    id: str
    text: str
    answer: str
    kind: str
    voice: str
    rate: int
    pitch: float
    split: str
    seconds: float
    wave: np.ndarray | None = field(default=None, repr=False)
    audio: bytes = field(default=b"", repr=False)
    phones: list[Phone] = field(default_factory=list, repr=False)


def write_shard(path: Path, utterances: Iterable[Utterance]) -> None:
    rows = []
    for u in utterances:
        buffer = io.BytesIO()
        soundfile.write(buffer, u.wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        phones = [{"start": p.start, "end": p.end, "label": p.label} for p in u.phones]
        rows.append(
            {n: getattr(u, n) for n in SCHEMA.names[:9]}
            | {"audio": buffer.getvalue(), "phones": phones}
        )
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows, SCHEMA), temporary, compression="none"
        )


def read_utterances(
    folder: Path,
    audio: bool | Literal["bytes"] = False,
    phones: bool = False,
    where: dict[str, object] | None = None,
    only: str = "*.parquet",
) -> Iterator[Utterance]:
    """Stream the utterances of all shards in `folder` in order.

    Args:
        audio, phones: whether to decode them (the other columns cost next to nothing); "bytes" reads audio without decoding it.
        where: column → value or collection of values to keep.
        only: pattern for the names of the shards.
    """
    shards = sorted(Path(folder).glob(only))
    if not shards:
        raise UserError(
            f"no utterance table in {folder}: run notebook 01_unit_extraction.ipynb first"
        )
    columns = SCHEMA.names[:9] + ["audio"] * bool(audio) + ["phones"] * phones
    filters = [
        (c, "in", [v] if isinstance(v, str) else list(v)) for c, v in (where or {}).items()
    ] or None
    for shard in shards:
        for row in pyarrow.parquet.read_table(shard, columns=columns, filters=filters).to_pylist():
            if audio is True:
                row["wave"] = decode(row.pop("audio"))
            if phones:
                row["phones"] = [Phone(**p) for p in row["phones"]]
            yield Utterance(**row)


def decode(audio: bytes) -> np.ndarray:
    """FLAC → float32 (samples,)."""
    return soundfile.read(io.BytesIO(audio), dtype="float32")[0]
