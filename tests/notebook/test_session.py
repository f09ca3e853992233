import json
import os
import random
import re

import numpy as np
import pytest
import torch

from speechgpt_lib.corpora.speech import Phone
from speechgpt_lib.corpora.tables import Utterance, write_shard
from speechgpt_lib.errors import UserError
from speechgpt_lib.notebook import session
from speechgpt_lib.notebook.session import (
    ANSWER,
    QUESTION,
    Clip,
    Session,
    show_results,
    start,
    write_librispeech,
)
from speechgpt_lib.pipeline.graph import notebook_steps, order
from speechgpt_lib.recipes.loading import dump_recipe, load_recipe
from speechgpt_lib.runs.run import Run
from speechgpt_lib.training.devices import resolve_device


def make(work):
    (work / "units.txt").write_text("<sosp><1><2><eosp>")
    return {"count": 2}


def test_start_opens_the_run_and_says_what_matters(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    session = start("lab", "../runs/lab", seed=3)
    said = capsys.readouterr().out
    assert f"torch {torch.__version__}" in said and f"{torch.get_num_threads()} threads" in said
    assert "recipe   lab, seed 3" in said and "results  ../runs/lab\n" in said
    assert session.run.path.samefile(tmp_path / "../runs/lab")
    recipe = session.run.recipe
    assert (recipe.name, recipe.seed, session.device, session.force) == ("lab", 3, "cpu", False)
    assert Run.open(session.run.path).recipe == recipe
    assert session.media("01_units") == session.run.path / "notebooks/media/01_units"


def test_random_numbers_start_at_the_seed(tmp_path):
    def draw(seed):
        start("lab", str(tmp_path / str(seed)), seed=seed)
        return random.random(), np.random.random(), torch.rand(1).item()

    assert draw(1) == draw(1)
    assert not set(draw(1)) & set(draw(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "lap"}, "unknown recipe 'lap'"),
        ({"device": "gpu"}, "device: Input should be 'auto', 'cpu', .*found 'gpu'"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_parameters(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        start(**({"recipe": "lab", "run_dir": str(tmp_path)} | options))


@pytest.mark.parametrize("slip", [{"recipe": "smoke"}, {"seed": 7}, {"recipe": "smoke", "seed": 7}])
def test_a_slip_in_the_first_cell_leaves_a_run_alone(tmp_path, slip):
    made = start("lab", str(tmp_path)).run.step("corpus", make, settings={})
    with pytest.raises(UserError, match=r"belongs to name: lab, seed: .*`run_dir`.*`force = True`"):
        start(**({"recipe": "lab", "run_dir": str(tmp_path)} | slip))
    assert Run.open(tmp_path).recipe == load_recipe("lab")
    assert Run.open(tmp_path).require("corpus").key == made.key
    forced = start(**({"recipe": "lab", "run_dir": str(tmp_path), "force": True} | slip))
    assert Run.open(tmp_path).recipe == forced.run.recipe != load_recipe("lab")


@pytest.mark.parametrize("started_in", ["", "notebooks", "runs", "elsewhere"])
def test_by_default_results_lie_beside_the_notebooks(tmp_path, monkeypatch, started_in):
    clone = tmp_path / "clone"
    for folder in ("notebooks", "runs", "elsewhere"):
        (clone / folder).mkdir(parents=True)
    (clone / "notebooks" / "00_start_here.ipynb").touch()
    (clone / "00_start_here.ipynb").touch()  # papermill's output, where it was started
    monkeypatch.setattr(session.speechgpt_lib, "__file__", str(clone / "speechgpt_lib" / "x.py"))
    monkeypatch.chdir(clone / started_in)
    assert start("smoke").run.path == clone / "runs" / "smoke"
    assert start("lab").run.path == clone / "runs" / "lab"


def test_in_a_run_to_read_only_cells_write_elsewhere(tmp_path, monkeypatch, capsys):
    session = start("smoke", str(tmp_path))
    made = session.run.step("hubert", make, settings={})
    monkeypatch.setattr(os, "access", lambda path, mode: tmp_path not in [path, *path.parents])
    session = start("smoke", str(tmp_path))
    assert "to read only: what cells write" in capsys.readouterr().out
    assert session.run.step("hubert", None, settings={}).key == made.key
    media = session.media("01_unit_extraction")
    media.mkdir(parents=True)
    assert tmp_path not in media.parents and media == session.media("01_unit_extraction")


def test_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(
        UserError, match='device "cuda" is not available here; this machine has cpu'
    ):
        resolve_device("cuda")


def test_require_and_results(tmp_path, capsys):
    session = start("lab", str(tmp_path))
    needed = "run notebook 01_unit_extraction.ipynb first, or `speechgpt run"
    with pytest.raises(UserError, match=needed):
        session.require("hubert")
    show_results(session, "01_unit_extraction")
    assert "nothing in 01_unit_extraction yet" in capsys.readouterr().out
    made = session.run.step("hubert", make, settings={})
    assert session.require("hubert")["hubert"].key == made.key
    assert "found    01_unit_extraction/hubert (made 20" in capsys.readouterr().out
    show_results(session, "01_unit_extraction")
    shown = capsys.readouterr().out
    assert "units.txt" in shown and made.facts["outputs"]["units.txt"]["sha256"][:8] in shown


def test_a_cell_says_why_it_leaves_out_what_is_not_made_here(tmp_path, capsys):
    changes = {"imports.stage2": "of-others", "imports.vocoder": "its-folder"}
    run = Run.create(tmp_path, load_recipe("smoke", changes))
    session = Session(run, "cpu", force=False)
    said = {name: (session.makes(name), capsys.readouterr().out) for name in ("units", "vocoder")}
    assert said["units"] == (True, "")
    assert said["vocoder"] == (
        False,
        "left out: vocoder was imported, and came without its training\n",
    )
    assert not session.makes("stage1") and "no stage1 is made" in capsys.readouterr().out


def test_in_the_lab_the_running_question_is_spoken(tmp_path):
    session = start("smoke", str(tmp_path))
    clip = session.example()
    assert (clip.text, clip.answer, clip.voice) == (QUESTION, ANSWER, session.lab.target_voice)
    assert clip.wave.dtype == np.float32 and 3 < len(clip.wave) / 16_000 < 8
    labels = "".join(label for _, _, label in clip.phones)
    assert labels and clip.phones[-1][1] <= len(clip.wave) / 16_000 + 1e-3
    voices = session.voices("no")
    assert list(voices) == ["answers you", "understood", "held out"]
    assert len({clip.voice for clip in voices.values()}) == 3


@pytest.fixture
def recorded(tmp_path):
    """The session of a recipe whose corpora are recordings: four to learn from, one held out."""
    rng = np.random.default_rng(0)
    waves = [(0.1 * rng.standard_normal(16_000 * k)).astype(np.float32) for k in (1, 2, 3, 1, 4)]
    clips = [Clip(wave, f"sentence {len(wave)}", "1") for wave in waves]
    write_librispeech(tmp_path / "LibriSpeech", clips, broken=3)
    reader = {"reader": "librispeech", "root": "LibriSpeech"}
    learned = reader | {"splits": ["dev-clean"], "role": ["aligned", "voice"], "decode": True}
    corpora = [
        learned | {"max_bad_share": 0.5},
        reader | {"splits": ["test-clean"], "role": "test"},
    ]
    changes = {"data": str(tmp_path), "corpora": corpora}
    recipe = tmp_path / "recorded.yaml"
    recipe.write_text(dump_recipe(load_recipe("smoke", changes)))
    return start(str(recipe), str(tmp_path / "run"))


def test_elsewhere_a_held_out_recording_is_the_example(recorded):
    assert recorded.lab is None
    clip = recorded.example()
    assert (clip.text, clip.answer, clip.phones) == ("sentence 64000", "", ())
    assert len(clip.wave) == 64_000 and recorded.example().text == clip.text
    assert [len(c.wave) for c in recorded.clips(3, "train")] == [16_000, 32_000, 48_000]
    assert [c.text for c in recorded.voices().values()] == ["sentence 16000"]
    assert recorded.corpora().held_out_questions(1) == []


def test_clips_are_spread_over_the_table(tmp_path):
    session = start("smoke", str(tmp_path))
    wave, phones = np.zeros(800, np.float32), [Phone(0.0, 0.05, "a")]
    spoken = [
        Utterance(f"{k:02d}", "a", "", "speech", "Male1", "test", 0.05, wave=wave, phones=phones)
        for k in range(12)
    ]

    def write(work):
        write_shard(work / "utterances-00000.parquet", spoken)

    session.run.step("corpus", write, settings={})
    clips = session.clips(4)
    assert len(clips) == 4 and clips[0].phones == ((0.0, pytest.approx(0.05), "a"),)


@pytest.mark.parametrize("recipe", ["smoke", "recorded"])
def test_what_a_notebook_asks_for_is_there_when_it_runs_beside_others(recipe, root, request):
    """`--jobs` begins a notebook once `notebook_steps`, and all that these need, are finished."""
    known = (
        load_recipe("smoke") if recipe == "smoke" else request.getfixturevalue(recipe).run.recipe
    )
    chosen = re.compile(r'if "(\w+)" in order\(run\.recipe\):\n    session\.make\("\1"\)')
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        code = chosen.sub(lambda found: found[0] * (found[1] in order(known)), code)
        required = re.findall(r"session\.require\(([^)]*)", code)
        asked = {name for call in required for name in re.findall(r'"(\w+)"', call)}
        asked |= set(re.findall(r'session\.make\("(\w+)"', code))
        if recipe == "recorded" and "session.example()" in code:
            asked.add("corpus")
        assert asked <= set(order(known, notebook_steps(known, path.stem))), path.name
