"""Takes a voice out of a run directory: its folder, and every trace in any other file.

A trace is a recording's bytes or hash, or a place where the voice is named as one.  Files that hold
one can all be made again (executed notebooks, their media, reports); of a log only the lines with a
trace go.
"""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import hash_file, write_text
from speechgpt_lib.runs.names import NOTEBOOKS
from speechgpt_lib.runs.run import Run
from speechgpt_lib.voices.store import FOLDER, Voice

NOTEBOOK = next(name for name in NOTEBOOKS if name.endswith("your_own_voice"))
LOGS = (".log",)
IN_NAME = re.compile(rb"[A-Za-z0-9_-]")
SHORT = 5  # letters: a longer name is a trace wherever it stands
PIECE = 300  # bytes of a recording by which it is known, taken at three places; a multiple of 3


def remove(voice: Voice) -> list[Path]:
    """Remove a voice; returns the files that were taken away or shortened, besides its folder.

    Raises UserError for a voice that is not there, or a file that can't be changed.
    """
    run = voice.require().run
    holds, changed = finder(traces(voice), voice.name), _shown(run)
    for path in list(changed):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in files_with(run, holds):
        changed.append(path)
        if path.suffix in LOGS:
            lines = path.read_text("utf-8", "replace").splitlines(keepends=True)
            write_text(path, "".join(line for line in lines if not holds(line.encode())))
        else:
            path.unlink()
    if left := files_with(run, holds):
        raise UserError(f"{left[0]} still holds something of the voice: delete it by hand")
    shutil.rmtree(voice.path)  # last: what was interrupted begins again
    for leftover in (run.path / FOLDER).glob(f"*{voice.name}*"):
        own = re.escape(voice.name)
        if re.fullmatch(rf"{own}\.lock|\.{own}\..*", leftover.name):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    if not any((run.path / FOLDER).iterdir()):
        (run.path / FOLDER).rmdir()
    return changed


def check_name(voice: Voice) -> None:
    """Raises UserError for the name of a new voice that already stands in the run's files: to take
    such a voice away would take them, too."""
    if voice.path.exists():
        return
    shown = _shown(voice.run)
    found = files_with(voice.run, finder(traces(voice), voice.name))
    if known := [p for p in found if not any(p.is_relative_to(one) for one in shown)]:
        where = known[0].relative_to(voice.run.path)
        why = "so it could not be removed without a trace"
        raise UserError(f"{voice.name!r} already stands in {where}, {why}: choose another name")


def _shown(run: Run) -> list[Path]:
    """The executed notebook of voices, its pictures and sounds, which show the last voice."""
    notebooks = run.path / "notebooks"
    return sorted([*notebooks.glob(f"**/{NOTEBOOK}*"), *notebooks.glob(f"media/{NOTEBOOK[:2]}*")])


def traces(voice: Voice) -> list[bytes]:
    """Byte strings that occur only where something of a voice is."""
    name, found = voice.name, []
    found += [f"{FOLDER}/{name}".encode(), f'"voice": "{name}"'.encode()]
    found += [f"--voice {name}".encode(), f"voice '{name}'".encode()]
    if len(name) > SHORT:
        found.append(name.encode())
    for path in sorted(voice.path.rglob("*.wav")):
        data = path.read_bytes()
        found.append(hash_file(path).encode())
        for part in (1, 2, 3):
            start = len(data) * part // 4 // PIECE * PIECE
            if len(set(piece := data[start : start + PIECE])) > 16:  # not silence
                # In a notebook's output sound stands as base64, at any of three offsets.
                found += [piece, *(base64.b64encode(piece[k:])[:200] for k in range(3))]
    return found


def files_with(run: Run, holds: Callable[[bytes], bool]) -> list[Path]:
    """The files of a run directory, but for its voices', whose name or content holds a trace."""
    found, longest, voices = [], 1 << 10, run.path / FOLDER
    for path in sorted(p for p in run.path.rglob("*") if p.is_file() and not p.is_symlink()):
        if path.is_relative_to(voices):
            continue
        before = path.relative_to(run.path).as_posix().encode() + b"\n"
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                if holds(before + block):
                    found.append(path)
                    break
                before = block[-longest:]
    return found


def finder(marks: list[bytes], name: str = "") -> Callable[[bytes], bool]:
    """A function that says whether a block of bytes holds one of `marks`, each of 4 bytes or more.

    A mark that ends in the voice's name must not go on as a longer name: anna is not anna-2.

    Hundreds of them are looked for at once: where neither the first nor the second pair of bytes
    begins a mark, none stands, and that is nearly everywhere.
    """
    named = {mark for mark in marks if name and mark.endswith(name.encode())}
    starts: dict[bytes, list[bytes]] = {}
    for mark in marks:
        starts.setdefault(mark[:4], []).append(mark)
    begins = np.zeros((2, 1 << 16), bool)  # the first two bytes of a mark, the next two
    for start in starts:
        begins[0][int.from_bytes(start[:2])] = begins[1][int.from_bytes(start[2:])] = True

    def holds(block: bytes) -> bool:
        given = np.frombuffer(block, np.uint8).astype(np.uint16)
        pairs = (given[:-1] << 8) | given[1:]
        places = np.flatnonzero(begins[0][pairs[:-2]] & begins[1][pairs[2:]])
        return any(
            block.startswith(mark, place)
            and not (mark in named and IN_NAME.match(block, place + len(mark)))
            for place in places.tolist()
            for mark in starts.get(block[place : place + 4], ())
        )

    return holds
