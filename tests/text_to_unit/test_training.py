"""It learns its pairs, a batch depends on the step alone, and a killed run ends as if whole."""

import numpy as np
import pytest
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.text_to_unit.training import PairBatches, train_text_to_unit
from speechgpt_lib.training.log import read_metrics
from speechgpt_lib.training.options import TrainingOptions
from tests.text_to_unit.conftest import UNIT_COUNT, settings, units_of


def test_learns_four_pairs_exactly(trained, pairs):
    model, summary, work = trained
    made = model.generate([text for text, _ in pairs])
    assert [units.tolist() for units in made] == [units.tolist() for _, units in pairs]
    assert summary["accuracy"] == 1.0
    log = read_metrics(work / "metrics.jsonl")
    assert log[-1]["loss"] < 0.1 < log[0]["loss"]
    assert model.inventory == "feed"


def test_a_stopped_run_ends_in_the_same_weights(pairs, tmp_path):
    def run(work, on_log=None):
        short = settings(12, dropout=0.1)
        optimization = short.optimization.model_copy(update={"log_every": 1})
        short = short.model_copy(update={"optimization": optimization})
        options = TrainingOptions(seed=3, on_log=on_log)
        return train_text_to_unit(pairs, UNIT_COUNT, short, work, options, inventory_id="feed")

    def stop(row):
        if row["step"] == 7:
            import signal

            signal.raise_signal(signal.SIGTERM)

    whole, _ = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match="after step 7"):
        run(tmp_path / "stopped", stop)
    resumed, summary = run(tmp_path / "stopped")
    assert summary["resumed_from"] == 7
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.fixture
def encoded():
    return [([5] * (n // 2 + 1), [4] * n) for n in range(1, 40)]


def test_batches_keep_the_budget_and_show_every_pair_once_an_epoch(encoded):
    batches = PairBatches(encoded, 80, seed=0)
    seen, step = [], 0
    while len(seen) < len(encoded):
        sources, targets = batches(step)
        assert targets.numel() <= 80 or len(targets) == 1
        assert len(sources) == len(targets)
        seen += (targets != 0).sum(1).tolist()
        step += 1
    assert sorted(seen) == [len(target) for _, target in encoded]
    assert step < len(encoded) / 2  # short ones share a batch


def test_batches_depend_on_the_step_alone(encoded):
    going = PairBatches(encoded, 80, seed=0)
    forwards = [going(step)[1] for step in range(30)]
    assert torch.equal(PairBatches(encoded, 80, seed=0)(29)[1], forwards[29])
    assert torch.equal(going(3)[1], forwards[3])  # backwards too
    other = PairBatches(encoded, 80, seed=1)
    assert any(not torch.equal(other(step)[1], forwards[step]) for step in range(30))


def test_processes_share_each_batch(encoded):
    batches = PairBatches(encoded, 80, seed=0)
    for step in range(20):
        lengths = [(batches(step, rank, 3)[1] != 0).sum(1) for rank in range(3)]
        shares = sorted(int(n) for share in lengths for n in share if n)
        assert shares == sorted((batches(step)[1] != 0).sum(1).tolist())


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "no pairs"),
        ([("a dog", units_of("a dog")), ("a cat", np.zeros(0, int))], "'a cat' has no units"),
        ([("", units_of("a"))], "no text to speak"),
        ([("a dog", np.array([3, UNIT_COUNT]))], "out of range"),
        ([("a dog", np.arange(1100) % UNIT_COUNT)], "1101 units, the model reads 1024"),
    ],
)
def test_pairs_that_cannot_be_learned(pairs, message, tmp_path):
    rest = UNIT_COUNT, settings(1), tmp_path, TrainingOptions(seed=0)
    with pytest.raises(UserError, match=message):
        train_text_to_unit(pairs, *rest, inventory_id="feed")
