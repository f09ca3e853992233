"""How a stage hands its rows to the loop: packed or not, long rows counted, checkpointing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention

from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model import stages
from speechgpt_lib.language_model.packing import PackedBatches
from speechgpt_lib.language_model.rows import EpochBatches, TokenRow
from speechgpt_lib.recipes.schema import StageSettings
from speechgpt_lib.training.options import TrainingOptions
from tests.builders import few_steps, tiny_language_model, tiny_vocabulary

OPTIONS = TrainingOptions(seed=0)


def rows(count: int = 60, longest: int = 60) -> list[TokenRow]:
    rng = random.Random(0)
    return [
        TokenRow(
            [1, *(rng.randrange(3, 300) for _ in range(rng.randrange(8, longest)))], [1.0] * 70
        )
        for _ in range(count)
    ]


def trimmed() -> list[TokenRow]:
    return [TokenRow(row.ids, row.weights[: len(row.ids)]) for row in rows()]


def settings(**changes) -> StageSettings:
    return StageSettings(
        **({"tokens_per_batch": 256, "block": 64, "optimization": few_steps(4)} | changes)
    )


@pytest.fixture
def fitted(tmp_path: Path):
    def fit(**changes):
        model, stage = tiny_language_model(tiny_vocabulary()), settings(**changes)
        plan = lambda epoch, step: trimmed()  # noqa: E731
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return model, stages.fit(model, plan, stage, folder, OPTIONS, frozenset({7}))

    return fit


@pytest.mark.parametrize("packing", ["none", "isolated", "concatenated"])
def test_every_way_of_packing_trains(fitted, packing: str) -> None:
    _, summary = fitted(packing=packing)
    assert summary["steps"] == 4 and summary["loss"] < 7 and "rows" not in summary


def test_the_kinds_of_batches() -> None:
    kinds = {"none": EpochBatches, "isolated": PackedBatches, "concatenated": PackedBatches}
    for packing, kind in kinds.items():
        stage = settings(packing=packing)
        assert type(stages.batches_of(lambda e, s: trimmed(), stage, 0, frozenset())[0]) is kind


def test_long_rows_are_counted_in_the_summary(fitted) -> None:
    _, summary = fitted(block=40, too_long="drop")
    _, cut = fitted(block=40, too_long="truncate", packing="isolated")
    long = sum(len(row) > 40 for row in trimmed())
    assert summary["rows"] == {"kept": 60 - long, "dropped": long, "truncated": 0}
    assert cut["rows"] == {"kept": 60 - long, "dropped": 0, "truncated": long}
    with pytest.raises(UserError, match="too_long: drop or truncate"):
        fitted(block=40)


def test_checkpointing_changes_nothing_but_memory(fitted) -> None:
    computed: list[int] = []

    def count(layer, arguments, output) -> None:
        computed[-1] += 1

    handle = nn.modules.module.register_module_forward_hook(
        lambda m, a, o: count(m, a, o) if isinstance(m, LlamaAttention) else None
    )
    computed.append(0)
    plain, summary = fitted(packing="isolated")
    computed.append(0)
    again, other = fitted(packing="isolated", checkpointing=True)
    handle.remove()
    assert computed[1] == 2 * computed[0] > 0, "every layer is computed a second time"
    assert other["loss"] == pytest.approx(summary["loss"], abs=1e-5)
    assert all(
        torch.allclose(a, b, atol=1e-5)
        for a, b in zip(plain.parameters(), again.parameters(), strict=True)
    )
    assert not again.is_gradient_checkpointing


def rows_with_a_bad_one(bad: float) -> list[TokenRow]:
    """One row whose weight makes its loss no number."""
    found = [TokenRow(row.ids, row.weights, f"asr-{k:03}") for k, row in enumerate(trimmed())]
    found[7] = TokenRow(found[7].ids, [bad] * len(found[7]), "asr-007")
    return found


@pytest.mark.parametrize("packing", ["none", "isolated"])
def test_a_row_that_breaks_the_loss_is_named(tmp_path: Path, packing: str) -> None:
    stage = settings(packing=packing, optimization=few_steps(40))
    model, plan = (
        tiny_language_model(tiny_vocabulary()),
        stages.always(rows_with_a_bad_one(float("inf"))),
    )
    named = r"\(row asr-007 \(\d+ tokens\)\); the last good checkpoint is kept"
    with pytest.raises(UserError, match=rf"became (inf|nan) at step \d+ in .* {named}"):
        stages.fit(model, plan, stage, tmp_path, OPTIONS)
    assert all(p.isfinite().all() for p in model.parameters())


def test_weights_at_fault_are_told_from_rows_at_fault(tmp_path: Path) -> None:
    stage, model = settings(packing="isolated"), tiny_language_model(tiny_vocabulary())
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(
        UserError, match=r"step 1 in .* \(every row of its batch, so the weights are at fault"
    ):
        stages.fit(model, lambda e, s: trimmed(), stage, tmp_path, OPTIONS)


def test_the_summary_counts_tokens_without_padding(fitted) -> None:
    _, summary = fitted(packing="concatenated", optimization=few_steps(3))
    assert 3 * 256 * 0.9 < summary["tokens"] <= 3 * 256 and summary["mfu"] > 0
    assert summary["tokens_per_second"] == pytest.approx(
        summary["tokens"] / summary["seconds"], rel=0.01
    )
