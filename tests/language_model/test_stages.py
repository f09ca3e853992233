"""How a stage hands its rows to the loop: packed or side by side, long rows counted, activations kept or computed again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model import stages
from speechgpt_lib.language_model.packing import PackedBatches
from speechgpt_lib.language_model.rows import EpochBatches, TokenRow
from speechgpt_lib.recipes.schema import StageSettings
from tests.builders import few_steps, tiny_language_model, tiny_vocabulary


def rows(count: int = 60, longest: int = 60) -> list[TokenRow]:
    rng = random.Random(0)
    return [TokenRow([1, *(rng.randrange(3, 300) for _ in range(rng.randrange(8, longest)))], [1.0] * 70) for _ in range(count)]


def trimmed() -> list[TokenRow]:
    return [TokenRow(row.ids, row.weights[: len(row.ids)]) for row in rows()]


def settings(**changes) -> StageSettings:
    return StageSettings(**({"tokens_per_batch": 256, "block": 64, "optimization": few_steps(4)} | changes))


@pytest.fixture
def fitted(tmp_path: Path):
    def fit(**changes):
        model, stage = tiny_language_model(tiny_vocabulary()), settings(**changes)
        plan = lambda epoch, step: trimmed()  # noqa: E731
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return model, stages.fit(model, plan, stage.tokens_per_batch, stage.optimization, folder, seed=0, stage=stage, ends=frozenset({7}))

    return fit


@pytest.mark.parametrize("packing", ["none", "isolated", "concatenated"])
def test_every_way_of_packing_trains(fitted, packing: str) -> None:
    _, summary = fitted(packing=packing)
    assert summary["steps"] == 4 and summary["loss"] < 7 and "rows" not in summary


def test_the_kinds_of_batches() -> None:
    kinds = {"none": EpochBatches, "isolated": PackedBatches, "concatenated": PackedBatches}
    for packing, kind in kinds.items():
        assert type(stages.batches_of(lambda e, s: trimmed(), 256, 0, settings(packing=packing), frozenset())[0]) is kind
    assert type(stages.batches_of(lambda e, s: trimmed(), 256, 0, None, frozenset())[0]) is EpochBatches


def test_long_rows_are_counted_in_the_summary(fitted) -> None:
    _, summary = fitted(block=40, too_long="drop")
    _, cut = fitted(block=40, too_long="truncate", packing="isolated")
    long = sum(len(row) > 40 for row in trimmed())
    assert summary["rows"] == {"kept": 60 - long, "dropped": long, "truncated": 0}
    assert cut["rows"] == {"kept": 60 - long, "dropped": 0, "truncated": long}
    with pytest.raises(UserError, match="too_long: drop or truncate"):
        fitted(block=40)


def test_checkpointing_changes_nothing_but_memory(fitted) -> None:
    plain, summary = fitted(packing="isolated")
    again, other = fitted(packing="isolated", checkpointing=True)
    assert other["loss"] == pytest.approx(summary["loss"], abs=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain.parameters(), again.parameters(), strict=True))
    assert not again.is_gradient_checkpointing
