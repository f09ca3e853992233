"""--set KEY=VALUE: put into the recipe before it is validated, so that a mistake costs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.loading import dump_recipe, load_recipe, on_hub, parse_override

LIBRI = {"reader": "librispeech", "root": "LibriSpeech", "held_out": 0.1}


def changed(*texts: str):
    """The smoke recipe with the texts of several --set."""
    return load_recipe("smoke", dict(map(parse_override, texts)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=100", 100),
        ("a=1.0e-3", 1e-3),
        ("a=null", None),
        ("a=", None),
        ("a=true", True),
        ("a=text", "text"),
        ("a=x=y", "x=y"),
        ('a="5"', "5"),
        ("a=[1, b]", [1, "b"]),
        ("a={k: [1], l: m}", {"k": [1], "l": "m"}),
        (" a =1", 1),
    ],
)
def test_values_are_yaml(text: str, value: object) -> None:
    key, found = parse_override(text)
    assert (key, found) == (text.partition("=")[0].strip(), value)
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["", "stage1", "=5", " =5"])
def test_what_is_no_key_and_value_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected KEY=VALUE, such as stage2.optimization.steps"):
        parse_override(text)


def test_a_value_that_is_no_yaml_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"--set a: '\[1,' is no YAML value") as error:
        parse_override("a=[1,")
    assert "\n" not in str(error.value)


def test_any_key_can_be_set() -> None:
    recipe = changed(
        "stage2.optimization.steps=7",
        "seed=3",
        "corpora.0.test_sentences=12",
        "corpora.0.aligned_voices=[Male1, Male3]",
        "vocoder.resblock_dilations.0=[2]",
        "stage1.replay={units: 0.5}",
        "stage3.lora.base=bf16",
        "imports.vocoder={checkpoint: g, config: c}",
        "imports.chain_set=chains.jsonl",
        "generation.speech=20",
    )
    assert recipe.stage2.optimization.steps == 7 and recipe.seed == 3
    assert recipe.corpora[0].test_sentences == 12
    assert recipe.corpora[0].aligned_voices == ("Male1", "Male3")
    assert recipe.vocoder.resblock_dilations == ((2,),)
    assert recipe.stage1.replay == {"units": 0.5} and recipe.stage3.lora.base == "bf16"
    assert recipe.imports.vocoder.checkpoint == "g" and recipe.imports.chain_set == "chains.jsonl"
    assert recipe.generation.speech == 20
    assert changed().generation.speech == 320, "the file and its defaults stay as they are"


def test_null_takes_back_what_the_recipe_imports() -> None:
    recipe = load_recipe("release", {"imports.vocoder": None, "imports.chain_set": None})
    assert recipe.imports.vocoder is recipe.imports.chain_set is None
    assert recipe.imports.text_model == "llama-7b"


def test_a_list_of_corpora_replaces_the_recipes() -> None:
    text = "[{reader: librispeech, root: LibriSpeech, held_out: 0.1}, {reader: vctk, root: V}]"
    recipe = changed(f"corpora={text}", "data=/speech")
    assert [corpus.reader for corpus in recipe.corpora] == ["librispeech", "vctk"]
    assert recipe.corpora[0].role == ("aligned",) and recipe.data == "/speech"
    assert changed(f"corpora={text}", "corpora.1.role=voice").corpora[1].role == ("voice",)
    assert load_recipe("smoke", {"corpora": [LIBRI]}).corpora[0].root == "LibriSpeech"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stage4.steps=1", "unknown key 'stage4'; allowed here: .*stage3"),
        ("stage2.step=1", "unknown key 'stage2.step'; allowed here: .*optimization"),
        ("units.hubert.optimization.step=1", "unknown key 'units.hubert.optimization.step'"),
        ("corpora.0.splits=[a]", "unknown key 'corpora.0.splits'; allowed here: .*test_sentences"),
        ("stage2.optimization.steps=many", "stage2.optimization.steps: .*integer.*found 'many'"),
        ("stage2.optimization.steps=0", "stage2.optimization.steps: .*greater than 0"),
        ("stage2.optimization.steps=", "stage2.optimization.steps: .*integer"),
        ("units.layer=3", "units.layer is 3 but the encoder has 2 layers"),
        ("device=tpu", "device: .*found 'tpu'"),
        ("corpora=[]", "corpora: .*at least 1"),
        ("corpora=lab", "corpora: .*found 'lab'"),
        ("corpora=[{reader: switchboard, root: x}]", "corpora.0: .*librispeech"),
        ("corpora=[{reader: vctk}]", "corpora.0.root: Field required"),
        ("corpora.0.reader=vctk", "unknown key 'corpora.0.target_voice'; allowed here: .*root"),
        ("corpora=[{reader: vctk, root: x, role: [test, voice]}]", "role test stands alone"),
        ("corpora=[{reader: vctk, root: x, role: singing}]", "corpora.0.role.0: .*'aligned'"),
        ("corpora=[{reader: vctk, root: x, held_out: 1.5}]", "corpora.0.held_out: .*less than 1"),
        ("imports.vocoder={checkpoint: g}", "imports.vocoder.config: Field required"),
        ("imports.music=x", "unknown key 'imports.music'; allowed here: .*stage3, .*vocoder"),
        ("generation.speech=0", "generation.speech: .*greater than 0"),
        ("corpora.1.root=x", "can't set corpora.1.root: '1' is no place in a list of 1"),
        ("corpora.x.root=x", "can't set corpora.x.root: 'x' is no place"),
        ("units.layer.a=1", "can't set units.layer.a: units.layer is '1', which has no keys"),
        ("seed=-1", "seed: .*greater than or equal to 0.*found '-1'"),
    ],
)
def test_a_mistake_names_key_value_and_what_is_allowed(text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as error:
        changed(text)
    assert "\n" not in str(error.value)


def test_overrides_of_a_file_of_ones_own(tmp_path: Path) -> None:
    values = yaml.safe_load(dump_recipe(load_recipe("smoke")))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values | {"name": "mine"}))
    assert load_recipe(tmp_path / "mine.yaml", {"seed": 7}).seed == 7
    assert load_recipe("smoke", {"seed": 7}).seed == 7
    with pytest.raises(UserError, match="mine.yaml: unknown key 'x'"):
        load_recipe(tmp_path / "mine.yaml", {"x": 7})


def _levels(first: str, more: str) -> str:
    """A page in which every name stands for nine of the one before."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{k}: &a{k} {more % ', '.join([f'*a{k - 1}'] * 9)}" for k in range(1, 12)]
    return "\n".join(lines)


HOSTILE = {
    "an alias bomb": _levels("[x, x]", "[%s]"),
    "a merge bomb": _levels("{x: 1}", "{<<: [%s]}"),
    "what contains itself": "corpora: &a [*a]",
    "a tag that is none": "seed: !!int 'x'",
    "another tag": "seed: !!float ''",
    "bytes that are none": "name: !!binary '?'",
    "a day that is none": "name: 9999-99-99",
    "a date as a name": "name: 2020-01-01",
    "a date as a key": "2020-01-01: 3",
    "nothing as a key": "null: 3",
    "an empty key": "'': 3",
    "a list as a key": "[1, 2]: 3",
    "many digits": "seed: " + "1" * 20_000,
    "many hexadecimal digits": "seed: 0x" + "f" * 20_000,
    "a deep list": "corpora: " + "[" * 20_000,
    "a deep list that ends": "corpora: " + "[" * 3000 + "]" * 3000,
    "deep keys": "{a: " * 3000,
    "a call": "name: !!python/object/apply:os.system [true]",
    "numbers as sections": "stage1: 3",
    "infinity": "seed: .inf",
    "no number": "seed: .nan",
    "two documents": "--- a\n--- b",
    "a NUL": "name: \x00",
    "a long name": "name: " + "x" * 900_000,
    "a large file": "# " + "x" * 2_000_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_recipes_are_refused_in_one_short_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(HOSTILE[kind])
    with pytest.raises(UserError, match="theirs.yaml") as found:
        load_recipe(path)
    assert len(str(found.value)) <= 1000


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if "key" not in kind])
def test_hostile_values_of_set_are_refused(kind: str) -> None:
    with pytest.raises(UserError):
        load_recipe("smoke", dict([parse_override(f"corpora.0.seed={HOSTILE[kind]}")]))


def test_a_few_names_for_what_stands_elsewhere_are_read(tmp_path: Path) -> None:
    values = dump_recipe(load_recipe("smoke"))
    path = tmp_path / "mine.yaml"
    path.write_text(values.replace("seed: ", "seed: &number ", 1))
    assert load_recipe(path) == load_recipe("smoke")


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    text = dump_recipe(load_recipe("smoke"))
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8-sig")
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe("smoke")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-16")
    with pytest.raises(UserError, match=r"mine.yaml is not UTF-8 .*save it as UTF-8"):
        load_recipe(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M", ("HuggingFaceTB/SmolLM2-135M", None)),
        ("owner/name@0a1b2c", ("owner/name", "0a1b2c")),
        ("here/llama", None),  # a folder beside
        ("llama-7b", None),
        ("../owner/name", None),
        ("a/b/c", None),
        ("owner/g_00500000.pt", None),
    ],
)
def test_names_on_the_hub_are_told_from_paths(tmp_path: Path, path: str, name) -> None:
    (tmp_path / "here").mkdir()
    found = on_hub(tmp_path, path)
    assert (found and found.groups()) == name
