"""Sound in and out: what is mixed, resampled and refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechgpt_lib.corpora.audio import (
    BadAudio,
    nothing_heard,
    read_audio,
    samples_of,
    to_16_bits,
    to_16_khz,
    write_audio,
)
from speechgpt_lib.errors import UserError


def tone(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def test_stereo_is_averaged_never_concatenated(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "s.wav", np.stack([tone(200, 16_000), tone(300, 16_000)], 1), 16_000)
    wave = read_audio(tmp_path / "s.wav")
    assert wave.shape == (16_000,) and wave.dtype == np.float32
    assert wave == pytest.approx((tone(200, 16_000) + tone(300, 16_000)) / 2, abs=1e-3)


@pytest.mark.parametrize("gains", [(1, -1), (0.3, -0.32), (-0.5, 0.4, 0.0), [0.5] + 15 * [0.0]])
def test_where_channels_cancel_the_loudest_is_taken(tmp_path: Path, gains: tuple) -> None:
    path, spoken = tmp_path / "opposite.wav", tone(200, 16_000)
    soundfile.write(path, np.stack([gain * spoken for gain in gains], 1), 16_000)
    loudest = gains[int(np.argmax(np.abs(gains)))]
    assert read_audio(path) == pytest.approx(loudest * spoken, abs=1e-3)
    assert read_audio(path, 0.25, 0.5) == pytest.approx(loudest * spoken[4000:8000], abs=1e-3)


@pytest.mark.parametrize(
    ("wave", "why"),
    [
        (np.zeros(16_000), "silent"),
        (np.full(16_000, 0.2), "silent"),
        (np.random.default_rng(0).integers(-1, 2, 16_000) / 32768, ""),
        (1.8e-4 * tone(200, 16_000), "too quiet"),
        (np.zeros(0), "silent"),
        (0.002 * tone(200, 16_000), None),
    ],
)
def test_nothing_heard_has_its_reason(wave: np.ndarray, why: str | None) -> None:
    for rate in (16_000, 44_100):  # to resample a constant bends its ends
        found = nothing_heard(to_16_khz(wave.astype(np.float32), rate))
        assert found is None if why is None else found.startswith(why)


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_any_rate_becomes_16_khz_at_the_same_pitch(tmp_path: Path, rate: int, suffix: str) -> None:
    soundfile.write(tmp_path / f"t.{suffix}", tone(440, rate), rate)
    wave = read_audio(tmp_path / f"t.{suffix}")
    assert len(wave) == pytest.approx(16_000, abs=1)
    assert int(np.abs(np.fft.rfft(wave, 16_000)).argmax()) == 440
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)


@pytest.mark.parametrize("suffix", ["ogg", "mp3"])
def test_lossy_formats_are_read(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / f"t.{suffix}", tone(440, 44_100), 44_100)
    wave = read_audio(tmp_path / f"t.{suffix}")
    assert abs(len(wave) - 16_000) < 1600 and int(
        np.abs(np.fft.rfft(wave, 16_000)).argmax()
    ) == pytest.approx(440, abs=2)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("text.wav", b"hello", "not a readable sound file"),
        ("empty.wav", b"", "not a readable sound file"),
        ("noise.mp3", bytes(range(256)) * 40, "not a readable sound file"),
        ("absent.wav", None, "no audio file"),
    ],
)
def test_what_is_no_audio_is_refused(
    tmp_path: Path, name: str, content: bytes | None, expected: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected) as error:
        read_audio(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_folder_is_no_audio_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a file"):
        read_audio(tmp_path)


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_less_than_a_frame_is_refused(tmp_path: Path, samples: int) -> None:
    soundfile.write(tmp_path / "short.wav", np.zeros(samples), 16_000)
    with pytest.raises(UserError, match=f"short.wav: too_short .{samples} samples.*at least 400"):
        read_audio(tmp_path / "short.wav")


def test_a_whole_frame_is_enough(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "frame.wav", np.zeros(400), 16_000)
    assert len(read_audio(tmp_path / "frame.wav")) == 400


def test_too_long_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.zeros(16_000 * 61), 16_000)
    with pytest.raises(UserError, match="too_long .61 s long, the limit is 60 s"):
        read_audio(tmp_path / "long.wav")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, bad: float) -> None:
    wave = np.zeros(16_000, np.float32)
    wave[7] = bad
    soundfile.write(tmp_path / "bad.wav", wave, 16_000, subtype="FLOAT")
    with pytest.raises(UserError, match="bad.wav: not_finite .1 of 16000 samples"):
        read_audio(tmp_path / "bad.wav")
    soundfile.write(tmp_path / "bad.wav", wave, 44_100, subtype="FLOAT")
    with pytest.raises(UserError, match="not_finite"):  # resampling spreads them
        read_audio(tmp_path / "bad.wav")


def test_what_is_written_is_read_back_and_clipped(tmp_path: Path) -> None:
    wave = np.tile(np.array([0.5, 2.0, -2.0, 0.0], np.float32), 200)
    for name in ("a.flac", "sub/a.wav"):
        assert read_audio(write_audio(tmp_path / name, wave)) == pytest.approx(
            np.clip(wave, -1, 1), abs=1e-4
        )
    with pytest.raises(UserError, match="wav or .flac"):
        write_audio(tmp_path / "a.ogg", wave)
    assert not (tmp_path / "a.ogg").exists()


@pytest.mark.slow
def test_real_speech_is_read(reference: Path) -> None:
    files = [*reference.glob("speech/LibriSpeech/*/*/*/*.flac")][:3] + [
        *reference.glob("speech/CommonVoice/**/*.mp3")
    ][:2]
    files += [*reference.glob("speech/GigaSpeech/audio/*/*/*.opus")]
    assert len(files) >= 4
    for path in files:
        wave = read_audio(path)
        assert wave.ndim == 1 and len(wave) > 8000 and np.abs(wave).max() > 0.01


def test_sixteen_bits_keep_what_files_of_sixteen_bits_hold() -> None:
    held = np.arange(-32768, 32768, dtype=np.int16)
    wave = samples_of(held)  # as soundfile reads it
    assert wave.dtype == np.float32 and wave.min() == -1.0
    np.testing.assert_array_equal(to_16_bits(wave), held)
    assert samples_of(wave) is wave
    assert list(to_16_bits(np.float32([2.0, -2.0]))) == [32767, -32768], "clipped, not wrapped"


def _patched_flac(path: Path, rate: int, channels: int, seconds: float) -> Path:
    """A FLAC of silence, small whatever its length, whose header claims another rate."""
    frames = round(seconds * 48_000)
    soundfile.write(path, np.zeros((frames, channels), np.int16), 48_000, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[18:21] = ((rate << 4) | (data[20] & 15)).to_bytes(3)  # 20 bits of STREAMINFO
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("rate", "channels", "seconds"), [(655_350, 8, 20), (500_000, 1, 20), (384_000, 8, 500)]
)
def test_a_small_file_does_not_take_much_memory(rate, channels, seconds, tmp_path: Path) -> None:
    path = _patched_flac(tmp_path / "x.flac", rate, channels, seconds)
    tracemalloc.start()
    with pytest.raises(UserError, match="x.flac"):
        read_audio(path)
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


def test_a_sparse_file_of_four_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, tone(200, 16_000), 16_000)
    size = 0xFFFF_FFF0
    data = bytearray(path.read_bytes()[:44])
    data[4:8], data[40:44] = (size - 8).to_bytes(4, "little"), (size - 44).to_bytes(4, "little")
    for rate in (16_000, 384_000, 0x7FFF_FFFF):
        data[24:28] = rate.to_bytes(4, "little")
        with open(path, "wb") as file:
            file.write(data)
            file.truncate(size)
        with pytest.raises(UserError, match="x.wav"):
            read_audio(path)


@pytest.mark.parametrize("kind", ["wav", "float.wav", "aiff"])
def test_files_that_cat_has_joined_are_not_read_as_their_first(kind: str, tmp_path: Path) -> None:
    path, subtype = tmp_path / f"x.{kind}", "FLOAT" if "float" in kind else "PCM_16"
    soundfile.write(path, tone(1, 16_000), 16_000, subtype=subtype)
    assert len(read_audio(path)) == 16_000
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(BadAudio, match="another file follows in it"):
        read_audio(path)
