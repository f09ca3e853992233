"""A plan from what was timed here: few layers tell the time of all of them."""

from __future__ import annotations

import pytest

from speechgpt_lib.errors import UserError
from speechgpt_lib.language_model import planning, timing
from speechgpt_lib.language_model.planning import Shape
from speechgpt_lib.recipes.loading import load_recipe

TINY = {
    "language_model.vocabulary": 320,
    "language_model.hidden_size": 40,
    "language_model.heads": 5,
    "language_model.layers": 12,
    "language_model.feed_forward": 64,
}


def test_times_of_few_layers_and_blocks_are_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds_of(recipe, name, shape: Shape, tokens: int, device: str) -> float:
        return 1.0 + 0.5 * shape.layers + tokens / 1024 * (2.0 + 0.25 * shape.layers)

    monkeypatch.setattr(timing, "seconds_of", seconds_of)
    whole = {"language_model.layers": 30, "stage1.optimization.accumulation": 1}
    recipe = load_recipe("small", whole)
    seconds = timing.measure(recipe, "cpu")
    assert seconds("stage1", 65536) == pytest.approx(16.0 + 64 * 9.5)
    in_parts = timing.measure(load_recipe("small", {"language_model.layers": 30}), "cpu")
    assert in_parts("stage1", 65536) == pytest.approx(4 * 16.0 + 64 * 9.5)
    found = planning.plan(recipe, 1, 24, seconds=seconds)
    steps = recipe.stage1.optimization.steps
    assert found["stages"][0].hours == pytest.approx(steps * (16.0 + 64 * 9.5) / 3600)
    assert found["mfu"] is None and "speed measured here" in planning.render(found)


@pytest.mark.slow
def test_a_short_training_is_timed_in_every_stage() -> None:
    blocks = {f"stage{k}.block": 512 for k in (1, 2, 3)}
    recipe = load_recipe("smoke", TINY | blocks | {"stage3.lora.base": "fp32"})
    seconds = timing.measure(recipe, "cpu")
    for name in ("stage1", "stage2", "stage3"):
        assert 0 < seconds(name, 1024) < seconds(name, 64 * 1024)


def test_what_does_not_fit_is_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "free_memory", lambda device: 10**6)
    with pytest.raises(UserError, match=r"timing stage1 takes .* GB for 2 layers.*--mfu"):
        timing.measure(load_recipe("smoke"), "cpu")
