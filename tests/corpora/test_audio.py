"""Sound in and out: what is mixed, resampled, refused and repeatable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechgpt_lib.corpora.audio import read_audio, write_audio
from speechgpt_lib.corpora.lab import build_corpus, plan_corpus, speak, speak_all
from speechgpt_lib.corpora.sample import sample_set
from speechgpt_lib.corpora.speech import synthesize
from speechgpt_lib.corpora.tables import read_utterances, write_shard
from speechgpt_lib.errors import UserError
from tests.builders import smoke_recipe


def test_speech_is_repeatable_and_its_phones_cover_it() -> None:
    row = {"id": "0", "text": "the big dog", "answer": "", "kind": "", "voice": "Male1", "rate": 175, "pitch": 1.0, "split": ""}
    assert all(np.array_equal(a.wave, b.wave) for a, b in zip(speak_all([row] * 2), speak_all([row] * 2), strict=True))
    first, phones = synthesize("the big dog", "Male1")
    assert first.dtype == np.float32 and np.abs(first).max() == pytest.approx(0.7, abs=1e-3)
    assert phones[0].start == 0 and phones[-1].end == pytest.approx(len(first) / 16_000, abs=0.01)
    assert all(a.end <= b.start + 1e-6 for a, b in zip(phones, phones[1:], strict=False))
    assert {"b", "ɡ", "d"} <= {p.label for p in phones} and "" in {p.label for p in phones}


def test_unknown_voice_and_empty_text_are_refused() -> None:
    with pytest.raises(UserError, match="Female1"):
        synthesize("a", "Nobody")
    with pytest.raises(UserError, match="no text"):
        synthesize("  ", "Female1")


def test_stereo_is_averaged_and_rates_are_converted(tmp_path: Path) -> None:
    t = np.arange(48_000) / 48_000
    left, right = np.sin(2 * np.pi * 200 * t), np.sin(2 * np.pi * 300 * t)
    soundfile.write(tmp_path / "s.wav", np.stack([left, right], 1) * 0.5, 48_000)
    wave = read_audio(tmp_path / "s.wav")
    assert wave.shape == (16_000,) and wave.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(wave))
    assert set(np.argsort(spectrum)[-2:]) == {200, 300}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("text.wav", b"hello", "not a readable sound file"),
        ("empty.wav", b"", "not a readable sound file"),
        ("absent.wav", None, "no audio file"),
    ],
)
def test_what_is_no_audio_is_refused(tmp_path: Path, name: str, content: bytes | None, expected: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected):
        read_audio(tmp_path / name)


def test_too_short_too_long_and_not_finite_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16_000)
    soundfile.write(tmp_path / "long.wav", np.zeros(16_000 * 3), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(UserError, match="at least 400"):
        read_audio(tmp_path / "short.wav")
    with pytest.raises(UserError, match="3 s long.*limit"):
        read_audio(tmp_path / "long.wav", maximum_s=2)
    with pytest.raises(UserError, match="finite"):
        read_audio(tmp_path / "nan.wav")


def test_writing_clips_and_refuses_other_formats(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.flac", np.array([0.5, 2.0, -2.0]))
    assert soundfile.read(tmp_path / "a.flac")[0] == pytest.approx([0.5, 1, -1], abs=1e-3)
    with pytest.raises(UserError, match="wav or .flac"):
        write_audio(tmp_path / "a.ogg", np.zeros(10))


def test_tables_give_back_what_was_written(tmp_path: Path) -> None:
    spoken = [speak(row) for row in plan_corpus(smoke_recipe().corpus, 0)[:3]]
    assert all(len(u.wave) % 3200 == 0 for u in spoken)
    write_shard(tmp_path / "utterances-00000.parquet", spoken)
    back = list(read_utterances(tmp_path, audio=True, phones=True))
    for a, b in zip(spoken, back, strict=True):
        assert (a.id, a.text, a.kind, a.voice, a.split) == (b.id, b.text, b.kind, b.voice, b.split)
        assert np.abs(a.wave - b.wave).max() < 1e-4 and [p.label for p in a.phones] == [p.label for p in b.phones]
    assert [u.id for u in read_utterances(tmp_path, where={"id": {spoken[1].id}})] == [spoken[1].id]
    with pytest.raises(UserError, match="no utterance table"):
        next(read_utterances(tmp_path / "none"))


def test_an_interrupted_corpus_keeps_its_shards_and_ends_the_same(tmp_path: Path) -> None:
    settings = smoke_recipe().corpus.model_copy(
        update={
            "target_statements": 2,
            "target_questions": 0,
            "aligned_voices": (),
            "unlabelled_voices": (),
            "test_sentences": 2,
            "aligned_statements": 0,
        }
    )
    build_corpus(settings, 0, tmp_path / "whole", processes=1, shard_size=250)
    whole = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()}
    (tmp_path / "part").mkdir()
    kept = tmp_path / "part" / "utterances-00000.parquet"
    kept.write_bytes(whole[kept.name])
    stamp = kept.stat().st_mtime_ns
    build_corpus(settings, 0, tmp_path / "part", processes=1, shard_size=250)
    assert {p.name: p.read_bytes() for p in (tmp_path / "part").iterdir()} == whole and kept.stat().st_mtime_ns == stamp


def test_sampled_sets_are_fresh_held_out_and_repeatable(tmp_path: Path) -> None:
    recipe = smoke_recipe()
    first = sample_set(tmp_path / "a", 8, 3, recipe)
    assert first == sample_set(tmp_path / "b", 8, 3, recipe) != sample_set(tmp_path / "c", 8, 4, recipe)
    assert len({r["text"] for r in first}) == 8 and all(r["held_out"] and not r["seen"] for r in first)
    assert (tmp_path / "a" / "0003.wav").read_bytes() == (tmp_path / "b" / "0003.wav").read_bytes()
    with pytest.raises(UserError, match="unknown voice"):
        sample_set(tmp_path / "d", 1, 0, recipe, voice="Nobody")
    with pytest.raises(UserError, match="unknown kind"):
        sample_set(tmp_path / "d", 1, 0, recipe, kind="riddle")
    with pytest.raises(UserError, match="only .* sentences"):
        sample_set(tmp_path / "d", 5000, 0, recipe, kind="capital")


@pytest.mark.slow
def test_real_speech_is_read(reference: Path) -> None:
    files = [*reference.glob("speech/LibriSpeech/*/*/*/*.flac")][:3] + [*reference.glob("speech/CommonVoice/**/*.mp3")][:2]
    files += [*reference.glob("speech/GigaSpeech/audio/*/*/*.opus")]
    assert len(files) >= 4
    for path in files:
        wave = read_audio(path, maximum_s=None)
        assert wave.ndim == 1 and len(wave) > 8000 and np.abs(wave).max() > 0.01
