"""What libsndfile can't read, or would guess: formats, lengths and reasons; in every door alike."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechgpt_lib.corpora.audio import BadAudio, inspect, read_audio
from tests.corpora.sounds import cut, encode, tone
from tests.corpora.test_segments import cheaply, reason, segment

OTHERS = {  # what browsers, phones and recorders write
    "a.webm": ("libopus", 48_000, None, {}),
    "live.webm": ("libopus", 48_000, None, {"live": "1"}),  # as MediaRecorder does: no length
    "a.m4a": ("aac", 44_100, "ipod", {}),
    "fast.m4a": ("aac", 44_100, "mp4", {"movflags": "+faststart"}),
    "fragments.mp4": ("aac", 48_000, None, {"movflags": "frag_keyframe+empty_moov"}),
    "alac.m4a": ("alac", 16_000, "ipod", {}),
    "a.aac": ("aac", 44_100, "adts", {}),
    "a.mkv": ("flac", 16_000, None, {}),
    "flac.ogg": ("flac", 16_000, "ogg", {}),
    "g722.wav": ("g722", 16_000, None, {}),
    "a.ac3": ("ac3", 48_000, None, {}),
    "plain.mp3": ("libmp3lame", 44_100, None, {"write_xing": "0", "id3v2_version": "0"}),
    "counted.mp3": ("libmp3lame", 44_100, None, {}),
}


def like(path: Path, seconds: float = 2.0) -> bool:
    """Whether a file holds the sweep, but for what codecs pad and lose."""
    wave, expected = read_audio(path), tone(2.0)[:28_000]
    shifts = [wave[k : k + 28_000] for k in range(len(wave) - 28_000)]
    best = max(float(np.corrcoef(expected, shifted)[0, 1]) for shifted in shifts[::4])
    return best > 0.95 and seconds <= len(wave) / 16_000 < seconds + 0.1


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_read_whole_and_refused_where_they_are_cut(tmp_path, name) -> None:
    codec, rate, form, options = OTHERS[name]
    path = encode(tmp_path / name, codec, rate, form, **options)
    assert inspect(path).by_ffmpeg and like(path)
    assert read_audio(path, 0.5, 1.0)[800:-800] == pytest.approx(
        read_audio(path)[8800:15_200], abs=1e-3
    )
    cut(path, 0.6)
    assert reason(tmp_path, segment(name)) == cheaply(tmp_path, segment(name)) == "truncated"
    with pytest.raises(BadAudio, match=f"{name}: truncated"):
        read_audio(path)


@pytest.mark.parametrize("subtype", ["GSM610", "IMA_ADPCM", "MS_ADPCM", "ULAW", "ALAW"])
def test_a_wav_of_any_codec_is_read_in_stretches_too(tmp_path, subtype) -> None:
    path = tmp_path / "phone.wav"
    soundfile.write(path, tone(2.0, 8000), 8000, subtype=subtype)
    assert like(path)
    assert read_audio(path, 1.0, 1.5) == pytest.approx(tone(2.0)[16_000:24_000], abs=0.1)


def placeholder(path: Path, riff: int, data: int) -> Path:
    """A wav of 2 s whose header has these sizes."""
    soundfile.write(path, tone(2.0), 16_000)
    content = bytearray(path.read_bytes())
    content[4:8], content[40:44] = struct.pack("<I", riff), struct.pack("<I", data)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("riff", "data"),
    [
        (0, 0),
        (36, 0),
        (0x7FFFF024, 0x7FFFF000),  # SoX, eSpeak
        (0x7FFFFFFF, 0x7FFFFFDB),
        (0x80000024, 0x80000000),  # arecord
        (0xFFFFFFFF, 0xFFFFFFFF),  # FFmpeg
        (0xFFFFFFFF, 0xFFFFFFDB),
    ],
)
def test_a_wav_from_a_pipe_is_whole(tmp_path, riff, data) -> None:
    wave = read_audio(placeholder(tmp_path / "pipe.wav", riff, data))
    assert wave == pytest.approx(tone(2.0), abs=1e-4)


@pytest.mark.parametrize(("data", "words"), [(128_000, "claims 128000"), (32_000, "bytes follow")])
def test_a_wav_that_claims_another_length_is_no_whole_one(tmp_path, data, words) -> None:
    with pytest.raises(BadAudio, match=f"truncated.*{words}"):
        read_audio(placeholder(tmp_path / "wrong.wav", data + 36, data))


@pytest.mark.slow
def test_what_counts_only_its_first_part_is_read_to_its_end(tmp_path) -> None:
    path = encode(tmp_path / "a.mp3", "libmp3lame", 44_100)
    path.write_bytes(2 * path.read_bytes())
    assert len(read_audio(path)) == pytest.approx(4 * 16_000, abs=3000)
    plain = encode(tmp_path / "b.mp3", "libmp3lame", 44_100, write_xing="0")
    for behind in (b"TAG" + bytes(125), b"LYRICSBEGIN" + b"abc" * 30, bytes(1000)):
        (tmp_path / "c.mp3").write_bytes(plain.read_bytes() + behind)
        assert like(tmp_path / "c.mp3")
    chain = encode(tmp_path / "a.opus", "libopus", 48_000, "ogg")
    chain.write_bytes(2 * chain.read_bytes())
    assert like(chain, 4.0)


@pytest.mark.parametrize(
    ("content", "reason", "words"),
    [
        (b"#EXTM3U\n/etc/passwd\n", "not_audio", "expected wav.*webm"),
        (b"<html>404</html>" * 99, "not_audio", "begins with b'<htm'"),
        (b"RIFF\0\0\1\0WEBPVP8 " + bytes(99), "not_audio", "begins with b'RIFF'"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81\1", "truncated", "too little"),
    ],
)
def test_reasons_are_right(tmp_path, content, reason, words) -> None:
    path = tmp_path / "x.m4a"
    path.write_bytes(content)
    with pytest.raises(BadAudio, match=words) as error:
        read_audio(path)
    assert error.value.reason == reason


def test_a_codec_that_nobody_knows_is_not_called_truncated(tmp_path) -> None:
    path = placeholder(tmp_path / "x.wav", 64_036, 64_000)
    content = bytearray(path.read_bytes())
    content[20:22] = b"\x34\x12"
    path.write_bytes(content)
    assert reason(tmp_path, segment("x.wav")) == cheaply(tmp_path, segment("x.wav"))
    with pytest.raises(BadAudio, match="unsupported"):
        read_audio(path)


def test_what_changes_its_rate_says_so(tmp_path) -> None:
    first = encode(tmp_path / "a.mp3", "libmp3lame", 44_100)
    second = encode(tmp_path / "b.mp3", "libmp3lame", 16_000)
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(BadAudio, match="unsupported.*its rate.*changes"):
        read_audio(first)


@pytest.mark.parametrize("name", ["caf\udce9.wav", "caf\udce9.mp3", "audio:1.flac", "-x.ogg"])
def test_odd_names_are_read(tmp_path, name) -> None:
    plain = tmp_path / f"plain{Path(name).suffix}"
    soundfile.write(plain, tone(2.0), 16_000)
    assert like(plain.rename(tmp_path / name))


FAULTS = {
    "good.wav": 2.80,
    "gsm_phone.wav": 2.80,
    "flac_from_pipe.flac": 2.80,
    "sox_pipe.wav": 2.55,
    "vbr_no_xing_short.mp3": 2.83,
    "vbr_no_xing_long.mp3": 7.20,
    "antiphase_stereo.wav": 2.80,
}


@pytest.mark.parametrize("name", FAULTS)
def test_files_found_in_use_are_read(reference: Path, name) -> None:
    path = reference / "faults" / "audio" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    assert len(read_audio(path)) / 16_000 == pytest.approx(FAULTS[name], abs=0.01)


@pytest.mark.parametrize("name", ["cut.opus", "cut_cbr.mp3"])
def test_cut_files_found_in_use_are_refused(reference: Path, name) -> None:
    path = reference / "faults" / "audio" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    with pytest.raises(BadAudio, match="truncated"):
        read_audio(path)
