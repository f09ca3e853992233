"""Recipes: the four that ship are valid, and a wrong one is refused with the key and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import BUILT_IN, dump_recipe, load_recipe


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_recipes_are_valid_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_published_figures_stand_in_release_and_paper() -> None:
    release, paper = load_recipe("release"), load_recipe("paper")
    for recipe in (release, paper):
        assert (recipe.units.layer, recipe.units.clusters) == (11, 1000)
        assert recipe.vocoder.upsample_rates == (5, 4, 4, 2, 2) and recipe.vocoder.channels == 512
        assert (recipe.stage3.lora.rank, recipe.stage3.lora.alpha, recipe.stage3.lora.targets) == (8, 16, ("q_proj", "v_proj"))
        assert recipe.needs
    assert paper.stage1.tokens_per_batch == 768 * 1024 and paper.stage1.optimization.steps == 900
    assert release.stage2.optimization.learning_rate == 2e-5


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("unitz",), 1, "unknown key 'unitz'; allowed here: .*units"),
        (("units", "hubert", "layerz"), 1, "layerz.*allowed here:.*layers"),
        (("units", "clusters"), "many", "units.clusters"),
        (("units", "layer"), 9, "has 4 layers"),
        (("vocoder", "upsample_rates"), [5, 4, 4, 2, 3], "320"),
        (("corpus", "held_out_voice"), "Female2", "one role"),
        (("instructions", "chain_shares"), {"speech_speech": 0.5}, "add up to 1"),
        (("stage2", "replay"), {"music": 0.1}, "replay"),
        (("seed",), -1, "seed"),
    ],
)
def test_a_wrong_recipe_names_key_and_cure(tmp_path: Path, path: tuple, value: object, expected: str) -> None:
    values = yaml.safe_load(dump_recipe(load_recipe("lab")))
    section = values
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=expected) as error:
        load_recipe(tmp_path / "wrong.yaml")
    assert "\n" not in str(error.value)


def test_unknown_names_and_broken_yaml_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="smoke, lab, release, paper"):
        load_recipe("big")
    (tmp_path / "bad.yaml").write_text("a: [1,")
    with pytest.raises(UserError, match="not valid YAML"):
        load_recipe(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="expected keys"):
        load_recipe(tmp_path / "list.yaml")


def test_seed_can_be_replaced() -> None:
    assert load_recipe("smoke", seed=7).seed == 7
