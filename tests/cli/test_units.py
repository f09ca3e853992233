"""`speechgpt units …` as a user types it: foreign files, real corpora, several processes, mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from speechgpt_lib.runs.artefacts import hash_file
from speechgpt_lib.units.extract import read_units
from tests.units.test_features import make_encoder, noise
from tests.units.test_foreign import kmeans_of, write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A folder with LibriSpeech's layout, a fairseq checkpoint and centroids; options that name all three."""
    base = tmp_path_factory.mktemp("speech")
    chapter = base / "LibriSpeech" / "dev-clean" / "3" / "4"
    chapter.mkdir(parents=True)
    for k in range(7):
        soundfile.write(chapter / f"3-4-{k:04d}.flac", 0.3 * noise(8000 + 1000 * k, k), 16_000)
    (chapter / "3-4.trans.txt").write_text("".join(f"3-4-{k:04d} GOOD DAY\n" for k in range(7)))
    np.save(base / "km.npy", kmeans_of(9).centroids)
    write(base / "hubert.pt", make_encoder())
    corpus = ["--corpus", "librispeech", "--root", base / "LibriSpeech"]
    units = ["--encoder", base / "hubert.pt", "--layer", 2, "--kmeans", base / "km.npy"]
    return base, corpus, units


def shards(folder) -> dict[str, str]:
    return {path.name: hash_file(path) for path in sorted((folder / "units").glob("*.parquet"))}


def test_one_file_and_a_corpus_by_the_same_foreign_inventory(speechgpt, speech, tmp_path):
    base, corpus, units = speech
    done = speechgpt(
        "units", "extract", *corpus, *units, "-o", tmp_path, "--json", "--processes", 1
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["utterances"] == 7 and summary["shards"] == "1 of 1" and summary["bad"] == 0
    rows = {row.id: row for row in read_units(tmp_path / "units", summary["inventory"])}
    path = base / "LibriSpeech" / "dev-clean" / "3" / "4" / "3-4-0003.flac"
    one = json.loads(speechgpt("units", path, *units, "--json").stdout)
    assert (
        one["inventory"] == summary["inventory"] and one["units"] == rows["3-4-0003"].units.tolist()
    )
    # what was extracted carries its inventory along
    again = json.loads(speechgpt("units", path, "--run", tmp_path / "inventory", "--json").stdout)
    assert again["units"] == one["units"]


def test_processes_launched_together_make_what_one_makes(speechgpt, speech, tmp_path):
    base, corpus, units = speech
    arguments = ["units", "extract", *corpus, *units, "--shard-size", 2]
    assert speechgpt(*arguments, "-o", tmp_path / "one", "--processes", 1).returncode == 0
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
    command = [*launched, *map(str, [*arguments, "-o", tmp_path / "two", "--launched", 2])]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stderr
    assert (
        shards(tmp_path / "one") == shards(tmp_path / "two") and len(shards(tmp_path / "one")) == 8
    )
    lonely = speechgpt(*arguments, "-o", tmp_path / "three", "--launched", 2)
    assert lonely.returncode == 1 and "--launched says 2, but 1 processes" in lonely.stderr


def test_an_inventory_is_trained_and_used(speechgpt, speech, tmp_path):
    base, corpus, _ = speech
    done = speechgpt(
        "units",
        "train",
        *corpus,
        "--encoder",
        base / "hubert.pt",
        "--layer",
        2,
        "--clusters",
        5,
        "-o",
        tmp_path,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["clusters"] == 5 and made["layer"] == 2
    used = speechgpt(
        "units",
        "extract",
        *corpus,
        "--run",
        tmp_path / "inventory",
        "-o",
        tmp_path / "units",
        "--json",
        "--precision",
        "bf16",
    )
    summary = json.loads(used.stdout)
    assert summary["inventory"] == made["inventory"] and 0 <= summary["miss_rate"] < 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--layer", 9], "layers 1 to 4, layer 9"),
        (["--kmeans", "absent.npy"], "no file at absent.npy"),
        (["--corpus", "gigaspeech"], "librispeech"),
        (["--corpus", "switchboard"], "librispeech, common_voice"),
        (["--root", "absent"], "absent"),
        (["--shards", "a:b"], "is no range"),
        (["--precision", "int8"], "fp32, bf16"),
        (["--long-audio", "fast"], "exact, release"),
        (["--split", "train-clean-999"], "dev-clean"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_units(speechgpt, speech, tmp_path, change, words):
    _, corpus, units = speech
    done = speechgpt("units", "extract", *corpus, *units, "-o", tmp_path / "out", *change)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("error: "), (
        done.stderr
    )
    assert words in done.stderr and not list((tmp_path / "out").rglob("units-*.parquet"))


def test_units_of_another_inventory_are_not_mixed_in(speechgpt, speech, tmp_path):
    base, corpus, units = speech
    assert speechgpt("units", "extract", *corpus, *units, "-o", tmp_path).returncode == 0
    other = [*units[:2], "--layer", 3, *units[4:]]
    done = speechgpt("units", "extract", *corpus, *other, "-o", tmp_path)
    assert done.returncode == 1 and "was made for unit inventory" in done.stderr


def test_fairseq_itself_needs_its_three_files(speechgpt, speech):
    base, _, _ = speech
    path = base / "LibriSpeech" / "dev-clean" / "3" / "4" / "3-4-0003.flac"
    done = speechgpt("units", path, "--backend", "fairseq")
    assert done.returncode == 1 and (
        "--encoder FILE.pt" in done.stderr or "make fairseq" in done.stderr
    )
