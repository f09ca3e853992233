"""What others made, in the place of a step: the steps after it can't tell, and a file that doesn't
fit is refused."""

from __future__ import annotations

import json
import operator
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.numpy import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.llama_reference import train_tokenizer
from speechgpt_lib.dialogue.speechgpt import SpeechGPT
from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions import sets
from speechgpt_lib.instructions.chain import build_chain
from speechgpt_lib.instructions.cross_modal import Pairing, build_cross_modal
from speechgpt_lib.instructions.interchange import export_jsonl
from speechgpt_lib.language_model.adapters import add_lora, attach_adapter, save_adapter
from speechgpt_lib.language_model.model import load_model, save_model
from speechgpt_lib.pipeline.graph import make, make_all, order, plan
from speechgpt_lib.pipeline.instructions import voicing
from speechgpt_lib.pipeline.step import Job
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.recipes.schema import LoraSettings
from speechgpt_lib.runs.run import Run, Step
from speechgpt_lib.units.extract import read_units
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import KMeansUnits
from speechgpt_lib.vocoder.published import vocoder_from_fairseq
from speechgpt_lib.vocoder.synthesis import Vocoder
from tests.builders import (
    change_of_old_logits,
    tiny_inventory,
    tiny_language_model,
    tiny_vocabulary,
)
from tests.instructions.tables import Spelling, dialogues, unit_rows, write_table
from tests.language_model.test_pretrained import SHAPE, fast_tokenizer, published
from tests.units.test_features import make_encoder, noise
from tests.units.test_foreign import kmeans_of, write
from tests.vocoder.test_published import CONFIG, written

COUNT, PIECES = 20, 1500
NewRun = Callable[..., Run]


@pytest.fixture
def new_run(tmp_path: Path) -> NewRun:
    """A smoke run in tmp_path/run that imports what is named (dotted keys below `imports.`)."""

    def build(clusters: int = COUNT, /, **imports: object) -> Run:
        changes = {f"imports.{name}": source for name, source in imports.items()}
        others = {"units.clusters": clusters, "data": str(tmp_path)}
        return Run.create(tmp_path / "run", load_recipe("smoke", changes | others), lambda _: None)

    return build


@pytest.fixture
def with_inventory(new_run: NewRun, tmp_path: Path) -> NewRun:
    """The same with a finished inventory of random centroids, imported as well."""

    def build(clusters: int = COUNT, /, **imports: object) -> Run:
        folder = tmp_path / f"inventory-{clusters}"
        if not folder.is_dir():
            tiny_inventory(clusters=clusters).save(folder)
        run = new_run(clusters, inventory=folder.name, **imports)
        make(run, "inventory")
        return run

    return build


def inventory_of(run: Run) -> UnitInventory:
    return UnitInventory.load(run.require("inventory").path)


def imported(run: Run, name: str) -> Step:
    """The step, which was planned as an import and is made as one."""
    assert plan(run, [name])[-1].state == "imported"
    step = make(run, name)
    assert step.facts["settings"]["imported"] and make(run, name).reused
    assert plan(run, [name])[-1].state == "reused"
    return step


def refused(run: Run, name: str, words: str) -> None:
    """One line with these words; what was imported before is kept."""
    before = run.find(name)
    with pytest.raises(UserError, match=words) as error:
        make(run, name)
    assert "\n" not in str(error.value) and run.find(name) == before


# --- 01 the inventory -----------------------------------------------------------------------------
def test_the_folder_of_an_inventory(with_inventory: NewRun, tmp_path: Path) -> None:
    run = with_inventory()
    step = run.require("inventory")
    assert step.metrics == {"id": tiny_inventory().id, "clusters": COUNT}
    assert inventory_of(run).id == step.metrics["id"]


def libri(root: Path, count: int = 8) -> list[dict]:
    """A corpus of noise in LibriSpeech's layout, a part of it held out, as the recipe names it."""
    chapter = root / "LibriSpeech" / "dev-clean" / "3" / "4"
    chapter.mkdir(parents=True)
    for k in range(count):
        soundfile.write(chapter / f"3-4-{k:04d}.flac", 0.3 * noise(8000 + 900 * k, k), 16_000)
    lines = (f"3-4-{k:04d} GOOD DAY NUMBER {k}\n" for k in range(count))
    (chapter / "3-4.trans.txt").write_text("".join(lines))
    return [{"reader": "librispeech", "root": "LibriSpeech", "held_out": 0.5}]


def test_fairseqs_encoder_and_centroids_give_units_of_a_corpus(
    new_run: NewRun, reference: Path, tmp_path: Path
) -> None:
    files = reference / "fixtures" / "fairseq"
    encoder, centroids = files / "hubert/tiny_mhubert.pt", files / "kmeans/tiny_L3_km16.bin"
    source = {"encoder": str(encoder), "layer": 3, "centroids": str(centroids)}
    run = new_run(16, inventory=source)
    recipe = load_recipe(run.path / "recipe.yaml", {"corpora": libri(tmp_path)})
    run = Run.create(run.path, recipe, say=lambda line: None)
    imported(run, "inventory")
    expected = json.loads((files / "kmeans/units.json").read_text())
    inventory = inventory_of(run)
    found = inventory.encode(np.load(files / "hubert/wav.npy"))[0].tolist()
    assert found in expected.values() and inventory.count == 16
    (units,) = make_all(run, ["units"])
    rows = list(read_units(units.path, inventory.id))
    assert len(rows) == 8 and {row.split for row in rows} == {"train", "test"}
    wave = noise(8000, 0) * 0.3
    assert abs(len(rows[0].frames) - (1 + (len(wave) - 400) // 320)) <= 10
    assert not run.find("hubert")


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_transformers_encoder_with_centroids(new_run: NewRun, tmp_path: Path, kind: str) -> None:
    encoder, centroids = make_encoder(), kmeans_of(COUNT).centroids
    encoder.save_pretrained(tmp_path / "hubert")
    if kind == "npy":
        np.save(tmp_path / "km.npy", centroids)
    else:
        save_file({"centroids": centroids}, tmp_path / "km.safetensors")
    run = new_run(inventory={"encoder": "hubert", "layer": 2, "centroids": f"km.{kind}"})
    step = imported(run, "inventory")
    assert step.metrics["id"] == UnitInventory.create(encoder, 2, KMeansUnits(centroids)).id


def test_an_encoder_alone_gets_centroids_of_the_runs_speech(
    new_run: NewRun, tmp_path: Path
) -> None:
    make_encoder().save_pretrained(tmp_path / "hubert")
    run = new_run(8, inventory={"encoder": "hubert", "layer": 2})
    recipe = load_recipe(run.path / "recipe.yaml", {"corpora": libri(tmp_path)})
    run = Run.create(run.path, recipe, say=lambda line: None)
    assert order(recipe, ["inventory"]) == ["corpus", "inventory"]
    make(run, "corpus")
    step, inventory = imported(run, "inventory"), inventory_of(run)
    assert (inventory.count, inventory.layer, step.metrics["id"]) == (8, 2, inventory.id)
    assert inventory.encode(noise(9000))[0].max() < 8
    other = Run.create(run.path, load_recipe(run.path / "recipe.yaml", {"units.clusters": 5}))
    assert plan(other, ["inventory"])[-1].state == "imported", "its k-means is made anew"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"layer": 9}, "layer 9"),
        ({"centroids": "nine.npy"}, "has 9 units, units.clusters is 20"),
        ({"centroids": "narrow.npy"}, "centroids have width 31 but layer 2 gives 32"),
        ({"centroids": "hubert.pt"}, "hubert.pt holds no array, expected finite centroids"),
        ({"encoder": "km.npy.pt"}, "km.npy.pt"),
        ({"centroids": "absent.npy"}, "absent.npy, which is not there.*--set data=DIR.*=null"),
        ({"encoder": "absent.pt"}, "absent.pt, which is not there.*--set data=DIR.*=null"),
    ],
)
def test_an_inventory_that_does_not_fit_is_refused(
    new_run: NewRun, tmp_path: Path, source: dict, words: str
) -> None:
    write(tmp_path / "hubert.pt", make_encoder())
    np.save(tmp_path / "km.npy", kmeans_of(COUNT).centroids)
    shutil.copy(tmp_path / "km.npy", tmp_path / "km.npy.pt")
    np.save(tmp_path / "nine.npy", kmeans_of(9).centroids)
    np.save(tmp_path / "narrow.npy", kmeans_of(COUNT).centroids[:, 1:])
    good = {"encoder": "hubert.pt", "layer": 2, "centroids": "km.npy"}
    refused(new_run(inventory=good | source), "inventory", words)


# --- 02 the vocoder -------------------------------------------------------------------------------
def test_fairseqs_vocoder_and_the_folder_of_one(with_inventory: NewRun, tmp_path: Path) -> None:
    checkpoint, config = written(tmp_path / "published")
    names = {"checkpoint": "published/vocoder.pt", "config": "published/config.json"}
    run = with_inventory(12, vocoder=names)
    step = imported(run, "vocoder")
    identity = inventory_of(run).id
    expected = vocoder_from_fairseq(checkpoint, config, identity).synthesize([1, 2, 3])
    assert np.array_equal(Vocoder.load(step.path, identity).synthesize([1, 2, 3]), expected)
    assert step.metrics == {"units": 12, "speakers": []}

    shutil.copytree(step.path, tmp_path / "ours")
    again = imported(with_inventory(12, vocoder="ours"), "vocoder")
    assert np.array_equal(Vocoder.load(again.path, identity).synthesize([1, 2, 3]), expected)


@pytest.mark.slow
def test_a_vocoder_that_does_not_fit_is_refused(with_inventory: NewRun, tmp_path: Path) -> None:
    checkpoint, _ = written(tmp_path)
    names = {"checkpoint": "vocoder.pt", "config": "config.json"}
    words = "vocoder is for 12 units, this run's inventory has 20"
    refused(with_inventory(vocoder=names), "vocoder", words)
    swapped = {"checkpoint": "config.json", "config": "config.json"}
    refused(with_inventory(12, vocoder=swapped), "vocoder", "config.json")
    absent = names | {"checkpoint": "g_00500000"}
    missing = "g_00500000, which is not there.*--set data=DIR.*=null to make it here"
    refused(with_inventory(12, vocoder=absent), "vocoder", missing)
    vocoder_from_fairseq(checkpoint, tmp_path / "config.json", "another").save(tmp_path / "other")
    refused(with_inventory(12, vocoder="other"), "vocoder", "another")
    refused(with_inventory(12, vocoder="inventory-12"), "vocoder", "vocoder.json")


def test_a_changed_file_is_noticed(with_inventory: NewRun, tmp_path: Path) -> None:
    checkpoint, _ = written(tmp_path)
    run = with_inventory(12, vocoder={"checkpoint": "vocoder.pt", "config": "config.json"})
    before = imported(run, "vocoder")
    tensors = torch.load(checkpoint)["generator"]
    tensors["dict.weight"] += 1.0
    torch.save({"generator": tensors}, checkpoint)
    after = imported(run, "vocoder")
    assert after.key != before.key and not after.reused
    assert after.facts["outputs"] != before.facts["outputs"]


# --- 03 and 04 the sets and the text-to-unit model ------------------------------------------------
def build_set(kind: str, folder: Path, inventory: str) -> Path:
    if kind == "cross_modal":
        table = write_table(folder / "table", unit_rows(40), inventory=inventory)
        known = {"inventory_id": inventory, "unit_count": COUNT}
        build_cross_modal([table], folder / kind, Pairing(seed=0, held_out_share=0.1), **known)
    else:
        voice, facts = Spelling(inventory), sets.SetFacts("chain", inventory, COUNT, "paper")
        shares = {"speech_speech": 0.5, "text_text": 0.5}
        build_chain(dialogues(30), folder / kind, voice, voice, shares, 0, facts)
    return folder / kind


@pytest.mark.parametrize("kind", ["cross_modal", "chain"])
def test_a_set_as_jsonl_and_as_a_folder(with_inventory: NewRun, tmp_path: Path, kind: str) -> None:
    name, identity = f"{kind}_set", tiny_inventory().id
    built = build_set(kind, tmp_path, identity)
    what = operator.attrgetter(
        *({"cross_modal": ("task", "text")}.get(kind, ("instruction", "response")))
    )
    rows = [what(row) for row in sets.read_set(built, identity)]
    export_jsonl(built, tmp_path / "x.jsonl")
    for source in ("x.jsonl", kind):
        step = imported(with_inventory(**{name: source}), name)
        pairs = [what(row) for row in sets.read_set(step.path, identity)]
        assert len(pairs) == len(rows) == step.metrics["rows"]
        if source == kind:
            assert pairs == rows
        counts = step.metrics["tasks" if kind == "cross_modal" else "formats"]
        assert sum(counts.values()) == len(rows) and step.metrics["table_hash"]
        assert "facts.json" not in step.facts["outputs"]


def test_a_set_that_does_not_fit_is_refused(with_inventory: NewRun, tmp_path: Path) -> None:
    identity = tiny_inventory().id
    export_jsonl(build_set("chain", tmp_path, identity), tmp_path / "chain.jsonl")
    for source in ("chain.jsonl", "chain"):
        run, words = with_inventory(cross_modal_set=source), "is a chain set, .*cross_modal_set"
        refused(run, "cross_modal_set", words)
    build_set("cross_modal", tmp_path / "other", "another")
    refused(with_inventory(cross_modal_set="other/cross_modal"), "cross_modal_set", "another")
    (tmp_path / "text.jsonl").write_text("no json\n")
    refused(with_inventory(chain_set="text.jsonl"), "chain_set", "text.jsonl")
    refused(with_inventory(chain_set="inventory-20"), "chain_set", "set .*inventory-20 is missing")
    missing = "absent.jsonl, which is not there.*--set data=DIR.*=null"
    refused(with_inventory(chain_set="absent.jsonl"), "chain_set", missing)


def test_rows_beyond_the_inventory_go_to_quarantine(with_inventory: NewRun, tmp_path: Path) -> None:
    good = "[Human]: Say it. This is input: a dog<eoh> [SpeechGPT]: <sosp><1><eosp><eoa> "
    rows = [{"prefix": "", "plain_text": good.replace("<1>", f"<{u}>")} for u in (1, 19, 20, 999)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = imported(with_inventory(cross_modal_set="x.jsonl"), "cross_modal_set")
    assert step.metrics["rows"] == 2 and step.metrics["quarantined"] == {"unit out of range": 2}


def test_fairseqs_text_to_unit_model_and_the_folder_of_one(
    with_inventory: NewRun, reference: Path, tmp_path: Path
) -> None:
    files = reference / "fixtures" / "fairseq" / "text2unit"
    names = {"checkpoint": str(files / "text2unit.pt"), "tokenizer": str(files / "spm.model")}
    dictionary = {"dictionary": str(files / "binary" / "dict.unit.txt")}
    run = with_inventory(50, text_to_unit=names | dictionary)
    step = imported(run, "text_to_unit")
    assert step.metrics == {"units": 50}
    sentence = json.loads((files / "expected.json").read_text())["sentences"][2]
    job = Job(run, tmp_path, {"text_to_unit": step, "inventory": run.require("inventory")})
    (made,) = voicing(job, "text_to_unit").generate([sentence["text"]])  # as the chain set asks it
    assert " ".join(f"<{unit}>" for unit in made) == sentence["translate"]

    shutil.copytree(step.path, tmp_path / "ours")
    assert imported(with_inventory(50, text_to_unit="ours"), "text_to_unit").metrics["units"] == 50
    words = "text-to-unit model is for 50 units, this run's inventory has 20"
    refused(with_inventory(text_to_unit=names), "text_to_unit", words)
    wrong = names | {"tokenizer": str(files / "text2unit.pt")}
    refused(with_inventory(50, text_to_unit=wrong), "text_to_unit", "text2unit.pt")
    absent = names | {"checkpoint": "text2unit.pt"}
    words = "text2unit.pt, which is not there.*--set data=DIR"
    refused(with_inventory(50, text_to_unit=absent), "text_to_unit", words)


# --- 05 to 08 the language models -----------------------------------------------------------------
@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaMA as transformers saves one."""
    folder = tmp_path_factory.mktemp("published") / "llama"
    published(folder, PIECES)
    (folder / "tokenizer.model").write_bytes(train_tokenizer(PIECES, 2000))
    return folder


def like(run: Run, shape: dict) -> Run:
    """The run with a text model of this shape in its recipe."""
    changes = {f"language_model.{name}": value for name, value in shape.items()}
    return Run.create(run.path, load_recipe(run.path / "recipe.yaml", changes), run.say)


def test_a_llama_gets_units_and_markers(with_inventory: NewRun, llama: Path) -> None:
    run = with_inventory(text_model=str(llama))
    refused(run, "text_model", "language_model.hidden_size is 80, the model in .* has 32")
    run = like(run, SHAPE | {"vocabulary": PIECES, "induction_start": False})
    step = make(run, "text_model")
    assert step.metrics["vocabulary"] == PIECES and step.metrics["parameters"] > 10_000
    expanded = make(run, "expanded_model")
    model, vocabulary = load_model(expanded.path)
    assert vocabulary.inventory == inventory_of(run).id and vocabulary.size > PIECES + COUNT
    assert change_of_old_logits(run) < 1e-4
    refused(with_inventory(text_model="inventory-20"), "text_model", "no config.json in")
    refused(with_inventory(text_model="absent"), "text_model", "not there.*--set data=DIR.*=null")
    # As a name on the hub, of which nothing is in the cache and no network is here.
    offline = "owner/name is not in .*, and on the hub it can't be had.*give a folder"
    refused(with_inventory(text_model="owner/name"), "text_model", offline)


def test_a_model_of_any_size_and_family(with_inventory: NewRun, tmp_path: Path) -> None:
    """Where the recipe takes the model as it is, its sizes are its own."""
    torch.manual_seed(0)
    tokenizer = fast_tokenizer()
    pieces = tokenizer.get_vocab_size()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    ends = {"bos_token_id": pieces - 2, "eos_token_id": pieces - 1}
    config = Qwen3Config(vocab_size=pieces + 3, tie_word_embeddings=True, **sizes, **heads, **ends)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    tokenizer.save(str(tmp_path / "qwen" / "tokenizer.json"))
    run = with_inventory(text_model="qwen")
    refused(run, "text_model", "language_model.hidden_size is 80")
    changed = load_recipe(run.path / "recipe.yaml", {"imports.any_size": True})
    run = Run.create(run.path, changed, run.say)
    assert make(run, "text_model").metrics["vocabulary"] == pieces + 3
    model, vocabulary = load_model(make(run, "expanded_model").path)
    assert isinstance(model, Qwen3ForCausalLM) and vocabulary.unit_count == COUNT
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_stage2_model_of_ones_own_and_an_adapter_of_it(
    with_inventory: NewRun, tmp_path: Path
) -> None:
    vocabulary = tiny_vocabulary(COUNT, tiny_inventory().id)
    original = tiny_language_model(vocabulary)
    save_model(original, vocabulary, tmp_path / "model")
    adapted = add_lora(tiny_language_model(vocabulary), LoraSettings(rank=2), seed=3)
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    save_adapter(adapted, tmp_path / "adapter")

    run = with_inventory(stage2="model", stage3="adapter")
    stage2 = imported(run, "stage2")
    assert stage2.metrics == {"vocabulary": vocabulary.size}
    for name, tensor in load_model(stage2.path)[0].state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name])
    stage3 = imported(run, "stage3")
    assert stage3.metrics == {"trainable_parameters": trainable}
    attach_adapter(load_model(stage2.path)[0], stage3.path)  # as the dialogue does

    other = tiny_language_model(vocabulary, hidden_size=40, heads=5, feed_forward=48)
    save_adapter(add_lora(other, LoraSettings(rank=2), seed=3), tmp_path / "narrow")
    run = with_inventory(stage2="model", stage3="narrow")
    with pytest.raises(UserError, match=r"lora_A.weight has shape \(2, 40\), expected \(2, 80\)"):
        make(run, "stage3")
    with pytest.raises(UserError, match="adapter"):
        make(with_inventory(stage2="model", stage3="model"), "stage3")


def test_a_stage2_model_in_the_released_layout(
    with_inventory: NewRun, llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(llama, tmp_path / "cm", ignore=shutil.ignore_patterns("model*", "config*"))
    published(tmp_path / "cm", PIECES + COUNT + 6)
    run = with_inventory(stage2="cm")
    step = imported(run, "stage2")
    model, vocabulary = load_model(step.path)
    assert vocabulary.inventory == inventory_of(run).id and vocabulary.text_size == PIECES
    assert model.config.vocab_size == PIECES + COUNT + 6


def test_a_stage2_model_that_does_not_fit_is_refused(
    with_inventory: NewRun, llama: Path, tmp_path: Path
) -> None:
    vocabulary = tiny_vocabulary(COUNT, "another")
    save_model(tiny_language_model(vocabulary), vocabulary, tmp_path / "other")
    refused(with_inventory(stage2="other"), "stage2", "another")
    words = f"has {PIECES} embeddings; .* units and markers are .* of another inventory"
    refused(with_inventory(stage2=str(llama)), "stage2", words)
    refused(with_inventory(stage2="inventory-20"), "stage2", "no config.json")
    refused(with_inventory(stage2="absent"), "stage2", "not there.*--set data=DIR.*=null")


@pytest.mark.slow
def test_what_was_imported_learns_and_talks(new_run: NewRun, tmp_path: Path) -> None:
    """Inventory, vocoder, chains and stage 2 from outside; stage 3 is trained on them here."""
    inventory = tiny_inventory()
    inventory.save(tmp_path / "inventory")
    written(tmp_path, CONFIG | {"num_embeddings": COUNT})
    export_jsonl(build_set("chain", tmp_path, inventory.id), tmp_path / "chain.jsonl")
    vocabulary = tiny_vocabulary(COUNT, inventory.id)
    save_model(tiny_language_model(vocabulary), vocabulary, tmp_path / "model")
    vocoder = {"checkpoint": "vocoder.pt", "config": "config.json"}
    sources = {"chain_set": "chain.jsonl", "stage2": "model", "vocoder": vocoder}
    run = new_run(inventory="inventory", **sources)
    recipe = load_recipe(run.path / "recipe.yaml", {"corpora": libri(tmp_path)})
    run = Run.create(run.path, recipe, say=lambda line: None)
    needed = {"corpus", "inventory", "stage2", "units", "chain_set", "stage3", "vocoder"}
    assert set(order(recipe, ["stage3", "vocoder"])) == needed
    stage3, _ = make_all(run, ["stage3", "vocoder"])
    assert stage3.metrics["steps"] == 4 and stage3.metrics["chain_accuracy"] is None
    speechgpt = SpeechGPT.load(run)
    reply = speechgpt.ask(noise(16_000))
    assert reply.wave is None or len(reply.wave)
    assert len(speechgpt.speak(np.array([1, 2, 19]))) >= 3 * 320
    assert isinstance(speechgpt.transcribe_many([noise(9000)])[0].text, str)
