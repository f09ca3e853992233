"""The utterance table: its rows, which may be stretches of sound files, and its Parquet shards.

utterances-00000.parquet        speech made here: FLAC inside, with its phones
NAME/utterances-00000.parquet   recorded speech: which stretch of which file; the sound stays
NAME/quarantine.parquet         what can't be used of it; docs/corpora-and-units.md says why
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile

from speechgpt_lib.corpora import audio as sound
from speechgpt_lib.corpora.audio import MAXIMUM_S, BadAudio, inspect, to_16_khz
from speechgpt_lib.corpora.speech import PLAIN, Manner, Phone
from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.runs.artefacts import atomic_path
from speechgpt_lib.runs.stores import located

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
    """One utterance of one voice, synthesized (with rate and pitch) or recorded (with a path).

    A reader gives what its corpus promises; `check_segment` fills in what the decoder really gives
    (a rate of often 48 kHz for Opus, whatever was recorded).
    """

    id: str
    text: str  # "" where there is no transcript
    answer: str
    kind: str
    voice: str
    split: str  # one of those in corpus.py; a reader's are the corpus' own
    seconds: float = 0.0
    rate: int = 0  # words a minute
    pitch: float = 1.0  # times the voice's own
    manner: Manner = PLAIN  # the rest of how it is spoken, which the table doesn't keep
    path: str = ""  # relative to `root`, with `/` between folders
    start: float = 0.0  # seconds
    end: float | None = None  # seconds; None for a whole file of which nothing is known yet
    sample_rate: int = SAMPLE_RATE  # Hz
    language: str = "en"
    root: str = ""
    # The sound, only where it was read: float32 (samples,) at 16 kHz, or the same as FLAC.
    wave: np.ndarray | None = field(default=None, repr=False)
    audio: bytes = field(default=b"", repr=False)
    phones: list[Phone] = field(default_factory=list, repr=False)

    def read(self) -> np.ndarray:
        """The sound, float32 (samples,) at 16 kHz.  Raises BadAudio for one that can't be used."""
        if self.wave is not None:
            return self.wave
        with reading(self.path or f"utterance {self.id}"):
            if self.audio:
                return soundfile.read(io.BytesIO(self.audio), dtype="float32")[0]
            return read_segment(self.root, self)


class Skipped(NamedTuple):
    """A row that gives no utterance."""

    path: str
    id: str
    reason: str  # one word, so that they can be counted
    detail: str  # what was found


Row = Utterance | Skipped


def inside(root: Path | str, name: str) -> Path:
    """`root/name`, for a name that a list or a table gives.

    Raises BadAudio where it leads out of `root`, so that a corpus of strangers reads no other file.
    """
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise BadAudio("outside", name, f"only files inside {root} are read")
    return located(root) / name


def read_segment(root: Path | str, u: Utterance, maximum_s=MAXIMUM_S) -> np.ndarray:
    """The sound of `u`, float32 (n,) at 16 kHz: only its stretch is read.  Raises BadAudio."""
    path = inside(root, u.path)
    return _audible(path, sound.read_audio(path, u.start, u.end, maximum_s))


def read_part(root: Path | str, u: Utterance, start: int, count: int) -> np.ndarray:
    """Samples `start` to `start + count` at 16 kHz of the sound of `u`, float32 (count,).

    Where the file has another rate, what lies up to 0.1 s around is resampled with them, so that
    they are (to about 1e-4) those of `read_segment`.  Behind the end they are 0.  Raises BadAudio.
    """
    path = inside(root, u.path)
    header = inspect(path)
    rate, first = header.rate, round(u.start * header.rate)
    margin = 0 if rate == SAMPLE_RATE else SAMPLE_RATE // 10
    grid = SAMPLE_RATE // math.gcd(SAMPLE_RATE, rate)  # where samples of both rates fall together
    before = max(0, start - margin) // grid * grid
    last = first + math.ceil((start + count + margin) * rate / SAMPLE_RATE)
    end = header.frames if u.end is None else min(header.frames, round(u.end * rate))
    first += before * rate // SAMPLE_RATE
    wave = to_16_khz(sound.mono(path, first, max(first, min(last, end))), rate)
    wave = wave[start - before : start - before + count]
    return np.pad(wave, (0, count - len(wave)))


def check_segment(root: Path | str, u: Utterance, maximum_s=MAXIMUM_S, decoded=False) -> Utterance:
    """`u` with its end, seconds and sample rate as the file has them.  Raises BadAudio.

    Looks at the file's header and tail only, unless `decoded`: then also at every sample.
    """
    path = inside(root, u.path)
    header, start, stop = sound.stretch(path, u.start, u.end, maximum_s)
    if decoded or header.damage:  # a damaged file may still hold this segment
        wave, frames = sound.decode(path, header, start, stop)
        stop = start + frames
        _audible(path, wave)
    end = stop / header.rate if u.end is None else u.end
    return replace(u, end=end, seconds=end - u.start, sample_rate=header.rate)


def _audible(path: Path, wave: np.ndarray) -> np.ndarray:
    if why := sound.nothing_heard(wave):
        raise BadAudio("silent", path, why)
    return wave


def write_shard(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write speech that was made here, with its sound as FLAC."""
    rows = []
    for u in utterances:
        buffer = io.BytesIO()
        soundfile.write(buffer, u.wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        rows.append(vars(u) | {"audio": buffer.getvalue()})
    _write(path, rows, SPOKEN_SCHEMA, "none")


def write_segments(path: Path, utterances: Iterable[Utterance], root: Path | str) -> None:
    """Write recorded utterances, whose files lie below `root`."""
    _write(path, map(vars, utterances), RECORDED_SCHEMA.with_metadata({"root": str(root)}))


def write_quarantine(path: Path, skipped: Iterable[dict]) -> None:
    """Write what can't be used: dictionaries with the fields of `Skipped`."""
    _write(path, skipped, QUARANTINE_SCHEMA)


def read_quarantine(path: Path) -> Iterator[Skipped]:
    """Stream what `prepare`, or the extraction of units, could not use."""
    return (Skipped(**row) for row in _stream(path, (QUARANTINE_SCHEMA,)))


def read_metadata(path: Path) -> dict[str, str]:
    """What a Parquet file says of itself.  Raises UserError for a damaged one."""
    with reading(path, "delete it and make it again", "is damaged"):
        found = pyarrow.parquet.read_metadata(path).metadata or {}
        kept = ((name, value) for name, value in found.items() if name != b"ARROW:schema")
        return {name.decode(): value.decode() for name, value in kept}


def table_shards(folder: Path | str) -> list[Path]:
    """The shards of a table in order.  Raises UserError where there are none, or not all."""
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


def read_utterances(
    folder: Path, audio=False, phones=False, where: dict | None = None, shards: list | None = None
) -> Iterator[Utterance]:
    """Stream the utterances of a table in order.

    audio, phones: also read what `Utterance.read` needs, and the phones of speech made here.
    where: column → value or collection of values to keep.
    shards: some of `table_shards(folder)`; default all.
    """
    unwanted = ["audio"] * (not audio) + ["phones"] * (not phones)
    for shard in table_shards(folder) if shards is None else shards:
        for row in _stream(shard, (RECORDED_SCHEMA, SPOKEN_SCHEMA), unwanted, where):
            yield Utterance(**row | {"phones": [Phone(**p) for p in row.get("phones", ())]})


def hear(folder: Path, where: dict[str, object], phones=False) -> Iterator[Utterance]:
    """Those that `where` names, with their sound, but for unreadable ones (which units count)."""
    for utterance in read_utterances(folder, audio=True, phones=phones, where=where):
        with contextlib.suppress(BadAudio):
            yield replace(utterance, wave=utterance.read(), audio=b"")


def _write(path: Path, rows: Iterable[dict], schema: pyarrow.Schema, codec="zstd") -> None:
    """Rows in groups of `ROW_GROUP`, atomically; `rows` may be a stream of any length."""
    rows, writer = iter(rows), pyarrow.parquet.ParquetWriter
    with atomic_path(path) as file, writer(file, schema, compression=codec) as table:
        while group := list(islice(rows, ROW_GROUP)):
            table.write_table(pyarrow.Table.from_pylist(group, schema))


def _stream(path: Path, schemas: Sequence, unwanted: Sequence = (), where=None) -> Iterator[dict]:
    """The rows of a file that has one of the schemas, with the `root` of recordings."""
    filters = [(c, "in", [v] if isinstance(v, str) else list(v)) for c, v in (where or {}).items()]
    wanted = pyarrow.parquet.filters_to_expression(filters) if filters else None
    cure = "delete it and run its step, or `speechgpt corpora prepare`, again"
    whole = reading(path, cure, "is damaged or half-written")
    with whole, pyarrow.parquet.ParquetFile(path) as file:
        names, facts = file.schema_arrow.names, file.schema_arrow.metadata or {}
        if names not in [schema.names for schema in schemas]:
            what = f"the columns {', '.join(names)}; expected {', '.join(schemas[0].names)}"
            raise UserError(f"{path} has {what}: make it again")
        root = {"root": facts[b"root"].decode()} if b"root" in facts else {}
        columns = [name for name in names if name not in unwanted]
        for batch in file.iter_batches(batch_size=256, columns=columns):
            batch = batch if wanted is None else batch.filter(wanted)
            yield from (row | root for row in batch.to_pylist())
