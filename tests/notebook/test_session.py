import random

import numpy as np
import pytest
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.notebook.session import require, show_results, start
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
    assert (session.recipe.name, session.recipe.seed, session.device, session.force) == (
        "lab",
        3,
        "cpu",
        False,
    )
    assert Run.open(session.run.path).recipe == session.recipe
    assert session.media("01_units") == session.run.path / "notebooks/media/01_units"


def test_random_numbers_start_at_the_seed(tmp_path):
    def draw(seed):
        start("lab", str(tmp_path), seed=seed)
        return random.random(), np.random.random(), torch.rand(1).item()

    assert draw(1) == draw(1)
    assert not set(draw(1)) & set(draw(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "lap"}, "unknown recipe 'lap'"),
        ({"device": "gpu"}, "unknown device 'gpu': choose auto, cpu"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_parameters(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        start(**({"recipe": "lab", "run_dir": str(tmp_path)} | options))


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
    with pytest.raises(
        UserError, match="run notebook 01_unit_extraction.ipynb first, or `speechgpt run"
    ):
        require(session, "01_unit_extraction/hubert")
    show_results(session, "01_unit_extraction")
    assert "nothing in 01_unit_extraction yet" in capsys.readouterr().out
    made = session.run.step("01_unit_extraction/hubert", make, settings={})
    assert (
        require(session, "01_unit_extraction/hubert")["01_unit_extraction/hubert"].key == made.key
    )
    assert "found    01_unit_extraction/hubert (made 20" in capsys.readouterr().out
    show_results(session, "01_unit_extraction")
    shown = capsys.readouterr().out
    assert "units.txt" in shown and made.facts["outputs"]["units.txt"]["sha256"][:8] in shown
