"""Encoders and centroids that others trained → a unit inventory of this project.

`hubert_from_fairseq` reads HuBERT of fairseq (`.pt`), such as mHuBERT, without fairseq and without
running the pickle; `hubert_from_transformers` a folder or a name on the hub; `kmeans_from` files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import transformers
import yaml
from safetensors.numpy import load_file

from speechgpt_lib.errors import UserError, reading, reads
from speechgpt_lib.foreign.checkpoints import (
    Stub,
    check_unpacked,
    file_kind,
    load_torch,
    load_torch_checkpoint,
    plain,
)
from speechgpt_lib.foreign.joblib_files import load_joblib
from speechgpt_lib.foreign.tensors import check_described, check_finite, check_sizes, check_tensors
from speechgpt_lib.rates import SAMPLE_RATE
from speechgpt_lib.runs.artefacts import read_json
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import KMeansUnits

CENTROIDS = ("centroids", "cluster_centers_", "arr_0")  # names of theirs in a file that has names
FAIRSEQ = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def open_inventory(
    run: Path | None = None,
    encoder: str | None = None,
    layer: int | None = None,
    kmeans: str | None = None,
) -> UnitInventory:
    """The inventory of a run or a folder, or of an encoder, one of its layers, and centroids.

    Raises UserError where both or neither are given, a part is missing, or the parts don't fit.
    """
    parts = {"--encoder": encoder, "--layer": layer, "--kmeans": kmeans}
    missing = [name for name, part in parts.items() if part is None]
    if 0 < len(missing) < len(parts):
        belong = "--layer and --kmeans belong to an --encoder: units are named by all three"
        raise UserError(f"{belong} (mHuBERT: layer 11, km1000); give {' and '.join(missing)}")
    if missing:
        if run is None:
            raise UserError("no units were named: give --run, or --encoder, --layer and --kmeans")
        return UnitInventory.load(_inventory_file(run, "inventory.json").parent)
    if run is not None:
        raise UserError("--run and --encoder exclude each other: units are of one inventory")
    model, normalize = encoder_from(encoder)
    return UnitInventory.create(model, layer, kmeans_from(kmeans), normalize)


def _inventory_file(path: Path, file: str) -> Path:
    """A file of the inventory in the folder `path`, or of that in the run `path`."""
    for folder in (path, path / "01_unit_extraction/inventory"):
        if (folder / file).is_file():
            return folder / file
    cure = "run notebook 01_unit_extraction.ipynb first, or give an inventory's folder"
    raise UserError(f"no unit inventory in {path}, which lacks {file}: {cure}")


def _inventory_facts(inventory: str | None) -> dict:
    """`inventory.json` of an inventory that is given by its folder, or that of a run; else {}."""
    named = not inventory or not Path(inventory).is_dir()
    return {} if named else read_json(_inventory_file(Path(inventory), "inventory.json"))


def inventory_id(inventory: str | None) -> str | None:
    """The id of an inventory that is given as such, or by its folder, or by that of its run."""
    return _inventory_facts(inventory).get("id", inventory)


def inventory_count(inventory: str | None) -> int | None:
    """K of an inventory that is given by a folder; None for one that is given by its id."""
    return _inventory_facts(inventory).get("clusters")


def encoder_from(source: str | Path) -> tuple[transformers.HubertModel, bool]:
    """(encoder, whether it wants normalised waveforms) from fairseq's file, or transformers."""
    path = Path(source).expanduser()
    if not path.is_file() and path.suffix != ".pt":
        return hubert_from_transformers(source)
    if file_kind(path) == "safetensors":
        raise UserError(f"{path} is of kind safetensors: give its folder, with config.json")
    return hubert_from_fairseq(path)


@reads("has settings that make no HuBERT", "is it of fairseq's HuBERT?")
def hubert_from_fairseq(path: Path | str) -> tuple[transformers.HubertModel, bool]:
    """A HuBERT that fairseq trained; layer k is that of `extract_features(output_layer=k)`.

    UserError: no such checkpoint, a damaged or hostile one, or a model that HubertModel can't be.
    """
    state = load_torch_checkpoint(path)
    if not isinstance(state.get("model"), dict):
        found = ", ".join(map(str, list(state)[:6]))
        raise UserError(f"{path} has no `model`, only {found}: expected a checkpoint of fairseq")
    cfg, arguments = plain(state.get("cfg")), plain(state.get("args"))
    newer = isinstance(cfg, dict) and isinstance(cfg.get("model"), dict)
    settings, task = (cfg["model"], cfg.get("task") or {}) if newer else (arguments, arguments)
    if not isinstance(settings, dict):
        raise UserError(f"{path} states no settings, `cfg` or `args`: not of fairseq's trainer")
    config = _config(settings, path)
    check_described(lambda: transformers.HubertModel(config), Path(path))
    model, renamed = transformers.HubertModel(config).eval(), _rename(state["model"], path)
    projection, width = "feature_projection.projection", config.hidden_size
    if f"{projection}.weight" not in renamed and config.conv_dim[-1] == width:
        # fairseq leaves the projection out where the widths are equal
        renamed[f"{projection}.weight"] = torch.eye(width)
        renamed[f"{projection}.bias"] = torch.zeros(width)
    check_tensors(renamed, model.state_dict(), path)
    model.load_state_dict({name: tensor.float() for name, tensor in renamed.items()})
    return model, truth(task, "normalize", path, False)


def truth(settings: dict, key: str, where: Path | str, otherwise: bool | None = None) -> bool:
    """A setting that is true or false.  Raises UserError for anything else, such as "false"."""
    found = settings[key] if otherwise is None else settings.get(key, otherwise)
    if found not in (True, False):
        raise UserError(f"{where}: {key} is {str(found)[:60]!r}, expected true or false")
    return bool(found)


def _config(settings: dict, path: Path | str) -> transformers.HubertConfig:
    name = str(settings.get("_name") or settings.get("arch") or "hubert")
    if not name.startswith("hubert"):
        raise UserError(f"{path} holds a model of kind {name!r}, expected hubert")
    for key, expected in FAIRSEQ["expected"].items():
        if (found := settings.get(key, expected)) != expected:
            raise UserError(f"{path} has {key} = {found!r}, but HubertModel only {expected!r}")
    layers = zip(*conv_layers(settings["conv_feature_layers"]), strict=True)
    sizes = {ours: int(settings[theirs]) for theirs, ours in FAIRSEQ["numbers"].items()}
    sizes |= zip(("conv_dim", "conv_kernel", "conv_stride"), layers, strict=True)
    mode = settings["extractor_mode"]
    if mode not in ("default", "layer_norm"):
        raise UserError(f"{path} has extractor_mode = {mode!r}, expected default or layer_norm")
    check_sizes(sizes, path)
    return transformers.HubertConfig(
        **sizes,
        feat_extract_norm="group" if mode == "default" else "layer",
        conv_bias=truth(settings, "conv_bias", path),
        do_stable_layer_norm=truth(settings, "layer_norm_first", path),
        attn_implementation="sdpa",
    )


def conv_layers(expression: object) -> list[tuple[int, int, int]]:
    """`"[(512,10,5)] + [(512,3,2)] * 4"` → [(width, kernel, stride), …]; nothing is evaluated.

    Raises UserError for anything but sums of lists with a factor, 1 to 32 layers in all.
    """
    triple = r"\(([1-9]\d{0,4}),([1-9]\d{0,4}),([1-9]\d{0,4})\)"
    layers: list[tuple[int, int, int]] = []
    for term in re.sub(r"\s", "", str(expression)).split("+"):
        match = re.fullmatch(rf"\[({triple}(?:,{triple})*),?\](?:\*(\d{{1,2}}))?", term)
        found = re.findall(triple, match[1]) if match else []
        layers += [tuple(map(int, layer)) for layer in found] * int(match and match[8] or 1)
        if not found or len(layers) > 32:
            form = "[(width,kernel,stride)] + [(512,3,2)] * 4"
            raise UserError(f"conv_feature_layers {str(expression)[:60]!r} are not like {form}")
    return layers


def _rename(weights: dict, path: Path | str) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in weights.items():
        if re.fullmatch(FAIRSEQ["dropped"], name) or not isinstance(tensor, torch.Tensor):
            continue
        stem, kind = re.fullmatch(r"(.*?)(\.weight|\.bias)?", name).groups("")
        matches = ((re.fullmatch(old, stem), new) for old, new in FAIRSEQ["weights"].items())
        new = next((match.expand(new) for match, new in matches if match), None)
        if new is None:
            raise UserError(f"{path} has {name!r}, which no HuBERT has before it is fine-tuned")
        renamed[new + kind] = tensor
    return renamed


def hubert_from_transformers(source: Path | str) -> tuple[transformers.HubertModel, bool]:
    """A HuBERT of transformers: a folder, or a name on the hub (by network or from the cache).

    Whether it wants normalised waveforms `preprocessor_config.json` says, or its kind of norm.
    """
    folder = Path(source).expanduser()
    local = folder.is_dir()
    if local and not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: expected it beside model.safetensors")
    where, what = f"no encoder {str(source)!r} here, and it", "could not be fetched"
    if folder.exists():
        where, what = folder, "is no whole HuBERT of transformers"
    with reading(where, "give a folder, or a fairseq .pt file", what):
        name = folder if local else str(source)
        config = transformers.HubertConfig.from_pretrained(name, local_files_only=local)
        if config.model_type != "hubert":
            raise UserError(f"{source} is a model of kind {config.model_type!r}, expected hubert")
        config._attn_implementation = "sdpa"
        check_sizes(config.to_dict(), source)
        weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
        check_described(lambda: transformers.HubertModel(config), *weights)
        options = {"config": config, "local_files_only": local, "output_loading_info": True}
        model, info = transformers.HubertModel.from_pretrained(name, **options)
    if lost := sorted(info["missing_keys"]):
        raise UserError(f"{source} lacks weights, such as {lost[0]}: is it a HuBERT?")
    check_finite(model.state_dict(), source)
    normalize = config.feat_extract_norm == "layer"
    preprocessor = folder / "preprocessor_config.json"
    if preprocessor.exists():
        stated = read_json(preprocessor, "get it again")
        normalize = truth(stated, "do_normalize", preprocessor, True)
        if (rate := stated.get("sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
            where = f"{preprocessor}: sampling_rate is {rate!r}"
            raise UserError(f"{where}, sound has {SAMPLE_RATE} here")
    return model.eval().float(), normalize


def kmeans_from(source: Path | str) -> KMeansUnits:
    """Centroids (K, width) from an inventory, a run, or a file.

    A file is an npy, npz, safetensors or PyTorch file, or what joblib wrote of scikit-learn; its
    first bytes say which.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        path = _inventory_file(path, "centroids.safetensors")
    kind = file_kind(path)
    with reading(path, "get it again", "holds no readable centroids"):
        if kind == "npz":
            check_unpacked(path)
        if kind in ("npy", "npz"):  # mapped: a header that claims more than is there is refused
            found = _table(np.load(path, mmap_mode="r", allow_pickle=False))
        elif kind == "safetensors":
            found = _table(load_file(path))
        else:
            found = _table((load_torch if kind == "torch" else load_joblib)(path))
    return KMeansUnits.checked(found, path)


def _table(loaded: object) -> object:
    """The centroids in what a file holds: an array, or one under a name that says so; or None."""
    values = vars(loaded) if isinstance(loaded, Stub) else loaded
    if isinstance(values, Mapping):
        values = next((values[name] for name in CENTROIDS if name in values), None)
    is_tensor = isinstance(values, torch.Tensor) and values.is_floating_point()
    return values.detach().float().numpy() if is_tensor else values
