"""A corpus on disk → unit tables: killed, resumed, split over processes and jobs, the result is the same."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
from speechgpt_lib.corpora.segment_tables import iterate_table
from speechgpt_lib.units.corpus_units import extract_corpus

from speechgpt_lib.corpora.prepare import prepare
from speechgpt_lib.corpora.segments import read_segment
from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import hash_file, read_json
from speechgpt_lib.units.encode import Extraction
from speechgpt_lib.units.extract import read_units
from speechgpt_lib.units.inventory import UnitInventory
from tests.builders import tiny_inventory
from tests.units.test_features import make_encoder, noise


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Ten utterances in LibriSpeech's layout with one file that is broken, their table in shards of three, and an inventory."""
    base = tmp_path_factory.mktemp("corpus")
    chapter = base / "root" / "LibriSpeech" / "dev-clean" / "84" / "121550"
    chapter.mkdir(parents=True)
    lines = []
    for k in range(10):
        name = f"84-121550-{k:04d}"
        soundfile.write(
            chapter / f"{name}.flac", 0.3 * noise(6000 + 1500 * ((3 * k) % 10), k), 16_000
        )
        lines.append(f"{name} SENTENCE NUMBER {k}")
    (chapter / "84-121550.trans.txt").write_text("\n".join(lines) + "\n")
    root = base / "root" / "LibriSpeech"
    prepare("librispeech", root, base / "table", shard_size=3)
    broken = (
        chapter / "84-121550-0004.flac"
    )  # after the table was made: the extraction meets it first
    broken.write_bytes(broken.read_bytes()[:900])
    inventory = base / "inventory"
    inventory.mkdir()
    tiny_inventory().save(inventory)
    return base / "table", root, inventory


def extract(corpus, out, settings=None, max_bad_share=0.2, **options) -> dict:
    return extract_corpus(
        *corpus, out, settings or Extraction(), max_bad_share=max_bad_share, **options
    )


def hashes(folder) -> dict[str, str]:
    return {path.name: hash_file(path) for path in sorted(folder.glob("*.parquet"))}


def test_units_are_those_of_each_file_alone(corpus, tmp_path):
    summary = extract(corpus, tmp_path / "units")
    inventory = UnitInventory.load(corpus[2])
    rows = {row.id: row for row in read_units(tmp_path / "units", inventory.id)}
    assert summary["utterances"] == len(rows) == 9 and summary["shards"] == "4 of 4"
    for k in (0, 3, 9):
        row = rows[f"84-121550-{k:04d}"]
        wave = soundfile.read(
            corpus[1] / "dev-clean" / "84" / "121550" / f"{row.id}.flac", dtype="float32"
        )[0]
        assert row.units.tolist() == inventory.encode(wave)[0].tolist()
        assert (row.text.lower(), row.voice, row.split) == (
            f"sentence number {k}",
            "84",
            "dev-clean",
        )
    assert read_json(tmp_path / "units" / "summary.json") == summary


def test_a_broken_file_is_in_quarantine_with_its_reason(corpus, tmp_path):
    summary = extract(corpus, tmp_path)
    bad = pyarrow.parquet.read_table(tmp_path / "quarantine-00001.parquet").to_pylist()
    assert summary["bad"] == 1 and [(row["id"], row["reason"]) for row in bad] == [
        ("84-121550-0004", "truncated")
    ]


def test_too_many_bad_files_are_an_error_after_the_work_is_saved(corpus, tmp_path):
    with pytest.raises(UserError, match=r"10.0%.*limit is 0.0%.*--max-bad-share 0.10"):
        extract(corpus, tmp_path, max_bad_share=0.0)
    assert len(list(tmp_path.glob("units-*.parquet"))) == 4


@pytest.mark.slow
def test_processes_and_jobs_of_an_array_give_the_same_files(corpus, tmp_path):
    extract(corpus, tmp_path / "one")
    told = []
    extract(corpus, tmp_path / "two", processes=2, on_seconds=told.append)
    first = extract(corpus, tmp_path / "jobs", shards=slice(1, None, 2))
    assert first["shards"] == "2 of 4" and not (tmp_path / "jobs" / "summary.json").exists()
    extract(corpus, tmp_path / "jobs", shards=slice(0, None, 2))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two") == hashes(tmp_path / "jobs")
    assert sum(told) == pytest.approx(
        sum((6000 + 1500 * ((3 * k) % 10)) / 16_000 for k in range(10))
    )


def test_what_is_there_is_kept_and_what_is_missing_made(corpus, tmp_path):
    extract(corpus, tmp_path)
    expected, kept = hashes(tmp_path), tmp_path / "units-00000.parquet"
    stamp = kept.stat().st_mtime_ns
    (tmp_path / "units-00002.parquet").unlink()
    extract(corpus, tmp_path)
    assert kept.stat().st_mtime_ns == stamp and hashes(tmp_path) == expected


@pytest.mark.slow
def test_killed_and_started_again_the_files_are_the_same(corpus, tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from speechgpt_lib.units import corpus_units, encode\n"
        "make = corpus_units.write_units\n"
        "corpus_units.write_units = lambda *a, **k: (make(*a, **k), time.sleep(0.5))\n"
        "corpus_units.extract_corpus(*map(Path, sys.argv[1:]), encode.Extraction(), max_bad_share=0.2)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, (*corpus, tmp_path / "killed"))]
    )
    deadline = time.monotonic() + 120
    while (
        not list((tmp_path / "killed").glob("units-*.parquet"))
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 1 <= len(list((tmp_path / "killed").glob("units-*.parquet"))) < 4
    extract(corpus, tmp_path / "killed")
    extract(corpus, tmp_path / "whole")
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")


def test_a_folder_made_in_another_way_is_refused(corpus, tmp_path):
    extract(corpus, tmp_path)
    with pytest.raises(UserError, match="made from something else.*fp32.*choose another --out"):
        extract(corpus, tmp_path, Extraction(precision="bf16"))


def test_a_half_written_shard_is_refused_in_words(corpus, tmp_path):
    extract(corpus, tmp_path)
    shard = tmp_path / "units-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:300])
    with pytest.raises(UserError, match="units-00001.parquet.*damaged.*delete it"):
        extract(corpus, tmp_path)


def test_a_stranger_in_the_folder_is_refused(corpus, tmp_path):
    extract(corpus, tmp_path)
    (tmp_path / "units-00009.parquet").write_bytes((tmp_path / "units-00001.parquet").read_bytes())
    with pytest.raises(UserError, match="units-00009.parquet, which is no shard"):
        extract(corpus, tmp_path)


def test_silence_longer_than_ten_minutes_is_one_unit(tmp_path):
    from speechgpt_lib.units.encode import Counts
    from speechgpt_lib.units.extract import write_units

    row = {
        "id": "a",
        "text": "",
        "answer": "",
        "kind": "speech",
        "voice": "",
        "split": "",
        "units": np.array([3]),
        "durations": np.array([40_000]),
    }
    write_units(tmp_path / "units-00000.parquet", [row], Counts(utterances=1), "x")
    assert next(read_units(tmp_path, "x")).durations.tolist() == [40_000]


REAL = {
    "librispeech": "LibriSpeech",
    "common_voice": "CommonVoice/cv-corpus-17.0-2024-03-15",
    "gigaspeech": "GigaSpeech",
    "libri_light": "LibriLight",
}


@pytest.mark.parametrize("name", REAL)
def test_real_speech_of_four_corpora_in_batches_equals_one_by_one(reference, tmp_path, name):
    root = reference / "speech" / REAL[name]
    if not root.is_dir():
        pytest.skip(f"no speech in {root}")
    inventory = speech_inventory()
    folder = tmp_path / "inventory"
    folder.mkdir()
    inventory.save(folder)
    prepare(name, root, tmp_path / "table", decode=True)
    segments = list(iterate_table(tmp_path / "table"))
    summary = extract_corpus(
        tmp_path / "table", root, folder, tmp_path / "units", Extraction(batch_s=60.0)
    )
    assert summary["utterances"] == len(segments) > 0 and summary["bad"] == 0
    rows = {row.id: row for row in read_units(tmp_path / "units", inventory.id)}
    different = 0
    for segment in segments:
        alone = np.repeat(*inventory.encode(read_segment(root, segment)))
        together = rows[segment.id].frames
        assert len(alone) == len(together)
        different += int((alone != together).sum())
    assert different <= summary["near_ties"]  # and nowhere else


def speech_inventory() -> UnitInventory:
    """A small encoder with centroids out of its own features, so that many units are used."""
    from speechgpt_lib.units.kmeans import KMeansUnits

    model = make_encoder()
    plain = UnitInventory.create(model, 3, KMeansUnits(np.zeros((1, 32), np.float32)))
    return UnitInventory.create(model, 3, KMeansUnits(plain.features(noise(64_000, 1))[::3].copy()))
