"""A vocoder trained on a corpus in files: the same pieces as from memory, resumable, measured on what was held out."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from speechgpt_lib.vocoder.corpus import SpeechOnDisk

from speechgpt_lib.corpora.segments import Segment, read_part, read_segment
from speechgpt_lib.vocoder import corpus
from speechgpt_lib.vocoder.speech import SpeechInMemory
from tests.units.test_features import make_encoder, noise
from tests.units.test_foreign import kmeans_of, write


def segment(path: str, start: float = 0.0, end: float | None = None, speaker: str = "a") -> Segment:
    return Segment(
        path.partition(".")[0], path, start, end, 16_000, "GOOD DAY", speaker, "en", "train"
    )


@pytest.mark.parametrize("rate", [16_000, 22_050, 48_000, 11_025])
@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_a_part_is_what_the_whole_has_there(tmp_path, rate, kind):
    time = np.arange(3 * rate) / rate
    soundfile.write(
        tmp_path / f"x.{kind}", 0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time), rate
    )
    for s in (segment(f"x.{kind}"), segment(f"x.{kind}", 0.5, 2.5)):
        whole = read_segment(tmp_path, s)
        for start, count in ((0, 3200), (6400, 8960), (len(whole) - 640, 640)):
            part = read_part(tmp_path, s, start, count)
            assert part.dtype == np.float32 and part.shape == (count,)
            difference = np.abs(part - whole[start : start + count])
            # The last few samples are resampled with what lies behind the segment's end, and there the two may differ a little.
            assert difference.max() < (1e-6 if rate == 16_000 else 2e-2)
            assert difference[: count - 320].max() < 2e-3
    assert (
        read_part(tmp_path, segment(f"x.{kind}"), 47_000, 2_000)[1_200:].max() == 0
    )  # behind the end is silence


def test_pieces_from_disk_are_pieces_from_memory(tmp_path):
    rng = np.random.default_rng(0)
    rows, pairs = [], []
    for k, speaker in enumerate("bab"):
        wave = (0.3 * noise(16_000 + 320 * k, k)).astype(np.float32)
        soundfile.write(tmp_path / f"u{k}.flac", wave, 16_000, subtype="PCM_16")
        frames = rng.integers(0, 9, 49 + k)
        rows.append((segment(f"u{k}.flac", speaker=speaker), frames.astype(np.uint16)))
        pairs.append((frames, wave))
    disk, memory = (
        SpeechOnDisk(tmp_path, rows, many_speakers=True),
        SpeechInMemory(pairs, 9, list("bab")),
    )
    assert disk.lengths.tolist() == memory.lengths.tolist() == [49, 50, 51]
    assert disk.names == ("a", "b") and disk.speakers.tolist() == [1, 0, 1]
    assert memory.names == ("b", "a") and memory.speakers.tolist() == [0, 1, 0]
    for index, start, count in ((0, 0, 8), (1, 40, 10), (2, 13, 32)):
        (units, wave), (expected, sound) = (
            disk.piece(index, start, count),
            memory.piece(index, start, count),
        )
        assert units.dtype == np.int64 and np.array_equal(units, expected)
        assert np.abs(wave - sound).max() < 1e-4
    assert SpeechOnDisk(tmp_path, rows, many_speakers=False).names == ()


def test_the_same_utterances_are_held_out_whatever_the_order(tmp_path):
    rows = [(segment(f"u{k}.flac"), np.zeros(3, np.uint16)) for k in range(30)]
    order = [row[0].id for row in corpus.held_out_last(rows)]
    assert order == [row[0].id for row in corpus.held_out_last(rows[::-1])]
    assert order != sorted(order)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory, speechgpt):
    """26 utterances of two speakers with units by a foreign inventory, as `speechgpt units extract` leaves them; and a small recipe."""
    base = tmp_path_factory.mktemp("corpus")
    for speaker, count in (("3", 20), ("5", 6)):
        chapter = base / "LibriSpeech" / "dev-clean" / speaker / "4"
        chapter.mkdir(parents=True)
        for k in range(count):
            soundfile.write(
                chapter / f"{speaker}-4-{k:04d}.flac", 0.3 * noise(9_000 + 500 * k, k), 16_000
            )
        (chapter / f"{speaker}-4.trans.txt").write_text(
            "".join(f"{speaker}-4-{k:04d} GOOD DAY\n" for k in range(count))
        )
    np.save(base / "km.npy", kmeans_of(9).centroids)
    write(base / "hubert.pt", make_encoder())
    options = ["--encoder", base / "hubert.pt", "--layer", 2, "--kmeans", base / "km.npy"]
    done = speechgpt(
        "units",
        "extract",
        "--corpus",
        "librispeech",
        "--root",
        base / "LibriSpeech",
        *options,
        "-o",
        base / "units",
        "--processes",
        1,
    )
    assert done.returncode == 0, done.stderr
    return base


def train(speechgpt, base, out, *more):
    arguments = [
        "vocoder",
        "train",
        base / "units",
        "--root",
        base / "LibriSpeech",
        "-o",
        out,
        "--recipe",
        "smoke",
        "--device",
        "cpu",
        "--json",
    ]
    return speechgpt(*arguments, *more)


@pytest.mark.slow
def test_a_corpus_gets_a_vocoder_of_its_own(speechgpt, extracted, tmp_path):
    done = train(speechgpt, extracted, tmp_path / "v", "--many-speakers", "--steps", 6)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts == json.loads((tmp_path / "v" / "facts.json").read_text())
    assert facts["generator"]["steps"] == 6 and facts["generator"]["adversarial_steps"] == 3
    assert (
        facts["held_out"]["gold"]["mcd_db"] > 0
        and facts["held_out"]["predicted"]["length_ratio"] > 0
    )
    assert list((tmp_path / "v" / "training" / "generator" / "samples").glob("*.wav"))

    spoken = speechgpt(
        "speak",
        "<sosp><1><2><3><eosp>",
        "--vocoder",
        tmp_path / "v",
        "--speaker",
        "5",
        "-o",
        tmp_path / "x.flac",
        "--json",
    )
    assert spoken.returncode == 0, spoken.stderr
    assert soundfile.info(tmp_path / "x.flac").samplerate == 16_000
    unknown = speechgpt(
        "speak",
        "<sosp><1><eosp>",
        "--vocoder",
        tmp_path / "v",
        "--speaker",
        "7",
        "-o",
        tmp_path / "y.wav",
    )
    assert unknown.returncode == 1 and "knows 3, 5" in unknown.stderr

    tables = speechgpt(
        "speak",
        extracted / "units",
        "--vocoder",
        tmp_path / "v",
        "-o",
        tmp_path / "spoken",
        "--json",
    )
    assert (
        json.loads(tables.stdout)["files"] == 26 == len(list((tmp_path / "spoken").glob("*.wav")))
    )
    again = speechgpt(
        "speak",
        extracted / "units",
        "--vocoder",
        tmp_path / "v",
        "-o",
        tmp_path / "spoken",
        "--json",
    )
    assert json.loads(again.stdout)["files"] == 0

    other = train(speechgpt, extracted, tmp_path / "v", "--steps", 7)
    assert (
        other.returncode == 1 and "begun with other units, settings or another seed" in other.stderr
    )


@pytest.mark.slow
def test_two_processes_train_one_vocoder(speechgpt, extracted, tmp_path):
    launched = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "speechgpt_lib.cli",
    ]
    arguments = [
        "vocoder",
        "train",
        extracted / "units",
        "--root",
        extracted / "LibriSpeech",
        "--recipe",
        "smoke",
        "--device",
        "cpu",
    ]
    command = [*launched, *map(str, [*arguments, "-o", tmp_path / "two", "--launched", 2])]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = train(speechgpt, extracted, tmp_path / "one")
    assert one.returncode == 0, one.stderr
    losses = [
        json.loads((tmp_path / name / "facts.json").read_text())["generator"]["reconstruction"]
        for name in ("one", "two")
    ]
    assert abs(losses[0] - losses[1]) < 1e-3 * losses[0]
    lonely = train(speechgpt, extracted, tmp_path / "three", "--launched", 2)
    assert lonely.returncode == 1 and "meant for 2 process(es)" in lonely.stderr


@pytest.mark.slow
def test_mistakes_are_named(speechgpt, extracted, tmp_path):
    missing = speechgpt(
        "vocoder", "train", tmp_path, "--root", extracted / "LibriSpeech", "-o", tmp_path / "v"
    )
    assert (
        missing.returncode == 1 and "error:" in missing.stderr and "Traceback" not in missing.stderr
    )
    nowhere = speechgpt(
        "vocoder",
        "train",
        extracted / "units",
        "--root",
        tmp_path / "nowhere",
        "-o",
        tmp_path / "v",
    )
    assert nowhere.returncode == 1 and "no corpus at" in nowhere.stderr
    assert not (tmp_path / "v").exists()
