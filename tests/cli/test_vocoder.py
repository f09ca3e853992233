"""`speechgpt speak` and `speechgpt vocoder import` as a user types them: strings, streams, foreign
inventories, mistakes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from speechgpt_lib.vocoder.published import vocoder_from_fairseq
from tests.vocoder.test_published import written

pytestmark = pytest.mark.slow
UNITS = "<sosp>" + "".join(f"<{k % 12}>" for k in range(40)) + "<eosp>"


@pytest.fixture(scope="module")
def published(tmp_path_factory, speechgpt):
    """A published vocoder made ours: its folder, and the same one read directly."""
    base = tmp_path_factory.mktemp("published")
    checkpoint, config = written(base)
    done = speechgpt(
        "vocoder",
        "import",
        checkpoint,
        config,
        "--inventory",
        "inventory-a",
        "-o",
        base / "ours",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "folder": str(base / "ours"),
        "units": 12,
        "speakers": [],
        "inventory": "inventory-a",
    }
    return base / "ours", vocoder_from_fairseq(checkpoint, config, "inventory-a")


def test_an_imported_vocoder_speaks(command, published, tmp_path):
    folder, vocoder = published
    done = command(
        "speak",
        UNITS,
        "--vocoder",
        folder,
        "--inventory",
        "inventory-a",
        "-o",
        tmp_path / "x.wav",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    wave, expected = soundfile.read(tmp_path / "x.wav")[0], vocoder.synthesize(np.arange(40) % 12)
    assert len(wave) == len(expected) and np.abs(wave - expected).max() < 1e-4
    assert json.loads(done.stdout)["seconds"] == round(len(wave) / 16_000, 3)
    fast = command(
        "speak", UNITS, "--vocoder", folder, "--speed", 2, "-o", tmp_path / "fast.flac", "--json"
    )
    assert abs(json.loads(fast.stdout)["seconds"] - len(wave) / 32_000) <= 0.01


def stream_into(path, folder) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "speechgpt_lib.cli",
        "speak",
        "-",
        "--stream",
        "--vocoder",
        str(folder),
        "-o",
        str(path),
    ]
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.getcwd()}, **pipes)


def test_a_stream_of_characters_sounds_the_same_in_the_end(published, tmp_path):
    folder, vocoder = published
    process = stream_into(tmp_path / "x.wav", folder)
    for k in range(0, len(UNITS), 7):
        process.stdin.write(UNITS[k : k + 7])
        process.stdin.flush()
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "wrote" in out, errors
    wave, expected = soundfile.read(tmp_path / "x.wav")[0], vocoder.synthesize(np.arange(40) % 12)
    assert len(wave) == len(expected) and np.abs(wave - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["<sosp><1><12><eosp>"], "unit id 12 is out of range"),
        (["<sosp><1><eosp>", "--inventory", "inventory-b"], "inventory-b"),
        (["<sosp><1><eosp>", "--stream"], "standard input"),
        (["nothing of the kind"], "no unit at"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(command, published, tmp_path, arguments, words):
    done = command("speak", *arguments, "--vocoder", published[0], "-o", tmp_path / "x.wav")
    assert done.returncode == 1
    assert words in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("end", "words"), [("<99><eosp>", "out of range"), ("", "without <eosp>")])
def test_a_stream_that_breaks_leaves_nothing(command, published, tmp_path, monkeypatch, end, words):
    monkeypatch.setattr(sys, "stdin", io.StringIO("<sosp>" + "<3>" * 60 + end))
    out = tmp_path / "x.wav"
    done = command("speak", "-", "--stream", "--vocoder", published[0], "-o", out)
    assert words in done.stderr and done.stderr.count("\n") == 1 and not done.stdout
    assert done.returncode == 1 and not list(tmp_path.iterdir())


def test_an_import_that_fails_leaves_nothing(command, tmp_path):
    checkpoint, config = written(tmp_path / "files")
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    done = command(
        "vocoder", "import", checkpoint, config, "--inventory", "a", "-o", tmp_path / "ours"
    )
    assert done.returncode == 1 and "whole" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "ours").exists()
