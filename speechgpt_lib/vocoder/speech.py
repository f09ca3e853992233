"""Speech to train a vocoder on: frames of units and the wave they come from, piece by piece."""

from __future__ import annotations

import numpy as np

from speechgpt_lib.corpora.audio import samples_of
from speechgpt_lib.corpora.tables import Utterance, read_part
from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import HOP, SAMPLE_RATE
from speechgpt_lib.units.sequence import check_range

Pair = tuple[np.ndarray, np.ndarray]


class Speech:
    """Utterances: `lengths` in frames, and `speakers`, each one's number in `names`.

    `names` is empty for a single voice; else the first speaker is that of the first utterance.  A
    frame lasts `hop` samples.
    """

    def __init__(self, units: list[np.ndarray], voices: list[str] | None, hop: int = HOP):
        self.hop = hop
        self.units, self.lengths = units, np.array([len(row) for row in units], dtype=np.int64)
        self.names = tuple(dict.fromkeys(voices or ()))
        number = {name: k for k, name in enumerate(self.names)}
        self.speakers = np.array([number[v] for v in voices or ()] or [0] * len(units), np.int64)

    def piece(self, index: int, start: int, count: int) -> Pair:
        """Frames from `start` on → units (count,) int64, wave (count · hop,) float32."""
        units = self.units[index][start : start + count].astype(np.int64)
        return units, self.sound(index, start * self.hop, count * self.hop)


class SpeechInMemory(Speech):
    """Utterances in memory: units (frames,) not merged, waves at 16 kHz as float32 or int16, names
    of speakers if any.

    Raises UserError for ids outside 0 … unit_count − 1, and for waves that end before their units.
    """

    def __init__(
        self, pairs: list[Pair], unit_count: int, speakers: list[str] | None = None, hop: int = HOP
    ):
        for index, (units, wave) in enumerate(pairs):
            check_range(units, unit_count)
            if len(wave) < (samples := len(units) * hop):
                found = f"has {len(units)} frames but {len(wave)} samples, fewer than {samples}"
                each = f"one unit each {1000 * hop / SAMPLE_RATE:g} ms, not merged"
                raise UserError(f"utterance {index} {found}: give {each}")
        super().__init__([units for units, _ in pairs], speakers, hop)
        self.waves = [wave for _, wave in pairs]

    def sound(self, index: int, start: int, count: int) -> np.ndarray:
        """Samples of one utterance."""
        return samples_of(self.waves[index][start : start + count])


class SpeechOnDisk(Speech):
    """Recorded utterances and their units (frames,), kept at 0.4 MB an hour; sound is not kept."""

    def __init__(self, rows: list[tuple[Utterance, np.ndarray]], many_speakers: bool, hop=HOP):
        self.places = [(utterance.root, utterance) for utterance, _ in rows]
        voices = [utterance.voice for utterance, _ in rows] if many_speakers else None
        super().__init__([frames.astype(np.uint16) for _, frames in rows], voices, hop)

    def sound(self, index: int, start: int, count: int) -> np.ndarray:
        """Samples of one utterance, read from its file."""
        return read_part(*self.places[index], start, count)
