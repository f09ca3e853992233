"""An utterance table → unit tables: killed, resumed, split over jobs, the result is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import soundfile

from speechgpt_lib.corpora.prepare import prepare
from speechgpt_lib.corpora.tables import read_quarantine, read_utterances
from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import ExtractionSettings
from speechgpt_lib.runs.artefacts import hash_file
from speechgpt_lib.runs.processes import run_in_processes
from speechgpt_lib.units import extract as units_extract
from speechgpt_lib.units.extract import (
    Counts,
    extract_units,
    read_units,
    shard_counts,
    write_units,
)
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import KMeansUnits
from tests.builders import tiny_inventory
from tests.units.test_features import make_encoder, noise


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A table of ten utterances in shards of three, one of whose files is broken; an inventory."""
    base = tmp_path_factory.mktemp("corpus")
    chapter = base / "LibriSpeech" / "dev-clean" / "84" / "121550"
    chapter.mkdir(parents=True)
    lines = []
    for k in range(10):
        name = f"84-121550-{k:04d}"
        wave = 0.3 * noise(6000 + 1500 * ((3 * k) % 10), k)
        soundfile.write(chapter / f"{name}.flac", wave, 16_000)
        lines.append(f"{name} SENTENCE NUMBER {k}")
    (chapter / "84-121550.trans.txt").write_text("\n".join(lines) + "\n")
    prepare("librispeech", base / "LibriSpeech", base / "table", shard_size=3)
    # After the table was made: the extraction meets it first.
    broken = chapter / "84-121550-0004.flac"
    broken.write_bytes(broken.read_bytes()[:900])
    tiny_inventory().save(base / "inventory")
    return base / "table", base / "inventory"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are encoded one after the other here; to start processes takes longer."""
    monkeypatch.setattr(units_extract, "run_in_processes", lambda f, jobs, n: map(f, jobs))


def extract(corpus, out: Path, max_bad_share: float = 0.2, **options) -> dict:
    return extract_units(*corpus, out, ExtractionSettings(max_bad_share=max_bad_share), **options)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in sorted(folder.glob("*.parquet"))}


def test_units_are_those_of_each_file_alone(corpus, tmp_path: Path) -> None:
    summary, inventory = extract(corpus, tmp_path), UnitInventory.load(corpus[1])
    rows = {row.id: row for row in read_units(tmp_path, inventory.id)}
    assert summary["utterances"] == len(rows) == 9
    assert summary["units"] == sum(len(row.units) for row in rows.values())
    assert summary["frames"] == sum(int(row.durations.sum()) for row in rows.values())
    for u in read_utterances(corpus[0], audio=True):
        if u.id in rows and u.id[-1] in "039":
            row = rows[u.id]
            assert row.units.tolist() == inventory.encode(u.read())[0].tolist()
            text = f"sentence number {int(u.id[-1])}"
            assert (row.text.lower(), row.voice, row.split) == (text, "84", "dev-clean")
            assert row.frames.tolist() == np.repeat(row.units, row.durations).tolist()


def test_a_broken_file_is_in_quarantine_with_its_reason(corpus, tmp_path: Path) -> None:
    assert extract(corpus, tmp_path)["bad"] == 1 == shard_counts(tmp_path).bad
    bad = pyarrow.parquet.read_table(tmp_path / "quarantine-00001.parquet").to_pylist()
    assert [(row["id"], row["reason"]) for row in bad] == [("84-121550-0004", "truncated")]
    assert [row.id for row in read_quarantine(tmp_path / "quarantine-00001.parquet")] == [
        "84-121550-0004"
    ]


def test_too_many_bad_files_are_an_error_after_the_work_is_saved(corpus, tmp_path: Path) -> None:
    words = r"10.0%.*limit is 0.0%.*units.extraction.max_bad_share to 0.10"
    with pytest.raises(UserError, match=words):
        extract(corpus, tmp_path, max_bad_share=0.0)
    assert len(list(tmp_path.glob("units-*.parquet"))) == 4


def test_jobs_of_an_array_give_the_same_files(corpus, tmp_path: Path) -> None:
    told: list[dict] = []
    extract(corpus, tmp_path / "one", on_log=told.append)
    assert [(row["shards"], row["of"]) for row in told] == [(k, 4) for k in (1, 2, 3, 4)]
    seconds = sum((6000 + 1500 * ((3 * k) % 10)) / 16_000 for k in range(10) if k != 4)
    assert sum(row["seconds"] for row in told) == pytest.approx(seconds)
    first = extract(corpus, tmp_path / "jobs", shards=slice(1, None, 2))
    assert len(list((tmp_path / "jobs").glob("units-*.parquet"))) == 2
    whole = extract(corpus, tmp_path / "jobs", shards=slice(0, None, 2))
    assert first["utterances"] < whole["utterances"] == 9
    assert hashes(tmp_path / "one") == hashes(tmp_path / "jobs")


def test_what_is_there_is_kept_and_what_is_missing_made(corpus, tmp_path: Path) -> None:
    extract(corpus, tmp_path)
    expected, kept = hashes(tmp_path), tmp_path / "units-00000.parquet"
    stamp = kept.stat().st_mtime_ns
    (tmp_path / "units-00002.parquet").unlink()
    extract(corpus, tmp_path)
    assert kept.stat().st_mtime_ns == stamp and hashes(tmp_path) == expected


@pytest.mark.slow
def test_processes_give_the_same_files(corpus, tmp_path: Path, monkeypatch) -> None:
    extract(corpus, tmp_path / "one")
    both = partial(run_in_processes, processes=2)
    monkeypatch.setattr(units_extract, "run_in_processes", lambda f, jobs, n: both(f, jobs))
    extract(corpus, tmp_path / "two")
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


@pytest.mark.slow
def test_killed_and_started_again_the_files_are_the_same(corpus, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from speechgpt_lib.recipes.schema import ExtractionSettings\n"
        "from speechgpt_lib.units import extract\n"
        "make = extract.write_units\n"
        "extract.write_units = lambda *a, **k: (make(*a, **k), time.sleep(0.5))\n"
        "extract.run_in_processes = lambda f, jobs, n: map(f, jobs)\n"
        "settings = ExtractionSettings(max_bad_share=0.2)\n"
        "extract.extract_units(*map(Path, sys.argv[1:]), settings)\n"
    )
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, (*corpus, killed))])
    deadline = time.monotonic() + 120
    while not list(killed.glob("units-*.parquet")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 1 <= len(list(killed.glob("units-*.parquet"))) < 4
    extract(corpus, killed)
    extract(corpus, tmp_path / "whole")
    assert hashes(killed) == hashes(tmp_path / "whole")


def test_units_of_another_inventory_are_refused(corpus, tmp_path: Path) -> None:
    extract(corpus, tmp_path, shards=slice(0, 1))
    with pytest.raises(UserError, match="units-00000.parquet.*inventory other"):
        list(read_units(tmp_path, "other"))
    with pytest.raises(UserError, match="no unit table in .*empty: run notebook 01"):
        list(read_units(tmp_path / "empty"))


def test_silence_longer_than_ten_minutes_is_one_unit(tmp_path: Path) -> None:
    names = ("id", "text", "answer", "kind", "voice", "split")
    row = dict.fromkeys(names, "") | {"units": np.array([3]), "durations": np.array([40_000])}
    write_units(tmp_path / "units-00000.parquet", [row], Counts(utterances=1), "x")
    assert next(read_units(tmp_path, "x")).durations.tolist() == [40_000]


REAL = {
    "librispeech": "LibriSpeech",
    "common_voice": "CommonVoice/cv-corpus-17.0-2024-03-15",
    "gigaspeech": "GigaSpeech",
    "libri_light": "LibriLight",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_speech_of_four_corpora_in_batches_equals_one_by_one(
    reference: Path, tmp_path: Path, name: str
) -> None:
    root = reference / "speech" / REAL[name]
    if not root.is_dir():
        pytest.skip(f"no speech in {root}")
    inventory = speech_inventory()
    inventory.save(tmp_path / "inventory")
    prepare(name, root, tmp_path / "table", decode=True)
    spoken = list(read_utterances(tmp_path / "table", audio=True))
    out, settings = tmp_path / "units", ExtractionSettings(batch_seconds=60.0)
    summary = extract_units(tmp_path / "table", tmp_path / "inventory", out, settings)
    assert summary["utterances"] == len(spoken) > 0 and "bad" not in summary
    rows = {row.id: row for row in read_units(out, inventory.id)}
    different = 0
    for u in spoken:
        alone, together = np.repeat(*inventory.encode(u.read())), rows[u.id].frames
        assert len(alone) == len(together)
        different += int((alone != together).sum())
    assert different <= shard_counts(out).near_ties  # and nowhere else


def speech_inventory() -> UnitInventory:
    """A small encoder with centroids out of its own features, so that many units are used."""
    model = make_encoder()
    plain = UnitInventory.create(model, 3, KMeansUnits(np.zeros((1, 32), np.float32)))
    return UnitInventory.create(model, 3, KMeansUnits(plain.features(noise(64_000, 1))[::3].copy()))
