"""The utterance table: Parquet shards, written one by one and read as a stream, of any corpus.

    utterances-00000.parquet        speech made here: FLAC inside, with its phones
    NAME/utterances-00000.parquet   recorded speech: which stretch of which file; the sound stays
    NAME/quarantine.parquet         what can't be used of it, each with a reason

All shards have the columns id, text, answer, kind, voice, split and seconds; text and answer are ""
where there is none.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile

from speechgpt_lib.corpora.segments import Segment, Skipped, read_segment
from speechgpt_lib.corpora.sound_files import BadAudio
from speechgpt_lib.corpora.speech import Phone
from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.runs.artefacts import atomic_path

TEXT_COLUMNS = ("id", "text", "answer", "kind", "voice", "split")
_TEXT = pyarrow.string()
_INT, _SINGLE, _DOUBLE = pyarrow.int32(), pyarrow.float32(), pyarrow.float64()
_PHONE = pyarrow.struct([("start", _SINGLE), ("end", _SINGLE), ("label", _TEXT)])
SPOKEN_SCHEMA = pyarrow.schema(
    [(name, _TEXT) for name in TEXT_COLUMNS[:-1]]
    + [("rate", _INT), ("pitch", _SINGLE), ("split", _TEXT), ("seconds", _SINGLE)]
    + [("audio", pyarrow.binary()), ("phones", pyarrow.list_(_PHONE))]
)
RECORDED_SCHEMA = pyarrow.schema(
    [(name, _TEXT) for name in TEXT_COLUMNS]
    + [("seconds", _DOUBLE), ("path", _TEXT), ("start", _DOUBLE), ("end", _DOUBLE)]
    + [("sample_rate", _INT), ("language", _TEXT)]
)
QUARANTINE_SCHEMA = pyarrow.schema([(name, _TEXT) for name in ("path", "id", "reason", "detail")])
ROW_GROUP = 4096
PARTS, SUMMARY = "parts", "summary.json"  # of `prepare`: what it has while at work, and at the end


@dataclass(frozen=True)
class Utterance:
    """One utterance of one voice, synthesized (with rate and pitch) or recorded (with a path)."""

    id: str
    text: str
    answer: str
    kind: str
    voice: str
    split: str  # one of those in corpus.py
    seconds: float = 0.0
    rate: int = 0  # words a minute
    pitch: float = 1.0  # times the voice's own
    path: str = ""  # relative to `root`
    start: float = 0.0  # seconds
    end: float | None = None
    sample_rate: int = SAMPLE_RATE  # Hz
    language: str = "en"
    root: str = ""
    wave: np.ndarray | None = field(default=None, repr=False)  # float32 (samples,) at 16 kHz
    audio: bytes = field(
        default=b"", repr=False
    )  # the same as FLAC; both only where they were read
    phones: list[Phone] = field(default_factory=list, repr=False)

    @property
    def segment(self) -> Segment:
        """The stretch of a sound file that recorded speech is."""
        place = (self.id, self.path, self.start, self.end, self.sample_rate, self.text)
        return Segment(*place, self.voice, self.language, self.split)

    def read(self) -> np.ndarray:
        """The sound, float32 (samples,) at 16 kHz.  Raises BadAudio for one that can't be used."""
        if self.wave is not None:
            return self.wave
        return decode(self.audio) if self.audio else read_segment(self.root, self.segment)


def write_shard(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write speech that was made here, with its sound as FLAC."""
    rows = []
    for u in utterances:
        buffer = io.BytesIO()
        soundfile.write(buffer, u.wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        columns = {name: getattr(u, name) for name in SPOKEN_SCHEMA.names[:9]}
        rows.append(columns | {"audio": buffer.getvalue(), "phones": [vars(p) for p in u.phones]})
    with atomic_path(path) as temporary:
        table = pyarrow.Table.from_pylist(rows, SPOKEN_SCHEMA)
        pyarrow.parquet.write_table(table, temporary, compression="none")


def write_segments(path: Path, segments: Iterable[Segment], root: Path | str) -> None:
    """Write recorded utterances, whose files lie below `root`."""
    rows = (
        {"text": s.text or "", "answer": "", "kind": "speech", "voice": s.speaker}
        | {n: getattr(s, n) for n in ("id", "split", *RECORDED_SCHEMA.names[6:])}
        for s in segments
    )
    _write(path, rows, RECORDED_SCHEMA.with_metadata({"root": str(root)}))


def write_quarantine(path: Path, skipped: Iterable[Skipped]) -> None:
    """Write what can't be used."""
    _write(path, map(asdict, skipped), QUARANTINE_SCHEMA)


def read_quarantine(path: Path) -> Iterator[Skipped]:
    """Stream what `prepare`, or the extraction of units, could not use."""
    return (Skipped(**row) for row in _stream(path, QUARANTINE_SCHEMA.names, None))


def table_shards(folder: Path | str) -> list[Path]:
    """The shards of an utterance table in order.

    Raises UserError where there are none, or not all.
    """
    found = sorted(Path(folder).glob("**/utterances-*.parquet"))
    shards = [path for path in found if not path.parent.name.startswith(".")]  # half-written ones
    if not shards:
        made = "run notebook 01_unit_extraction.ipynb or `speechgpt corpora prepare` first"
        raise UserError(f"no utterance table in {folder}: {made}")
    for place in dict.fromkeys(shard.parent for shard in shards):
        if (place / PARTS).is_dir() and not (place / SUMMARY).is_file():
            number = sum(shard.parent == place for shard in shards)
            cure = "give the command that makes it again: it goes on where it stopped"
            raise UserError(f"{place} holds only {number} shards and no {SUMMARY}: {cure}")
    return shards


def remove_half_written(folder: Path) -> None:
    """Remove what writes that were killed have left in a table."""
    for killed in folder.glob("**/.*.parquet.*"):
        shutil.rmtree(killed, ignore_errors=True)


def read_utterances(
    folder: Path,
    audio: bool | Literal["bytes"] = False,
    phones: bool = False,
    where: dict[str, object] | None = None,
    shards: Iterable[Path] | None = None,
) -> Iterator[Utterance]:
    """Stream the utterances of a table in order.

    audio: True reads the sound of each; "bytes" reads what `Utterance.read` needs to get it later.
    phones: also read them (speech made here only; recordings have none).
    where: column → value or collection of values to keep.
    shards: some of `table_shards(folder)`; default all.
    """
    unwanted = ["audio"] * (not audio) + ["phones"] * (not phones)
    for shard in table_shards(folder) if shards is None else shards:
        schema = _schema(shard)
        root = (schema.metadata or {}).get(b"root", b"").decode()
        columns = [name for name in schema.names if name not in unwanted]
        for row in _stream(shard, columns, where):
            if phones:
                row["phones"] = [Phone(**p) for p in row.get("phones", ())]
            u = Utterance(**row, root=root)
            yield replace(u, wave=u.read(), audio=b"") if audio is True else u


def hear(folder: Path, where: dict[str, object]) -> Iterator[Utterance]:
    """The utterances that `where` names, with their sound; unreadable ones are left out.

    The extraction of units has put those into quarantine and counted them.
    """
    for utterance in read_utterances(folder, audio="bytes", where=where):
        with contextlib.suppress(BadAudio):
            yield replace(utterance, wave=utterance.read(), audio=b"")


def decode(audio: bytes) -> np.ndarray:
    """FLAC → float32 (samples,)."""
    return soundfile.read(io.BytesIO(audio), dtype="float32")[0]


def _write(path: Path, rows: Iterable[dict], schema: pyarrow.Schema) -> None:
    """Rows in groups of `ROW_GROUP`, atomically; `rows` may be a stream of any length."""
    rows = iter(rows)
    with (
        atomic_path(path) as temporary,
        pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        while group := list(islice(rows, ROW_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


def _schema(path: Path) -> pyarrow.Schema:
    with _readable(path):
        schema = pyarrow.parquet.read_schema(path)
    if schema.names not in (SPOKEN_SCHEMA.names, RECORDED_SCHEMA.names):
        found, expected = ", ".join(schema.names), ", ".join(RECORDED_SCHEMA.names)
        raise UserError(f"{path} has the columns {found}; expected {expected}: make it again")
    return schema


def _stream(path: Path, columns: list[str], where: dict[str, object] | None) -> Iterator[dict]:
    filters = [(c, "in", [v] if isinstance(v, str) else list(v)) for c, v in (where or {}).items()]
    wanted = pyarrow.parquet.filters_to_expression(filters) if filters else None
    with _readable(path), pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256, columns=columns):
            yield from (batch if wanted is None else batch.filter(wanted)).to_pylist()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Tell in one line what is wrong with a file."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"no {path}: run its step or `speechgpt corpora prepare` first") from None
    except (pyarrow.ArrowInvalid, OSError) as error:
        what = str(error).split("\n")[0].split(". ")[0]
        cure = "delete it and run its step, or `speechgpt corpora prepare`, again"
        raise UserError(f"{path} is damaged or half-written ({what}): {cure}") from None
