"""The commands as a user types them, on a run whose wiring is whole but which has learned nothing;
in a process of their own where that may matter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from speechgpt_lib import doctor
from speechgpt_lib.cli import main as cli
from speechgpt_lib.units.sequence import parse_units
from tests.builders import spoken

pytestmark = pytest.mark.slow  # each command starts a Python with torch


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "question.wav"
    soundfile.write(path, spoken("what is two plus three")[0], 16_000)
    return path


def test_units_and_speak_are_each_others_way_back(
    command, smoke_run: Path, clip: Path, tmp_path: Path
) -> None:
    written = command("units", clip, "--run", smoke_run)
    assert written.returncode == 0, written.stderr
    units = parse_units(written.stdout.strip(), unit_count=20)
    listed = json.loads(command("units", clip, "--run", smoke_run, "--json").stdout)
    assert (
        listed["units"] == units.tolist()
        and sum(listed["durations"]) == 1 + (soundfile.info(clip).frames - 400) // 320
    )

    spoken = command(
        "speak", written.stdout.strip(), "-o", tmp_path / "out.wav", "--run", smoke_run
    )
    assert spoken.returncode == 0, spoken.stderr
    wave, rate = soundfile.read(tmp_path / "out.wav")
    assert rate == 16_000 and len(wave) % 320 == 0 and len(wave) >= 320 * len(units)


def test_transcribe_prints_one_object_a_file(command, smoke_run: Path, clip: Path) -> None:
    done = command("transcribe", clip, clip, "--run", smoke_run, "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows] == [str(clip)] * 2
    assert rows[0]["text"] == rows[1]["text"] and isinstance(rows[0]["cut"], bool)
    assert done.stderr.count("generation.transcript") == sum(row["cut"] for row in rows)


def test_where_nothing_is_heard_the_commands_say_so(command, smoke_run: Path, tmp_path) -> None:
    silent, out = tmp_path / "silent.wav", tmp_path / "answer.wav"
    soundfile.write(silent, np.zeros(32_000), 16_000)
    told = command("transcribe", silent, silent, "--run", smoke_run, "--json")
    for row in map(json.loads, told.stdout.splitlines()):
        assert row["text"] == "" and row["nothing_heard"].startswith("silent")
    asked = command("ask", silent, "-o", out, "--run", smoke_run)
    assert asked.stdout.startswith("nothing heard (silent") and not out.exists()


def test_ask_answers_speech_and_text(
    speechgpt, command, smoke_run: Path, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answer.wav"
    spoken = speechgpt("ask", clip, "-o", out, "--run", smoke_run, "--json")
    assert spoken.returncode == 0, spoken.stderr
    reply = json.loads(spoken.stdout)
    assert {"question_text", "answer_text", "answer_units", "audio", "cut"} <= reply.keys()
    assert ("longest length" in spoken.stderr) == reply["cut"]
    assert (reply["audio"] is None) == (not out.exists())
    written = json.loads(
        command(
            "ask", "where is the quokka", "--reply", "text", "--run", smoke_run, "--json"
        ).stdout
    )
    assert written["question_text"] == "where is the quokka" and written["audio"] is None
    assert "quokka" in written["note"]


def test_a_fresh_set_is_sampled_and_scored(command, smoke_run: Path, tmp_path: Path) -> None:
    sampled = command(
        "corpora",
        "sample",
        "--seed",
        5,
        "-n",
        4,
        "--kind",
        "place",
        "-o",
        tmp_path / "set",
        "--recipe",
        "smoke",
    )
    assert sampled.returncode == 0, sampled.stderr
    scored = command("evaluate", "--set", tmp_path / "set", "--run", smoke_run, "--json")
    assert scored.returncode == 0, scored.stderr
    report = json.loads(scored.stdout)
    assert (
        report["items"] == 4
        and report["qa_text_accuracy"]["n"] == 4
        and report["qa_by_kind"].keys() == {"place"}
        and report["cut"].keys() == {"asr_wer", "qa"}
    )
    assert (tmp_path / "set" / "report.json").exists()


def write_bad_files(folder: Path) -> dict[str, Path]:
    files = {name: folder / f"{name}.wav" for name in ("text", "empty", "hour", "nan", "short")}
    files["text"].write_text("this is no audio")
    soundfile.write(files["empty"], np.zeros(0), 16_000)
    soundfile.write(files["hour"], np.zeros(3600 * 8000, np.int16), 8000)
    soundfile.write(files["nan"], np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(files["short"], np.zeros(100), 16_000)
    return files


def test_bad_input_is_one_line_and_no_traceback(
    command, smoke_run: Path, clip: Path, tmp_path: Path
) -> None:
    bad = write_bad_files(tmp_path)
    cases = {
        ("units", bad["text"]): "not a readable sound file",
        ("units", bad["empty"]): "at least 400",
        ("units", bad["hour"]): "limit",
        ("units", bad["nan"]): "finite",
        ("units", bad["short"]): "at least 400",
        ("units", tmp_path / "absent.wav"): "no audio file",
        ("speak", "<sosp><12><7>", "-o", tmp_path / "x.wav"): "unbalanced",
        ("speak", "<sosp><9999><eosp>", "-o", tmp_path / "x.wav"): "out of range",
        ("ask", "???", "-o", tmp_path / "x.wav"): "no words",
        ("ask", clip, "--reply", "song"): "speech or text",
    }
    for arguments, expected in cases.items():
        done = command(*arguments, "--run", smoke_run)
        lines = done.stderr.strip().splitlines()
        assert done.returncode != 0 and expected in lines[-1] and "Traceback" not in done.stderr, (
            arguments,
            done.stderr,
        )
    assert not (tmp_path / "x.wav").exists()


def test_missing_run_and_unknown_recipe_name_the_cure(command, tmp_path: Path) -> None:
    missing = command("ask", "hello", "--run", tmp_path / "nowhere")
    assert missing.returncode == 1 and "make tutorial" in missing.stderr
    unknown = command("run", "--recipe", "labb")
    assert unknown.returncode == 1 and "smoke, lab, release, paper" in unknown.stderr
    made = ("make", "inventory", "--recipe", "release", "--set", f"data={tmp_path / 'data'}")
    release = command(*made, "--run-dir", tmp_path / "release")
    last = release.stderr.strip().splitlines()[-1]
    assert release.returncode == 1 and "LLaMA-7B" in last and "GPUs" in last, release.stderr
    assert (
        "mhubert_base_vp_en_es_fr_it3.pt, which is not there" in last and "--set data=DIR" in last
    )
    (tmp_path / "bad.yaml").write_text("name: bad\nsumary: x\n")
    wrong_key = command("run", "--recipe", tmp_path / "bad.yaml")
    assert wrong_key.returncode == 1 and "sumary" in wrong_key.stderr


def test_stereo_is_mixed_and_other_rates_are_resampled(
    command, smoke_run: Path, clip: Path, tmp_path: Path
) -> None:
    wave, _ = soundfile.read(clip)
    soundfile.write(tmp_path / "stereo.wav", np.stack([wave, wave], axis=1), 16_000)
    mono, stereo = (
        json.loads(command("units", path, "--run", smoke_run, "--json").stdout)
        for path in (clip, tmp_path / "stereo.wav")
    )
    assert mono["units"] == stereo["units"]
    soundfile.write(tmp_path / "half.wav", wave[::2], 8000)
    half = json.loads(command("units", tmp_path / "half.wav", "--run", smoke_run, "--json").stdout)
    assert abs(sum(half["durations"]) - sum(mono["durations"])) <= 1


def test_a_signal_ends_a_run_at_once_and_it_resumes(
    tmp_path: Path, root: Path, smoke_run: Path, command
) -> None:
    run_dir = tmp_path / "killed"
    where = ("--recipe", "smoke", "--run-dir", str(run_dir))
    process = subprocess.Popen(
        [sys.executable, "-m", "speechgpt_lib.cli", "run", *where, "--only", "03"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while (
        not list(run_dir.glob("01_unit_extraction/corpus*/*.parquet"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, None) and "Traceback" not in errors
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, [p.cmdline() for p in alive]
    again = command("make", "units", *where)
    assert again.returncode == 0, again.stderr
    facts = [
        json.loads((d / "01_unit_extraction" / "units" / "facts.json").read_text())
        for d in (run_dir, smoke_run)
    ]
    assert facts[0]["outputs"] == facts[1]["outputs"]  # the interrupted run ends in the same bytes


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (False, 1)])
def test_doctor_fails_where_a_required_part_is_missing(
    monkeypatch, capsys, ok: bool, status: int
) -> None:
    check = doctor.Check("a part", ok, "something", "more", "everything", required=True)
    optional = doctor.Check("an extra", False, "nothing", "something", "little")
    monkeypatch.setattr(doctor, "diagnose", lambda run_dir, jobs: [check, optional])
    monkeypatch.setattr(sys, "argv", ["speechgpt", "doctor", "--json"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (ended.value.code or 0) == status and [
        c["name"] for c in json.loads(capsys.readouterr().out)
    ] == ["a part", "an extra"]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("latin-1", "→😀.yaml".encode()),
        ("ascii", b"caf\xe9.yaml"),
        ("cp1252", b"\xff\xfe.yaml"),
        ("utf-8", b"caf\xe9.yaml"),
    ],
)
def test_any_name_is_printed_in_any_terminal(code: str, name: bytes, tmp_path: Path) -> None:
    """Once what was asked for fails, and once it works: neither ends in a traceback."""
    environment = os.environ | {"PYTHONIOENCODING": code, "LC_ALL": "C"}
    recipe = (Path(cli.__file__).parents[1] / "recipes" / "smoke.yaml").read_bytes()
    (tmp_path / os.fsdecode(name)).write_bytes(recipe)
    command = [sys.executable, "-m", "speechgpt_lib.cli", "run", "--dry-run", "--recipe"]
    for file, status in ((name, 0), (b"no-" + name, 1)):
        done = subprocess.run([*command, file], env=environment, cwd=tmp_path, capture_output=True)
        assert done.returncode == status and b"Traceback" not in done.stderr, done.stderr
    shown = os.fsdecode(name).encode(code, "backslashreplace")
    assert b"no-" + shown in done.stderr


def test_what_a_library_cannot_name_is_one_line(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["speechgpt", "version"])
    monkeypatch.setattr(cli, "app", lambda **_: "caf\udce9".encode())
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match=r"caf\\udce9 is no utf-8: rename the file or folder"):
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
