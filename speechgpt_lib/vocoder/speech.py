"""Speech to train a vocoder on: frames of units and the wave they come from, a piece of one utterance at a time."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from speechgpt_lib.corpora.segments import read_part
from speechgpt_lib.corpora.tables import Utterance
from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import HOP
from speechgpt_lib.units.sequence import check_range

Pair = tuple[np.ndarray, np.ndarray]


class Speech(Protocol):
    """`lengths`: frames of each utterance.  `speakers`: the number of each one's speaker in `names`, which is empty for a single voice."""

    lengths: np.ndarray
    speakers: np.ndarray
    names: tuple[str, ...]

    def piece(self, index: int, start: int, count: int) -> Pair:
        """`count` frames from frame `start` on of one utterance: (units (count,) int64, wave (count · 320,) float32)."""


class SpeechInMemory:
    """Utterances that fit in memory: units (frames,), one id a frame, not merged; and waves at 16 kHz, at least frames · 320 samples.

    speakers: the name of each one's speaker, where there are several; the first speaker is that of the first utterance.
    Raises UserError for ids outside 0 … unit_count − 1 and for waves that end before their units do.
    """

    def __init__(self, pairs: list[Pair], unit_count: int, speakers: list[str] | None = None):
        for index, (units, wave) in enumerate(pairs):
            check_range(units, unit_count)
            if len(wave) < len(units) * HOP:
                raise UserError(
                    f"utterance {index} has {len(units)} frames but {len(wave)} samples, fewer than {len(units) * HOP}: "
                    "units must be one a frame of 20 ms, of this very wave at 16 kHz"
                )
        self.pairs, self.lengths = (
            pairs,
            np.array([len(units) for units, _ in pairs], dtype=np.int64),
        )
        self.names = tuple(dict.fromkeys(speakers or ()))
        self.speakers = np.array(
            [self.names.index(name) for name in speakers] if speakers else [0] * len(pairs),
            dtype=np.int64,
        )

    def piece(self, index: int, start: int, count: int) -> Pair:
        units, wave = self.pairs[index]
        return units[start : start + count].astype(np.int64), wave[
            start * HOP : (start + count) * HOP
        ]


class SpeechOnDisk:
    """Recorded utterances, whose sound is read piece by piece; `rows` are (utterance, its units (frames,)).

    Units are held in memory (two bytes a frame: 0.4 MB an hour), so a day of speech needs no more memory than an hour.
    """

    def __init__(self, rows: list[tuple[Utterance, np.ndarray]], many_speakers: bool):
        self.utterances = [utterance for utterance, _ in rows]
        self.lengths = np.array([len(frames) for _, frames in rows], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.units = np.concatenate([frames.astype(np.uint16) for _, frames in rows])
        voices = [utterance.voice for utterance in self.utterances]
        self.names = tuple(dict.fromkeys(voices)) if many_speakers else ()
        number = {name: k for k, name in enumerate(self.names)}
        self.speakers = np.array([number.get(voice, 0) for voice in voices], dtype=np.int64)

    def piece(self, index: int, start: int, count: int) -> Pair:
        """As in `Speech`."""
        u, first = self.utterances[index], self.starts[index] + start
        units = self.units[first : min(first + count, self.starts[index + 1])].astype(np.int64)
        return units, read_part(u.root, u.segment, start * HOP, count * HOP)
