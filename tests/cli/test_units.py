"""`speechgpt units …` as a user types it: foreign files, recorded corpora, several processes,
mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechgpt_lib.cli import runs
from speechgpt_lib.runs.artefacts import hash_file
from speechgpt_lib.units.extract import read_units

UNITS = "01_unit_extraction/units"


def shards(run: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in sorted((run / UNITS).glob("units-*.parquet"))}


def test_one_file_and_a_corpus_by_the_same_foreign_inventory(command, speech, tmp_path: Path):
    run = tmp_path / "run"
    done = command("units", "extract", *speech.recipe, "--run-dir", run, "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)[UNITS]
    assert made["utterances"] == 15 and made["folder"] == str(run / UNITS)
    one = json.loads(command("units", speech.file(3), *speech.encoder, "--json").stdout)
    rows = {row.id: row for row in read_units(run / UNITS, one["inventory"])}
    assert one["units"] == rows["3-4-0003"].units.tolist()
    assert {row.split for row in rows.values()} == {"train", "test", "unlabelled"}
    # A run's inventory is found by the run's folder.
    again = json.loads(command("units", speech.file(3), "--run", run, "--json").stdout)
    assert again["units"] == one["units"] and again["inventory"] == one["inventory"]

    same = command("make", "units", *speech.recipe, "--run-dir", run)
    assert same.stdout.strip() == str(run / UNITS) and f"reused   {UNITS}" in same.stderr
    other = command(
        *("make", "units", *speech.recipe, "--run-dir", run),
        *("--set", "imports.inventory.layer=3"),
    )
    assert f"remade   {UNITS}" in other.stderr, "units of two inventories are never mixed"


def test_jobs_of_an_array_and_the_call_that_joins_them(command, speech, tmp_path: Path):
    extract = ("units", "extract", *speech.recipe)
    assert command(*extract, "--run-dir", tmp_path / "one").returncode == 0
    for part in ("0:1", "1::2"):
        done = command(*extract, "--run-dir", tmp_path / "jobs", "--shards", part, "--json")
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "jobs" / UNITS).exists(), "a part is no finished step"
    joined = command(*extract, "--run-dir", tmp_path / "jobs", "--json")
    assert json.loads(joined.stdout)[UNITS]["utterances"] == 15
    assert (
        shards(tmp_path / "one") == shards(tmp_path / "jobs") and len(shards(tmp_path / "one")) == 2
    )
    facts = json.loads((tmp_path / "jobs" / UNITS / "facts.json").read_text())
    assert (
        facts["resumed"]
        and facts["key"] == json.loads((tmp_path / "one" / UNITS / "facts.json").read_text())["key"]
    )


@pytest.mark.slow
def test_processes_make_what_one_makes(command, speech, tmp_path: Path):
    extract = ("units", "extract", *speech.recipe)
    assert command(*extract, "--run-dir", tmp_path / "one").returncode == 0
    two = (*extract, "--run-dir", tmp_path / "two", "--processes", 2)
    done = command(*two)
    assert done.returncode == 0, done.stderr
    assert shards(tmp_path / "one") == shards(tmp_path / "two")
    facts = tmp_path / "two" / UNITS / "facts.json"
    before = json.loads(facts.read_text())
    forced = command(*two, "--force")
    after = json.loads(facts.read_text())
    assert forced.returncode == 0 and "$ python -m torch.distributed.run" in forced.stderr
    assert after["finished"] > before["finished"], "the new parts were joined, not the old reused"
    assert after["outputs"] == before["outputs"]


@pytest.mark.slow
def test_an_inventory_is_trained_and_used(command, speech, tmp_path: Path):
    own = ("imports.inventory=null", "units.clusters=5", "units.hubert.crop_seconds=0.3")
    sets = [option for change in own for option in ("--set", change)]
    train = (*speech.recipe, *sets, "--run-dir", tmp_path / "run", "--json")
    done = command("units", "train", *train)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)["01_unit_extraction/inventory"]
    assert made["id"] and (tmp_path / "run" / "01_unit_extraction" / "hubert").is_dir()
    bf16 = ("--set", "units.extraction.precision=bf16")
    used = json.loads(command("units", "extract", *train, *bf16).stdout)[UNITS]
    rows = list(read_units(tmp_path / "run" / UNITS, made["id"]))
    assert used["utterances"] == len(rows) == 15 and max(row.units.max() for row in rows) < 5
    assert used.get("missed_frames", 0) < 0.5 * used["checked_frames"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("imports.inventory.layer=9", "layers 1 to 4, layer 9"),
        ("imports.inventory.centroids=absent.npy", "absent.npy, which is not there"),
        ("corpora.0.reader=gigaspeech", "GigaSpeech.json"),
        ("corpora.0.reader=switchboard", "'librispeech', 'common_voice'"),
        ("corpora.0.root=absent", "absent"),
        ("units.extraction.precision=int8", "'fp32' or 'bf16'"),
        ("units.extraction.long_audio=fast", "'exact' or 'release'"),
        ("corpora.0.splits=[train-clean-999]", "dev-clean"),
        ("corpora.0.held_out=0", "no corpus of the recipe has held-out speech"),
        ("corpora.1.root=A", "3-4-0000"),
        ("units.clusters=8", "has 9 units, units.clusters is 8"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_units(command, speech, tmp_path: Path, change, words):
    where = ("--run-dir", tmp_path / "run", "--set", change)
    done = command("units", "extract", *speech.recipe, *where)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: ") and words in last, done.stderr
    assert not list(tmp_path.rglob("units-*.parquet"))


@pytest.mark.parametrize("text", ["a:b", "1", "0::0", "0:1:2:3"])
def test_shards_that_are_no_range_are_refused(command, speech, tmp_path: Path, text: str):
    where = ("--run-dir", tmp_path / "run", "--shards", text)
    done = command("units", "extract", *speech.recipe, *where)
    assert done.returncode == 1 and "is no range: expected A:B" in done.stderr
    assert not (tmp_path / "run").exists()


def test_fairseq_itself_needs_its_three_files(command, speech):
    done = command("units", speech.file(3), "--backend", "fairseq")
    assert done.returncode == 1
    assert "--encoder FILE.pt" in done.stderr or "make fairseq" in done.stderr


def test_more_jobs_than_memory_are_refused_before_anything_is_written(command, tmp_path: Path):
    given = ("--recipe", "smoke", "--run-dir", tmp_path / "run", "--jobs", 100_000)
    done = command("run", *given)
    assert done.returncode == 1 and "error: --jobs 100000: the run may be killed" in done.stderr
    assert not (tmp_path / "run").exists()


def test_progress_is_said_now_and_then(monkeypatch, capsys):
    clock = iter(range(0, 1000, 11))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    tell = runs._progress()
    tell({"step": 3, "loss": 2.5, "seconds_left": 75.0})
    for row in ({"shards": 1, "of": 4, "seconds": 2.0}, {"rows": 7}):
        tell(row)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["  step 3, loss 2.500, 1:15 min left", "  1 of 4 shards"]
