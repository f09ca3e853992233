"""The corpora in small: folders laid out as the corpora are, with sound in their formats."""

from __future__ import annotations

import json
from pathlib import Path

from speechgpt_lib.corpora.tables import Utterance
from tests.corpora.sounds import tone, write_sound

COLUMNS = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents "
    "variant locale segment"
).split()


def librispeech(
    root: Path, chapters: dict[str, list[str]] | None = None, seconds: float = 0.3
) -> Path:
    """`chapters`: subset/speaker/chapter → texts of its utterances."""
    for folder, texts in (
        chapters or {"dev-clean/84/121123": ["GO", "DO YOU"], "test-clean/61/70968": ["HE BEGAN"]}
    ).items():
        prefix = "-".join(folder.split("/")[1:])
        for k in range(len(texts)):
            write_sound(root / folder / f"{prefix}-{k:04d}.flac", tone(seconds, pitch=200 + 20 * k))
        lines = "".join(f"{prefix}-{k:04d} {text}\n" for k, text in enumerate(texts))
        (root / folder / f"{prefix}.trans.txt").write_text(lines)
    return root


def common_voice(
    root: Path, lists: dict[str, list[str]], columns: list[str] = COLUMNS, language: str = "en"
) -> Path:
    """`lists`: name of the TSV → sentences; clips are numbered through all lists."""
    number = 0
    for name, sentences in lists.items():
        lines = ["\t".join(columns)]
        for sentence in sentences:
            clip = f"common_voice_{language}_{number}.mp3"
            write_sound(root / "clips" / clip, tone(0.5, 48_000), 48_000)
            row = {
                "client_id": f"voice{number % 2}",
                "path": clip,
                "sentence": sentence,
                "locale": language,
            }
            lines.append("\t".join(row.get(column, "") for column in columns))
            number += 1
        (root / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return root


def recorded(id: str, path: str, text: str, voice: str, split: str, **more) -> Utterance:
    """What a reader gives for a sound file, or a stretch of one."""
    return Utterance(id, text, "", "speech", voice, split, path=path, **more)


def giga_segment(sid: str, start: float, end: float, text: str, *subsets: str) -> dict:
    return {
        "sid": sid,
        "speaker": "N/A",
        "begin_time": start,
        "end_time": end,
        "text_tn": text,
        "subsets": [f"{{{s}}}" for s in subsets],
    }


def gigaspeech(root: Path, recordings: dict[str, list[dict]], seconds: float = 4.0) -> Path:
    """`recordings`: name of the recording → its segments (see `giga_segment`)."""
    audios = []
    for aid, segments in recordings.items():
        path = f"audio/podcast/P0001/{aid}.opus"
        write_sound(root / path, tone(seconds, 48_000), 48_000)
        audios.append(
            {
                "aid": aid,
                "path": path,
                "sample_rate": 16_000,
                "duration": seconds,
                "speaker": "N/A",
                "segments": segments,
            }
        )
    (root / "GigaSpeech.json").write_text(
        json.dumps(
            {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": audios}
        )
    )
    return root


def libri_light(root: Path, books: dict[str, list], seconds: float = 6.0) -> Path:
    """`books`: subset/speaker/book/name → voice activity."""
    for name, activity in books.items():
        write_sound(root / f"{name}.flac", tone(seconds))
        (root / f"{name}.json").write_text(
            json.dumps({"speaker": name.split("/")[1], "snr": 9.5, "voice_activity": activity})
        )
    return root


def lj_speech(root: Path, texts: dict[str, str]) -> Path:
    """`texts`: name → what is said; numbers are written out in the third column."""
    for k, name in enumerate(texts):
        write_sound(root / "wavs" / f"{name}.wav", tone(0.4, 22_050, 200 + 20 * k), 22_050)
    (root / "metadata.csv").write_text(
        "".join(f"{name}|{text}|{text.replace('4', 'four')}\n" for name, text in texts.items())
    )
    return root


def vctk(root: Path, texts: dict[str, str | None], old: bool = False) -> Path:
    """`texts`: speaker/name → what is said, None where there is no file of it."""
    folder, suffixes = (
        ("wav48", [".wav"]) if old else ("wav48_silence_trimmed", ["_mic1.flac", "_mic2.flac"])
    )
    for name, text in texts.items():
        for suffix in suffixes:
            write_sound(root / folder / f"{name}{suffix}", tone(0.4, 48_000), 48_000)
        if text is not None:
            (root / "txt" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "txt" / f"{name}.txt").write_text(text + "\n")
    return root
