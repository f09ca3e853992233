"""Speech that a vocoder learns from: pieces read from files are the pieces that memory holds."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from speechgpt_lib.corpora.tables import Utterance, read_part, read_segment
from speechgpt_lib.vocoder.speech import SpeechInMemory, SpeechOnDisk
from tests.builders import noise


def segment(path: str, start: float = 0.0, end: float | None = None) -> Utterance:
    name = path.partition(".")[0]
    place = {"path": path, "start": start, "end": end}
    return Utterance(name, "GOOD DAY", "", "speech", "a", "train", **place)


@pytest.mark.parametrize("rate", [16_000, 22_050, 48_000, 11_025])
@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_a_part_is_what_the_whole_has_there(tmp_path, rate, kind):
    time = np.arange(3 * rate) / rate
    sweep = 0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time)
    soundfile.write(tmp_path / f"x.{kind}", sweep, rate)
    for s in (segment(f"x.{kind}"), segment(f"x.{kind}", 0.5, 2.5)):
        whole = read_segment(tmp_path, s)
        for start, count in ((0, 3200), (6400, 8960), (len(whole) - 640, 640)):
            part = read_part(tmp_path, s, start, count)
            assert part.dtype == np.float32 and part.shape == (count,)
            difference = np.abs(part - whole[start : start + count])
            # The last few samples are resampled with what lies behind the segment's end.
            assert difference.max() < (1e-6 if rate == 16_000 else 2e-2)
            assert difference[: count - 320].max() < 2e-3
    behind = read_part(tmp_path, segment(f"x.{kind}"), 47_000, 2_000)[1_200:]
    assert behind.max() == 0, "behind the end is silence"


def utterance(root, path: str, voice: str, seconds: float) -> Utterance:
    name = path.partition(".")[0]
    place = {"path": path, "start": 0.0, "end": seconds, "root": str(root)}
    return Utterance(name, "good day", "", "speech", voice, "train", seconds, **place)


def test_pieces_from_disk_are_pieces_from_memory(tmp_path):
    rng = np.random.default_rng(0)
    rows, pairs = [], []
    for k, voice in enumerate("bab"):
        wave = (0.3 * noise(1 + 0.02 * k, k)).astype(np.float32)
        soundfile.write(tmp_path / f"u{k}.flac", wave, 16_000, subtype="PCM_16")
        frames = rng.integers(0, 9, 49 + k)
        rows.append((utterance(tmp_path, f"u{k}.flac", voice, len(wave) / 16_000), frames))
        pairs.append((frames, wave))
    disk, memory = SpeechOnDisk(rows, many_speakers=True), SpeechInMemory(pairs, 9, list("bab"))
    assert disk.lengths.tolist() == memory.lengths.tolist() == [49, 50, 51]
    # The first speaker is the one of the first utterance: it speaks by default.
    assert disk.names == memory.names == ("b", "a")
    assert disk.speakers.tolist() == memory.speakers.tolist() == [0, 1, 0]
    for index, start, count in ((0, 0, 8), (1, 40, 10), (2, 13, 32)):
        units, wave = disk.piece(index, start, count)
        expected, sound = memory.piece(index, start, count)
        assert units.dtype == np.int64 and np.array_equal(units, expected)
        assert np.abs(wave - sound).max() < 1e-4
    assert SpeechOnDisk(rows, many_speakers=False).names == ()
