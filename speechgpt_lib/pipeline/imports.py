"""Steps that are not made here: what others published or another run made becomes a step's results,
in the same files.

Nothing is fetched and no code of a foreign file runs.  What these functions leave in `job.work`
can't be told from what training leaves there, so every later step goes on as if it had been made
here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.instructions.interchange import import_jsonl
from speechgpt_lib.instructions.sets import read_summary
from speechgpt_lib.language_model.adapters import adopt_adapter
from speechgpt_lib.language_model.families import read_config
from speechgpt_lib.language_model.model import adopt_model, copy_model
from speechgpt_lib.language_model.weights import empty_model
from speechgpt_lib.pipeline.step import Job
from speechgpt_lib.recipes.loading import on_hub
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.recipes.sources import InventoryImport
from speechgpt_lib.runs.artefacts import verify_outputs
from speechgpt_lib.text_to_unit.synthesis import TextToUnit, from_fairseq
from speechgpt_lib.units.foreign import open_inventory
from speechgpt_lib.units.inventory import check_hop, check_inventory
from speechgpt_lib.vocoder.published import vocoder_from_fairseq
from speechgpt_lib.vocoder.synthesis import Vocoder


def data_path(recipe: Recipe, path: str) -> Path:
    """A path of the recipe; relative ones start at `data`."""
    return Path(recipe.data).expanduser() / Path(path).expanduser()


def import_inventory(job: Job) -> dict:
    """An encoder, one of its layers and centroids, or the folder of an inventory."""
    source = job.recipe.imports.inventory
    if isinstance(source, str):
        found = open_inventory(_there(job, source))
    else:
        encoder, centroids = encoder_source(job, source), _there(job, source.centroids)
        found = open_inventory(None, encoder, source.layer, str(centroids))
    expected = job.recipe.units.clusters
    if found.count != expected:
        raise UserError(
            f"the imported inventory has {found.count} units, units.clusters is {expected}"
        )
    found.save(job.work)
    return {"id": found.id, "clusters": found.count}


def encoder_source(job: Job, source: InventoryImport) -> str:
    """Where the encoder is: a file or folder, or else a name on the hub."""
    if source.encoder.endswith(".pt") or data_path(job.recipe, source.encoder).exists():
        return str(_there(job, source.encoder))
    return source.encoder


def import_vocoder(job: Job) -> dict:
    """fairseq's unit HiFi-GAN, or the folder of a vocoder."""
    source, inventory = job.recipe.imports.vocoder, job.inventory()
    if isinstance(source, str):
        found = Vocoder.load(_there(job, source), inventory.id)
    else:
        files = (_there(job, source.checkpoint), _there(job, source.config))
        found = vocoder_from_fairseq(*files, inventory.id)
    _same_count("vocoder", found.unit_count, inventory.count)
    check_hop(inventory, found.generator.hop, "the imported vocoder")
    found.save(job.work)
    return {"units": found.unit_count, "speakers": list(found.speakers)}


def import_text_to_unit(job: Job) -> dict:
    """fairseq's text-to-unit transformer, or the folder of such a model."""
    source, inventory = job.recipe.imports.text_to_unit, job.inventory()
    if isinstance(source, str):
        found = TextToUnit.load(_there(job, source), inventory.id)
    else:
        dictionary = source.dictionary and _there(job, source.dictionary)
        files = (_there(job, source.checkpoint), _there(job, source.tokenizer))
        found = from_fairseq(*files, inventory.id, dictionary)
    _same_count("text-to-unit model", found.vocabulary.unit_count, inventory.count)
    found.save(job.work)
    return {"units": found.vocabulary.unit_count}


def import_cross_modal_set(job: Job) -> dict:
    """The released JSONL of cross-modal instructions, or the folder of such a set."""
    return _import_set(job, job.recipe.imports.cross_modal_set, "cross_modal")


def import_chain_set(job: Job) -> dict:
    """The released JSONL of chains, or the folder of such a set."""
    return _import_set(job, job.recipe.imports.chain_set, "chain")


def import_text_model(job: Job) -> dict:
    """A language model in transformers' format."""
    folder = _model_folder(job, job.recipe.imports.text_model)
    sizes = None if job.recipe.imports.any_size else job.recipe.language_model
    vocabulary = adopt_model(folder, job.work, sizes)
    parameters = empty_model(read_config(folder)).num_parameters()
    return {"held_out_text_accuracy": {}, "parameters": parameters, "vocabulary": vocabulary.size}


def import_stage2(job: Job) -> dict:
    """A model with units in its vocabulary: a run's, or one in transformers' format with the
    released vocabulary."""
    folder, inventory = _model_folder(job, job.recipe.imports.stage2), job.inventory()
    if (folder / "vocabulary.json").is_file():
        vocabulary = copy_model(folder, job.work)
        check_inventory(inventory.id, vocabulary.inventory, f"the model in {folder}")
    else:
        vocabulary = adopt_model(folder, job.work, None, inventory.count, inventory.id)
    return {"vocabulary": vocabulary.size}


def import_stage3(job: Job) -> dict:
    """A LoRA adapter of the stage-2 model of this run."""
    folder = _model_folder(job, job.recipe.imports.stage3)
    return {"trainable_parameters": adopt_adapter(job.path("stage2"), folder, job.work)}


def _model_folder(job: Job, path: str) -> Path:
    """The folder of a model: below `data`, or of the hub's cache, fetched where it isn't there."""
    if (name := on_hub(data_path(job.recipe, ""), path)) is None:
        return _there(job, path)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model"]  # PyTorch's own files would come twice
    how = "give a folder, or get it beforehand by `hf download` where there is a network"
    with reading(f"{path} is not in {job.recipe.data}, and on the hub it", how, "can't be had"):
        return Path(snapshot_download(name[1], revision=name[2], allow_patterns=wanted))


def _there(job: Job, path: str) -> Path:
    """A path that exists, or an error that says what the recipe needs."""
    found = data_path(job.recipe, path)
    if not found.exists():
        needs = f" (it needs {'; '.join(job.recipe.needs)})" if job.recipe.needs else ""
        raise UserError(
            f"recipe {job.recipe.name} imports {found}, which is not there{needs}: give the folder "
            "that holds it by --set data=DIR, or --set imports.NAME=null to make it here"
        )
    if (found / "facts.json").is_file():  # of a run: what it says of its files is compared
        verify_outputs(found)
    return found


def _same_count(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(
            f"the imported {what} is for {found} units, this run's inventory has {expected}"
        )


def _import_set(job: Job, source: str, kind: str) -> dict:
    path, inventory = _there(job, source), job.inventory()
    if path.is_dir():
        summary = read_summary(path)
        check_inventory(summary["inventory"], inventory.id, f"the set step of {job.run.path}")
        own = shutil.ignore_patterns("facts.json")  # of the step that made it
        shutil.copytree(path, job.work, ignore=own, dirs_exist_ok=True)
    else:
        summary = import_jsonl(path, job.work, inventory.id, inventory.count)
    if summary["kind"] != kind:
        raise UserError(f"{path} is a {summary['kind']} set, imports.{kind}_set wants a {kind} one")
    kept = {name: summary[name] for name in ("held_out", "quarantined", "table_hash")}
    counts = summary["statistics"]["counts"]
    named = {"tasks": counts} if kind == "cross_modal" else {"formats": counts, "kinds": {}}
    return {"rows": summary["statistics"]["rows"]} | kept | named
