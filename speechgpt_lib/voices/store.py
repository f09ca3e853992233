"""The voices of a run: RUN/voices/NAME/ holds all that there is of one person.

consent.json   what was agreed to, and when
items.jsonl    a line for each recording: path, text, what was heard, level, noise
0000.wav …     the recordings, at 16 kHz
model/         what `adapt` made: the encoder, the stage-2 model, facts.json with all figures
vocoder/       what `adapt --speak` made

Nothing of a voice is written anywhere else by the library; `removal.py` takes it all away.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from speechgpt_lib.corpora.audio import read_audio, write_audio
from speechgpt_lib.corpora.tables import inside
from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.runs.artefacts import read_json, read_text, write_json, write_text
from speechgpt_lib.runs.run import Run

FOLDER = "voices"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
CONSENT = (
    "I am the person who speaks in these recordings, or I have that person's permission. They are "
    "kept only in the folder of this voice in the run directory, with the models adapted to it, "
    "and are sent nowhere. They are used to adapt this run to the voice, and for nothing else. "
    "`speechgpt voice remove NAME` deletes all of it."
)


@dataclass(frozen=True)
class Recording:
    """A sentence as it was read: wave (samples,) at 16 kHz."""

    text: str
    wave: np.ndarray
    path: str = ""


@dataclass(frozen=True)
class Voice:
    """The folder of a voice in a run; it need not be there yet."""

    run: Run
    name: str

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            allowed = "letters, digits, - and _, at most 40, as in `anna-2`"
            raise UserError(f"{self.name[:80]!r} is no name for a voice: expected {allowed}")

    @property
    def path(self) -> Path:
        """RUN/voices/NAME."""
        return self.run.path / FOLDER / self.name

    @property
    def model(self) -> Path:
        """What `adapt` made."""
        return self.path / "model"

    @property
    def vocoder(self) -> Path:
        """What `adapt --speak` made."""
        return self.path / "vocoder"

    @property
    def speaks(self) -> bool:
        """Whether the run answers in this voice."""
        return (self.vocoder / "vocoder.json").is_file()

    def require(self) -> Voice:
        """This voice, or a UserError with those that there are."""
        if not self.path.is_dir():
            known = ", ".join(names(self.run)) or "none"
            how = f"record it: `speechgpt voice record {self.name}` (or notebook 11)"
            where = f"{self.run.path / FOLDER} (there: {known})"
            raise UserError(f"no voice {self.name!r} in {where}: never recorded, or removed; {how}")
        return self

    # --- consent ---------------------------------------------------------------------------------
    def agree(self, accepted: bool) -> None:
        """Keep the consent, which comes before any recording.  UserError where it isn't given."""
        if self.has_consent():
            return
        if not accepted:
            how = "accept it (--consent; in the notebook: `consent = True`)"
            raise UserError(f"nothing is recorded without consent: {how}. The text: {CONSENT}")
        when = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self.path / "consent.json", {"text": CONSENT, "accepted": True, "when": when})

    def has_consent(self) -> bool:
        """Whether the consent was given."""
        path = self.path / "consent.json"
        return path.is_file() and read_json(path).get("accepted") is True

    # --- recordings ------------------------------------------------------------------------------
    def records(self) -> list[dict]:
        """What is known of each recording, in order; [] where there is none."""
        path = self.path / "items.jsonl"
        if not path.is_file():
            return []
        with reading(path, "record the voice again"):
            return [json.loads(line) for line in read_text(path).splitlines() if line.strip()]

    def keep(self, text: str, wave: np.ndarray, facts: dict) -> dict:
        """Add a recording; one of the same text takes the place of the old one."""
        if not self.has_consent():
            self.agree(False)
        records = self.records()
        old = next((r for r in records if r["text"] == text), None)
        used = {r["path"] for r in records}
        free = (f"{k:04d}.wav" for k in range(len(records) + 1))
        path = old["path"] if old else next(name for name in free if name not in used)
        write_audio(self.path / path, wave)
        record = {"path": path, "text": text, "voice": self.name, **facts}
        records = [record if r is old else r for r in records] + [record] * (old is None)
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        write_text(self.path / "items.jsonl", lines)
        return record

    def recordings(self) -> list[Recording]:
        """All recordings with their sound.  UserError where there are too few to adapt to."""
        records = self.require().records()
        if len(records) < 2:
            few = f"voice {self.name!r} has {len(records)} recordings, at least 2 are needed"
            raise UserError(f"{few} (20 to 100 are better): `speechgpt voice record {self.name}`")
        with reading(self.path / "items.jsonl", "record the voice again"):
            return [
                Recording(r["text"], read_audio(inside(self.path, r["path"])), r["path"])
                for r in records
            ]


def names(run: Run) -> list[str]:
    """The voices of a run."""
    folders = sorted(p for p in (run.path / FOLDER).glob("*") if p.is_dir())
    return [p.name for p in folders if NAME.fullmatch(p.name)]


@dataclass(frozen=True)
class Overview:
    """A voice in a list."""

    name: str
    recordings: int
    state: str


def overview(run: Run) -> list[Overview]:
    """The voices of a run, and how far each has come."""
    found = []
    for voice in (Voice(run, name) for name in names(run)):
        adapted = "adapted" if (voice.model / "facts.json").is_file() else "recorded"
        state = adapted + ", speaks" * voice.speaks
        found.append(Overview(voice.name, len(voice.records()), state))
    return found
