"""Recipes: those that ship are valid, and a wrong one is refused with the key and what is
allowed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.loading import BUILT_IN, dump_recipe, load_recipe
from speechgpt_lib.recipes.schema import DurationSettings
from speechgpt_lib.recipes.sources import Imports


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
        assert not recipe.vocoder.inverse_stft_hop and not recipe.vocoder.frame_blocks
        assert recipe.vocoder.durations == DurationSettings()
        assert (recipe.stage3.lora.rank, recipe.stage3.lora.alpha, recipe.stage3.lora.targets) == (
            8,
            16,
            ("q_proj", "v_proj"),
        )
        assert recipe.needs
    assert paper.stage1.tokens_per_batch == 768 * 1024 and paper.stage1.optimization.steps == 900
    assert (
        paper.stage2.tokens_per_batch == 1536 * 512 and paper.stage3.tokens_per_batch == 128 * 1024
    )
    assert (
        release.stage1.tokens_per_batch == 3 * 8 * 8 * 1024
        and release.stage2.tokens_per_batch == 6 * 12 * 8 * 512
    )
    assert release.stage3.tokens_per_batch == 12 * 4 * 8 * 1024
    assert release.stage2.optimization.learning_rate == 2e-5
    assert (release.instructions.templates, paper.instructions.templates) == ("release", "paper")


def test_lab_needs_nothing_and_runs_on_a_cpu() -> None:
    for recipe in (load_recipe("lab"), load_recipe("smoke")):
        assert not recipe.needs and recipe.device == "cpu" and recipe.processes == 1
        assert recipe.imports == Imports() and {c.reader for c in recipe.corpora} == {"lab"}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("unitz",), 1, "unknown key 'unitz'; allowed here: .*units"),
        (("units", "hubert", "layerz"), 1, "layerz.*allowed here:.*layers"),
        (("units", "clusters"), "many", "units.clusters"),
        (("units", "layer"), 9, "has 4 layers"),
        (("vocoder", "upsample_rates"), [3], "multiply to 480, they must make 320"),
        (("vocoder", "inverse_stft_hop"), 0, "multiply to 2, they must make 320"),
        (("vocoder", "inverse_stft_hop"), 5, "inverse_stft_hop is 5, it must be even"),
        (("corpora", 0, "held_out_voice"), "Female2", "one role"),
        (("instructions", "chain_shares"), {"speech_speech": 0.5}, "add up to 1"),
        (("stage2", "replay"), {"music": 0.1}, "replay"),
        (("seed",), -1, "seed"),
        (("seed",), 1.5, "seed: .*integer"),
        (("device",), "tpu", "device: .*'auto', 'cpu', 'cuda' or 'mps'.*found 'tpu'"),
        (
            ("stage1", "optimization", "precision"),
            "fp8",
            "stage1.optimization.precision: .*'no' or 'bf16'",
        ),
        (("instructions", "templates"), "own", "instructions.templates: .*'paper' or 'release'"),
        (("instructions", "templates"), "release", "templates: release has speech_speech only"),
        (
            ("instructions", "chain_shares"),
            {"speech_speech": 1.5, "text_text": -0.5},
            "chain_shares.text_text: .*or equal to 0",
        ),
        (("corpora", 0, "aligned_voices"), "Male1", "corpora.0.aligned_voices"),
        (("stage1", "optimization", "steps"), 0, "stage1.optimization.steps: .*greater than 0"),
        (("stage1", "optimization", "betas"), [0.9, 1.5], "betas.1: .*less than 1"),
        (("stage2", "tokens_per_batch"), 0, "stage2.tokens_per_batch: .*greater than 0"),
        (("stage2", "replay"), {"text": -1}, "stage2.replay.text"),
        (("stage3", "lora", "rank"), 0, "stage3.lora.rank: .*greater than 0"),
        (
            ("units", "hubert", "heads"),
            3,
            "units.hubert: hidden_size is 160 with 3 heads, it must be a multiple of 3",
        ),
        (
            ("units", "hubert", "hidden_size"),
            100,
            "units.hubert: hidden_size is 100, it must be a multiple of 8",
        ),
        (
            ("units", "hubert", "conv_widths"),
            [32, 64],
            "units.hubert: conv_widths has 2 widths, it must have 7",
        ),
        (("text_to_unit", "heads"), 5, "text_to_unit: hidden_size is 96 with 5 heads"),
        (
            ("language_model", "heads"),
            5,
            "language_model: hidden_size is 192 with 5 heads, it must be a multiple of 10",
        ),
        (
            ("language_model", "heads"),
            4,
            "language_model: induction_start needs at least 5 heads.*false",
        ),
    ],
)
def test_a_wrong_recipe_names_key_and_cure(
    tmp_path: Path, path: tuple, value: object, expected: str
) -> None:
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
    with pytest.raises(UserError, match="no recipe file at"):
        load_recipe(tmp_path / "absent.yaml")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    values = yaml.safe_load(dump_recipe(load_recipe("lab")))
    del values["stage2"]["optimization"]["steps"]
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"stage2\.optimization\.steps: Field required"):
        load_recipe(tmp_path / "wrong.yaml")


def test_many_mistakes_are_counted_and_the_first_ones_shown(tmp_path: Path) -> None:
    values = yaml.safe_load(dump_recipe(load_recipe("lab"))) | {f"k{n}": 1 for n in range(5)}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"'k0'.*'k2'.*and 2 more"):
        load_recipe(tmp_path / "wrong.yaml")


OPTIONAL = ("matrix_learning_rate", "most_hours")


def numbers_in(values: object, path: str = "") -> list[str]:
    """The dotted keys of all numbers in the values of a recipe."""
    if isinstance(values, dict | list):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        return [key for k, v in items for key in numbers_in(v, f"{path}.{k}")]
    return [path[1:]] if isinstance(values, int | float) and not isinstance(values, bool) else []


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "inf", "nan", "1e999"])
def test_no_number_of_a_recipe_may_be_infinite(value: object) -> None:
    recipe = load_recipe("release")
    keys = numbers_in(recipe.model_dump(mode="json"))
    assert len(keys) > 100
    keys += [f"{s}.optimization.{k}" for s in ("stage1", "stage3") for k in OPTIONAL]
    keys += ["stage2.replay.text"] + (["corpora.0.options.x"] if isinstance(value, float) else [])
    for key in keys:
        with pytest.raises(UserError, match=".".join(key.split(".")[:2])):
            load_recipe("release", {key: value})


def test_a_recipe_may_build_on_another() -> None:
    lab, natural = load_recipe("lab"), load_recipe("lab-natural")
    assert natural.corpora[0].target_voice == "joe" and natural.needs
    same = {"corpora": lab.corpora, "name": lab.name, "summary": lab.summary, "needs": ()}
    same["units"] = lab.units  # joe tells no phones, by which the encoder's targets would be found
    assert natural.model_copy(update=same) == lab
    assert natural.corpora[0].model_copy(update={"target_voice": "Female2"}) == lab.corpora[0]


def test_a_file_that_extends_a_file_starts_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nextends: b.yaml\nset: {seed: 3}\n")
    (tmp_path / "b.yaml").write_text(
        "name: b\nextends: smoke\nset: {units.clusters: 30, seed: 2}\n"
    )
    recipe = load_recipe(tmp_path / "a.yaml", {"units.layer": 2})
    assert (recipe.name, recipe.seed, recipe.units.clusters) == ("a", 3, 30)
    assert recipe.units.layer == 2 and recipe.vocoder == load_recipe("smoke").vocoder


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: nobody", "unknown recipe .*nobody', which .*a.yaml extends: choose smoke, lab"),
        ("extends: gone.yaml", "no recipe file at .*gone.yaml, which .*a.yaml extends"),
        ("extends: a.yaml", "a.yaml extends itself"),
        ("extends: [lab]", "a.yaml: `extends` or `set` is of another type"),
        ("extends: lab\nset: [seed]", "a.yaml: `extends` or `set` is of another type"),
        (
            "extends: lab\nseed: 3",
            "a.yaml extends another recipe.* 'seed': change keys of lab under",
        ),
        (
            "extends: lab\nset: {corpora.7.root: x}",
            "a.yaml.*'7' is no place in a list of 1|'7' is no",
        ),
        ("extends: lab\nset: {sed: 3}", "a.yaml: unknown key 'sed'"),
        ("extends: lab\nset: {seed: many}", "a.yaml: seed: .*integer"),
    ],
)
def test_what_can_not_be_built_on_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"name: a\n{text}\n")
    with pytest.raises(UserError, match=words) as error:
        load_recipe(tmp_path / "a.yaml")
    assert "\n" not in str(error.value)
