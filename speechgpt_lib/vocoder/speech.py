"""Speech to train a vocoder on: frames of units and the wave they come from, piece by piece."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from speechgpt_lib.corpora.tables import Utterance, read_part
from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import HOP
from speechgpt_lib.units.sequence import check_range

Pair = tuple[np.ndarray, np.ndarray]


class Speech(Protocol):
    """Utterances: `lengths` in frames, and `speakers`, each one's number in `names`.

    `names` is empty for a single voice.
    """

    lengths: np.ndarray
    speakers: np.ndarray
    names: tuple[str, ...]

    def piece(self, index: int, start: int, count: int) -> Pair:
        """Frames from `start` on → units (count,) int64, wave (count · 320,) float32."""


class SpeechInMemory:
    """Utterances that fit in memory: units (frames,) not merged, and waves at 16 kHz.

    speakers: the name of each one's speaker, where there are several; the first speaker is that of
    the first utterance.  Raises UserError for ids outside 0 … unit_count − 1 and for waves that
    end before their units do, at 320 samples a frame.
    """

    def __init__(self, pairs: list[Pair], unit_count: int, speakers: list[str] | None = None):
        for index, (units, wave) in enumerate(pairs):
            check_range(units, unit_count)
            if len(wave) < (samples := len(units) * HOP):
                found = f"has {len(units)} frames but {len(wave)} samples, fewer than {samples}"
                raise UserError(f"utterance {index} {found}: give one unit each 20 ms, not merged")
        self.pairs = pairs
        self.lengths = np.array([len(units) for units, _ in pairs], dtype=np.int64)
        self.names = tuple(dict.fromkeys(speakers or ()))
        numbers = [self.names.index(name) for name in speakers or ()] or [0] * len(pairs)
        self.speakers = np.array(numbers, dtype=np.int64)

    def piece(self, index: int, start: int, count: int) -> Pair:
        """A piece of one utterance, as `Speech` says."""
        (units, wave), stop = self.pairs[index], start + count
        return units[start:stop].astype(np.int64), wave[start * HOP : stop * HOP]


class SpeechOnDisk:
    """Recorded utterances, whose sound is read piece by piece: (utterance, units (frames,)) each.

    Units stay in memory, at 0.4 MB an hour (two bytes a frame); sound does not.
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
        """A piece of one utterance, as `Speech` says."""
        u, first = self.utterances[index], self.starts[index] + start
        units = self.units[first : min(first + count, self.starts[index + 1])].astype(np.int64)
        return units, read_part(u.root, u, start * HOP, count * HOP)
