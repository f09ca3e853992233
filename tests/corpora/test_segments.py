"""A segment's sound comes out at 16 kHz mono, exactly its own stretch; what is wrong with a file is
said in one word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechgpt_lib.corpora.audio import BadAudio, inspect
from speechgpt_lib.corpora.tables import Utterance, check_segment, read_segment
from tests.corpora.layouts import recorded
from tests.corpora.sounds import SUBTYPES, cut, tone, write_sound

FORMATS = sorted(SUBTYPES)


def segment(path: str, start: float = 0.0, end: float | None = None) -> Utterance:
    return recorded("u1", path, "some words", "speaker", "train", start=start, end=end)


def reason(root: Path, row: Utterance, **limits) -> str:
    """Why the segment is refused; reading it and checking it whole must agree."""
    with pytest.raises(BadAudio) as read:
        read_segment(root, row, **limits)
    with pytest.raises(BadAudio) as checked:
        check_segment(root, row, **limits, decoded=True)
    assert read.value.reason == checked.value.reason
    assert "\n" not in str(read.value) and row.path in str(read.value)
    return read.value.reason


def cheaply(root: Path, row: Utterance) -> str | None:
    """Why the header and the tail alone refuse it."""
    try:
        check_segment(root, row)
    except BadAudio as error:
        return error.reason
    return None


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_whole_file_is_read_at_16_khz(tmp_path, suffix):
    rate = 16_000 if suffix in (".flac", ".wav") else 48_000
    write_sound(tmp_path / f"a{suffix}", tone(1.5, rate), rate)
    wave = read_segment(tmp_path, segment(f"a{suffix}"))
    assert wave.dtype == np.float32 and wave.shape == (24_000,)
    assert np.abs(wave - tone(1.5))[400:-400].max() < (
        1e-4 if rate == 16_000 else 0.05
    )  # mp3 and Opus lose a little
    checked = check_segment(tmp_path, segment(f"a{suffix}"))
    assert (checked.start, checked.end, checked.seconds, checked.sample_rate) == (0, 1.5, 1.5, rate)


def test_the_rate_is_what_the_decoder_gives_not_what_the_corpus_promises(tmp_path):
    write_sound(tmp_path / "a.opus", tone(1.0, 48_000), 48_000)
    assert (
        segment("a.opus").sample_rate == 16_000
        and check_segment(tmp_path, segment("a.opus")).sample_rate == 48_000
    )
    assert len(read_segment(tmp_path, segment("a.opus", 0.25, 0.75))) == 8_000


@pytest.mark.parametrize("suffix", FORMATS)
@settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(start=st.integers(0, 5800), length=st.integers(30, 6000))
def test_a_segment_is_the_same_stretch_of_the_whole_file(tmp_path, suffix, start, length):
    path = tmp_path / f"a{suffix}"
    if not path.exists():
        write_sound(path, tone(6.0, 48_000), 48_000)
    stop = min(start + length, 6000)
    whole = soundfile.read(path, dtype="float32")[0]
    expected = soxr.resample(whole[start * 48 : stop * 48], 48_000, 16_000)
    found = read_segment(tmp_path, segment(path.name, start / 1000, stop / 1000))
    # FFmpeg reads MP3, whose decoders round differently.
    assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-5


def test_only_the_segment_is_decoded(tmp_path, monkeypatch):
    write_sound(tmp_path / "long.flac", tone(20.0))
    inspect(tmp_path / "long.flac")
    frames = []
    genuine = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, n, **more: frames.append(n) or genuine(self, n, **more),
    )
    read_segment(tmp_path, segment("long.flac", 15.0, 15.5))
    assert sum(frames) == 8000


def test_channels_are_averaged_not_concatenated(tmp_path):
    left, right = tone(1.0), tone(1.0, pitch=500.0)
    write_sound(tmp_path / "a.flac", np.stack([left, right], axis=1))
    assert np.abs(read_segment(tmp_path, segment("a.flac")) - (left + right) / 2).max() < 1e-4


def test_missing_and_empty_files_and_pages_saved_as_sound(tmp_path):
    (tmp_path / "empty.flac").touch()
    (tmp_path / "page.mp3").write_text("<html>404 not found</html>" * 50)
    (tmp_path / "folder.flac").mkdir()
    expected = {
        "none.flac": "missing",
        "folder.flac": "missing",
        "empty.flac": "empty",
        "page.mp3": "not_audio",
    }
    for name, word in expected.items():
        assert reason(tmp_path, segment(name)) == cheaply(tmp_path, segment(name)) == word


@pytest.mark.parametrize("share", [0.98, 0.6, 0.3, 0.02])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_is_cut_off_is_noticed_without_decoding_it(tmp_path, suffix, share):
    cut(write_sound(tmp_path / f"a{suffix}", tone(3.0)), share)
    assert (
        reason(tmp_path, segment(f"a{suffix}"))
        == cheaply(tmp_path, segment(f"a{suffix}"))
        == "truncated"
    )


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_a_cut_file_still_holds_can_be_used(tmp_path, suffix):
    path = write_sound(tmp_path / f"a{suffix}", tone(6.0))
    before = read_segment(tmp_path, segment(path.name, 0.5, 1.5))
    cut(path, 0.7)
    assert np.abs(read_segment(tmp_path, segment(path.name, 0.5, 1.5)) - before).max() < 1e-6
    assert check_segment(tmp_path, segment(path.name, 0.5, 1.5)).end == 1.5
    assert (
        reason(tmp_path, segment(path.name, 4.5, 5.5))
        == cheaply(tmp_path, segment(path.name, 4.5, 5.5))
        == "truncated"
    )


def test_damage_inside_shows_only_in_decoding(tmp_path):
    path = write_sound(tmp_path / "a.flac", tone(3.0))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = b"\xaa" * 200
    path.write_bytes(data)
    assert cheaply(tmp_path, segment("a.flac")) is None
    assert reason(tmp_path, segment("a.flac")) == "truncated"


def test_a_segment_beyond_the_end_is_truncated_but_rounding_is_forgiven(tmp_path):
    write_sound(tmp_path / "a.flac", tone(2.0))
    for start, end in ((1.0, 2.5), (2.5, 3.0), (-1.0, 1.0)):
        assert (
            reason(tmp_path, segment("a.flac", start, end))
            == cheaply(tmp_path, segment("a.flac", start, end))
            == "truncated"
        )
    assert len(read_segment(tmp_path, segment("a.flac", 1.0, 2.02))) == 16_000


def test_silence_nan_and_lengths(tmp_path):
    write_sound(tmp_path / "silent.flac", np.zeros(16_000, np.float32))
    write_sound(tmp_path / "quiet.flac", 0.01 * tone())
    soundfile.write(
        tmp_path / "nan.wav",
        np.where(np.arange(16_000) == 9, np.nan, tone()),
        16_000,
        subtype="FLOAT",
    )
    write_sound(tmp_path / "short.flac", tone(399 / 16_000))
    write_sound(tmp_path / "enough.flac", tone(400 / 16_000))
    assert reason(tmp_path, segment("silent.flac")) == "silent"
    assert reason(tmp_path, segment("nan.wav")) == "not_finite"
    assert (
        reason(tmp_path, segment("short.flac"))
        == cheaply(tmp_path, segment("short.flac"))
        == "too_short"
    )
    assert reason(tmp_path, segment("quiet.flac", 0.5, 0.5)) == "too_short"
    assert reason(tmp_path, segment("quiet.flac"), maximum_s=0.9) == "too_long"
    assert [
        len(read_segment(tmp_path, segment(name))) for name in ("quiet.flac", "enough.flac")
    ] == [16_000, 400]
    assert (
        cheaply(tmp_path, segment("silent.flac")) is cheaply(tmp_path, segment("nan.wav")) is None
    )


def test_a_flac_stream_that_does_not_say_its_length_is_decoded_to_its_end(tmp_path):
    data = bytearray(write_sound(tmp_path / "a.flac", tone(2.0)).read_bytes())
    data[21] &= 0xF0  # the 36 bits of STREAMINFO that hold the number of samples
    data[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(data)
    assert check_segment(tmp_path, segment("a.flac")).seconds == 2.0
    found = read_segment(tmp_path, segment("a.flac", 0.5, 1.5))
    assert np.abs(found - tone(2.0)[8000:24_000]).max() < 1e-4
    cut(tmp_path / "a.flac")
    assert (
        reason(tmp_path, segment("a.flac")) == cheaply(tmp_path, segment("a.flac")) == "truncated"
    )


def test_a_file_that_changes_is_looked_at_again(tmp_path):
    write_sound(tmp_path / "a.flac", tone(2.0))
    assert check_segment(tmp_path, segment("a.flac")).end == 2.0
    write_sound(tmp_path / "a.flac", tone(3.0))
    assert check_segment(tmp_path, segment("a.flac")).end == 3.0


def test_an_mp3_that_does_not_count_its_frames_is_decoded_to_its_end(tmp_path, reference):
    """Common Voice's mp3 has no Xing frame: a guess from the bit rate is here 4 ms too long."""
    name = "common_voice_en_651325.mp3"
    (tmp_path / name).symlink_to(reference / "speech/CommonVoice/real_clip" / name)
    counted = check_segment(tmp_path, segment(name))
    assert counted == check_segment(tmp_path, segment(name), decoded=True)
    assert counted.end == 114_048 / 48_000
    assert len(read_segment(tmp_path, segment(name))) == 38_016
