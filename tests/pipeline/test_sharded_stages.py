"""A stage whose model no process holds whole: read, trained, asked, saved and resumed in parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechgpt_lib.language_model.model import load_model, save_model
from speechgpt_lib.pipeline.graph import order
from speechgpt_lib.pipeline.launch import train_step
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.names import folder_of
from speechgpt_lib.runs.run import Run
from speechgpt_lib.training.log import read_metrics
from tests.builders import tiny_language_model, tiny_vocabulary
from tests.cluster.test_on_slurm import quiet

pytestmark = pytest.mark.slow
LARGE = {"hidden_size": 640, "heads": 10, "feed_forward": 1720}  # 240 MB


def test_a_stage_is_the_same_and_resumes_where_it_was(smoke_run: Path, tmp_path: Path) -> None:
    runs, before = [], Run.open(smoke_run, say=quiet)
    for name, sharding in (("whole", "none"), ("shared", "full")):
        more = {"steps": 30, "precision": "no", "log_every": 1, "sharding": sharding}
        few = {f"stage1.optimization.{key}": value for key, value in more.items()}
        recipe = load_recipe(smoke_run / "recipe.yaml", few)
        shared = {name: name for name in order(recipe, ["stage1"])[:-1]}
        runs.append(before.fork(tmp_path / name, recipe, shared))
    whole, shared = runs

    def stop(row: dict) -> None:
        if row["step"] >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_step(shared, "stage1", 2, on_log=stop)
    (saved,) = (shared.path / f"{folder_of('stage1')}.partial" / "checkpoints").glob("step_*")
    state = json.loads((saved / "state.json").read_text())
    assert len(state["files"]) == 2 and {p.name for p in saved.glob("shard*")} == {*state["files"]}
    ours, one = train_step(shared, "stage1", 2), train_step(whole, "stage1")
    logs = [read_metrics(step.path / "metrics.jsonl") for step in (ours, one)]
    assert ours.metrics["resumed_from"] == state["step"] < 30
    assert [row["step"] for row in logs[0]] == list(range(1, 31))
    for row, other in zip(*logs, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5), row["step"]
    for name in ("unit_perplexity_before", "unit_perplexity"):
        assert ours.metrics[name] == pytest.approx(one.metrics[name], rel=1e-3), name
    models = [load_model(step.path)[0].state_dict() for step in (ours, one)]
    assert models[0].keys() == models[1].keys()
    # Adam divides by a gradient's size: where that is all rounding, so is a step's direction.
    close = [torch.isclose(models[0][n], models[1][n], atol=1e-4) for n in models[0]]
    assert min(part.float().mean().item() for part in close) > 0.99
    assert not list(ours.path.glob("shard*")) and load_index(ours.path) == {*models[0]} - tied(one)


def load_index(folder: Path) -> set[str]:
    return {*json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]}


def tied(step) -> set[str]:
    config = json.loads((step.path / "config.json").read_text())
    return {"lm_head.weight"} if config["tie_word_embeddings"] else set()


def in_two(code: str, *arguments: object) -> list[str]:
    """What two processes print that run some code together."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(str(arguments[0])).parent / "two.py"
    script.write_text(code)
    command = [sys.executable, "-m", *launcher, str(script), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment |= {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


LOAD = """
import os, sys, threading
from pathlib import Path
import psutil, torch
from accelerate import PartialState
from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model.model import load_sharded
from speechgpt_lib.training.parts import own_part
# What loading imports is not what it loads.
import torch.distributed.checkpoint, torch.distributed.fsdp, torch.distributed.tensor
import transformers.models.llama.modeling_llama
place, me = PartialState(cpu=True).device, psutil.Process()
def memory():  # without the pages of files, which the system takes back when it likes
    found = me.memory_info()
    return found.rss - found.shared
before, most, over = memory(), [0], threading.Event()
def watch():
    while not over.wait(0.002):
        most[0] = max(most[0], memory())
threading.Thread(target=watch, daemon=True).start()
for folder in sys.argv[1:]:
    try:
        scorer, _ = load_sharded(Path(folder), place, "no")
        held = sum(own_part(p).nbytes for p in scorer.parameters())
        told = f"{held}/{most[0] - before}"
    except UserError as error:
        told = str(error).replace(" ", "_")
    os.write(1, f"{told}\\n".encode())  # at once: two processes write
over.set()
torch.distributed.destroy_process_group()
"""


def saved_model(folder: Path, **shape: int) -> int:
    """Writes a model of twelve layers; returns its bytes."""
    model = tiny_language_model(tiny_vocabulary(), layers=12, **shape)
    save_model(model, tiny_vocabulary(), folder)
    return sum(p.nbytes for p in model.parameters())


def test_no_process_holds_the_model_whole(tmp_path: Path) -> None:
    size = saved_model(tmp_path / "model", **LARGE)
    for answer in in_two(LOAD, tmp_path / "model"):
        held, most = map(int, answer.split("/"))
        assert held < 0.55 * size and most < 0.85 * size, (held / size, most / size)


def test_wrong_weights_are_named_in_every_process(tmp_path: Path) -> None:
    name, found = "model.layers.3.mlp.up_proj.weight", []
    for wrong in ("nan", "missing", "shape"):
        saved_model(tmp_path / wrong)
        path = tmp_path / wrong / "model.safetensors"
        tensors = load_file(path)
        weight = tensors.pop(name)
        if wrong == "nan":
            weight[-1, -1] = torch.nan
        if wrong != "missing":
            tensors[name] = weight if wrong == "nan" else weight[:-1].contiguous()
        save_file(tensors, path)
        found.append(tmp_path / wrong)
    answers = in_two(LOAD, *found)
    assert len(answers) == 2 * 3 and all("up_proj.weight" in answer for answer in answers), answers
    assert sum("weight_holds_numbers_that_are_not_finite" in answer for answer in answers) == 2
