"""Encoders and centroids that others trained → a unit inventory of this project.

- HuBERT of fairseq (`.pt`), such as mHuBERT: `hubert_from_fairseq`, without fairseq and without
  running the pickle;
- HuBERT of transformers, a folder or a name on the hub: `hubert_from_transformers`;
- centroids: joblib `.bin` of scikit-learn, `.npy`, `.safetensors`, an inventory: `kmeans_from`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers import HubertConfig, HubertModel

from speechgpt_lib.errors import UserError, one_line
from speechgpt_lib.foreign.checkpoints import check_is_no_text, load_torch_checkpoint
from speechgpt_lib.foreign.joblib_files import load_joblib
from speechgpt_lib.foreign.stubs import Stub, plain
from speechgpt_lib.foreign.tensors import check_tensors
from speechgpt_lib.runs.artefacts import read_json
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import KMeansUnits

RUN_INVENTORY = "01_unit_extraction/inventory"
# Heads of pre-training, which an encoder does without.
DROPPED = r"final_proj\..*|label_embs_concat|target_glu\..*|_ema|layer_norm_no_affine\..*"
CONVOLUTION, LAYER = r"(feature_extractor\.conv_layers\.\d+)", r"(encoder\.layers\.\d+)"
POSITION, CONV_EMBED = r"encoder\.pos_conv\.0", r"encoder.pos_conv_embed.conv"
WEIGHT_NORM = r"parametrizations.weight.original"
RENAMED = {  # fairseq → transformers, as patterns; a last `.weight` or `.bias` stays
    r"mask_emb": r"masked_spec_embed",
    rf"{CONVOLUTION}\.0": r"\1.conv",
    rf"{CONVOLUTION}\.2(?:\.1)?": r"\1.layer_norm",
    r"layer_norm": r"feature_projection.layer_norm",
    r"post_extract_proj": r"feature_projection.projection",
    rf"{POSITION}\.(?:weight_g|{WEIGHT_NORM}0)": f"{CONV_EMBED}.{WEIGHT_NORM}0",
    rf"{POSITION}\.(?:weight_v|{WEIGHT_NORM}1)": f"{CONV_EMBED}.{WEIGHT_NORM}1",
    POSITION: CONV_EMBED,
    rf"{LAYER}\.self_attn\.([kvq]|out)_proj": r"\1.attention.\2_proj",
    rf"{LAYER}\.self_attn_layer_norm": r"\1.layer_norm",
    rf"{LAYER}\.fc1": r"\1.feed_forward.intermediate_dense",
    rf"{LAYER}\.fc2": r"\1.feed_forward.output_dense",
    rf"{LAYER}\.final_layer_norm": r"\1.final_layer_norm",
    r"encoder\.layer_norm": r"encoder.layer_norm",
}
EXPECTED = {  # what transformers' HubertModel can't have otherwise
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "pos_enc_type": "abs",
    "pos_conv_depth": 1,
    "conv_pos_batch_norm": False,
}
NUMBERS = {  # settings, fairseq → transformers
    "encoder_embed_dim": "hidden_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_ffn_embed_dim": "intermediate_size",
    "conv_pos": "num_conv_pos_embeddings",
    "conv_pos_groups": "num_conv_pos_embedding_groups",
}


def open_inventory(
    run: Path | None = None,
    encoder: str | None = None,
    layer: int | None = None,
    kmeans: str | None = None,
) -> UnitInventory:
    """The inventory of a run or an inventory folder, or one put together from three parts.

    The parts are an encoder, one of its layers, and centroids.  Raises UserError where both or
    neither are given, a part is missing, or the parts don't fit.
    """
    if encoder is None:
        if layer is not None or kmeans is not None:
            raise UserError("--layer and --kmeans belong to an --encoder: give all three, or none")
        if run is None:
            raise UserError("no units were named: give --run, or --encoder, --layer and --kmeans")
        return UnitInventory.load(_inventory_folder(run, "inventory.json"))
    if layer is None or kmeans is None:
        missing = [name for name, x in (("--layer", layer), ("--kmeans", kmeans)) if x is None]
        needed = f"--encoder {encoder} needs {' and '.join(missing)}"
        raise UserError(f"{needed}: units are named by all three (mHuBERT: layer 11, km1000)")
    if run is not None:
        raise UserError("--run and --encoder exclude each other: units are of one inventory")
    model, normalize = encoder_from(encoder)
    return UnitInventory.create(model, layer, kmeans_from(kmeans), normalize)


def _inventory_folder(path: Path, file: str) -> Path:
    """The folder of an inventory or of a run's inventory that holds `file`."""
    for folder in (path, path / RUN_INVENTORY):
        if (folder / file).is_file():
            return folder
    cure = "run notebook 01_unit_extraction.ipynb first, or give --encoder, --layer and --kmeans"
    raise UserError(f"no unit inventory in {path}, which lacks {file}: {cure}")


def inventory_facts(folder: Path) -> dict:
    """What is known of the inventory in `folder`: its own, or that of a run."""
    for place in (folder, folder / RUN_INVENTORY):
        if (place / "inventory.json").is_file():
            return read_json(place / "inventory.json")
    raise UserError(f"no unit inventory in {folder}: give its id, its folder, or that of a run")


def inventory_id(inventory: str | None) -> str | None:
    """The id of an inventory that is given as such, or by a folder that `inventory_facts` takes."""
    if inventory is None or not Path(inventory).is_dir():
        return inventory
    return str(inventory_facts(Path(inventory))["id"])


def inventory_count(inventory: str | None) -> int | None:
    """K of an inventory that is given by its folder; None for one that is given by its id."""
    if inventory is None or not Path(inventory).is_dir():
        return None
    return int(inventory_facts(Path(inventory))["clusters"])


def encoder_from(source: str | Path) -> tuple[HubertModel, bool]:
    """(encoder, whether it wants normalised waveforms) from fairseq's `.pt`, or transformers."""
    if str(source).endswith(".pt"):
        return hubert_from_fairseq(source)
    return hubert_from_transformers(source)


def hubert_from_fairseq(path: Path | str) -> tuple[HubertModel, bool]:
    """A HuBERT that fairseq trained; layer k is that of `extract_features(output_layer=k)`.

    Raises UserError for no such checkpoint, a damaged or hostile one, or a kind of model that
    HubertModel can't express.
    """
    state = load_torch_checkpoint(path)
    if not isinstance(state.get("model"), dict):
        found = ", ".join(map(str, list(state)[:6]))
        raise UserError(f"{path} has no `model`, only {found}: expected a checkpoint of fairseq")
    settings, task = _settings(state, path)
    config = _config(settings, path)
    model = HubertModel(config).eval()
    wanted, renamed = model.state_dict(), _rename(state["model"], path)
    projection, width = "feature_projection.projection", config.hidden_size
    if f"{projection}.weight" not in renamed and config.conv_dim[-1] == width:
        # fairseq leaves the projection out where the widths are equal
        renamed[f"{projection}.weight"] = torch.eye(width)
        renamed[f"{projection}.bias"] = torch.zeros(width)
    check_tensors(renamed, wanted, path)
    model.load_state_dict({name: tensor.float() for name, tensor in renamed.items()})
    return model, bool(task.get("normalize", False))


def _settings(state: dict, path: Path | str) -> tuple[dict, dict]:
    """(model, task) settings, from the `cfg` of newer checkpoints or the `args` of older ones."""
    cfg, arguments = plain(state.get("cfg")), plain(state.get("args"))
    if isinstance(cfg, dict) and isinstance(cfg.get("model"), dict):
        return cfg["model"], cfg.get("task") or {}
    if isinstance(arguments, dict):
        return arguments, arguments
    raise UserError(f"{path} states no settings, `cfg` or `args`: not of fairseq's trainer")


def _config(settings: dict, path: Path | str) -> HubertConfig:
    name = str(settings.get("_name") or settings.get("arch") or "hubert")
    if not name.startswith("hubert"):
        raise UserError(f"{path} holds a model of kind {name!r}, expected hubert")
    for key, expected in EXPECTED.items():
        if (found := settings.get(key, expected)) != expected:
            raise UserError(f"{path} has {key} = {found!r}, but HubertModel only {expected!r}")
    try:
        widths, kernels, strides = zip(*conv_layers(settings["conv_feature_layers"]), strict=True)
        mode = settings["extractor_mode"]
        if mode not in ("default", "layer_norm"):
            raise UserError(f"{path} has extractor_mode = {mode!r}, expected default or layer_norm")
        return HubertConfig(
            **{ours: int(settings[theirs]) for theirs, ours in NUMBERS.items()},
            conv_dim=widths,
            conv_kernel=kernels,
            conv_stride=strides,
            feat_extract_norm="group" if mode == "default" else "layer",
            conv_bias=bool(settings["conv_bias"]),
            do_stable_layer_norm=bool(settings["layer_norm_first"]),
            attn_implementation="sdpa",
        )
    except KeyError as error:
        raise UserError(f"{path} does not state {error.args[0]}: not fairseq's HuBERT") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} has settings that make no HuBERT: {error}") from None


def conv_layers(expression: Any) -> list[tuple[int, int, int]]:
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
        if re.fullmatch(DROPPED, name) or not isinstance(tensor, torch.Tensor):
            continue
        stem, kind = re.fullmatch(r"(.*?)(\.weight|\.bias)?", name).groups("")
        matches = ((re.fullmatch(pattern, stem), new) for pattern, new in RENAMED.items())
        new = next((match.expand(new) for match, new in matches if match), None)
        if new is None:
            raise UserError(f"{path} has {name!r}, which no HuBERT has before it is fine-tuned")
        renamed[new + kind] = tensor
    return renamed


def hubert_from_transformers(source: Path | str) -> tuple[HubertModel, bool]:
    """A HuBERT of transformers: a folder, or a name on the hub (by network or from the cache).

    Whether it wants normalised waveforms is what `preprocessor_config.json` says; without one, what
    this kind of encoder is trained with.
    """
    folder = Path(source).expanduser()
    local = folder.is_dir()
    if local and not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: expected it beside model.safetensors")
    try:
        name = folder if local else str(source)
        config = HubertConfig.from_pretrained(name, local_files_only=local)
        if config.model_type != "hubert":
            raise UserError(f"{source} is a model of kind {config.model_type!r}, expected hubert")
        config._attn_implementation = "sdpa"
        options = {"config": config, "local_files_only": local, "output_loading_info": True}
        model, info = HubertModel.from_pretrained(name, **options)
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        reason = one_line(error)
        if folder.exists():
            raise UserError(f"{folder} is no whole HuBERT of transformers: {reason}") from None
        missing = f"no encoder {str(source)!r} here, and it could not be fetched ({reason})"
        raise UserError(f"{missing}: give a folder, or a fairseq .pt file") from None
    if lost := sorted(info["missing_keys"]):
        raise UserError(f"{source} lacks weights, such as {lost[0]}: is it a HuBERT?")
    return model.eval().float(), _wants_normalised(folder, config)


def _wants_normalised(folder: Path, config: HubertConfig) -> bool:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return config.feat_extract_norm == "layer"
    try:
        return bool(json.loads(path.read_text()).get("do_normalize", True))
    except (ValueError, AttributeError):
        raise UserError(f"{path} is not valid JSON: get it again") from None


def kmeans_from(source: Path | str) -> KMeansUnits:
    """Centroids (K, width) from an inventory or run folder, or from a file.

    A file is `.safetensors` (with `centroids`), `.npy`, or what joblib wrote of scikit-learn.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        path = _inventory_folder(path, "centroids.safetensors") / "centroids.safetensors"
    check_is_no_text(path)
    try:
        if path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        elif path.suffix == ".safetensors":
            found = load_file(path).get("centroids")
        else:
            model = load_joblib(path)
            found = vars(model).get("cluster_centers_") if isinstance(model, Stub) else None
    except (ValueError, EOFError, SafetensorError) as error:
        raise UserError(f"{path} holds no readable centroids: {one_line(error)}") from None
    is_array = isinstance(found, np.ndarray)
    if not (is_array and found.ndim == 2 and found.dtype.kind == "f" and np.isfinite(found).all()):
        what = f"an array {found.shape} of {found.dtype}" if is_array else "no array"
        raise UserError(f"{path} holds {what}, expected finite centroids (K, width)")
    return KMeansUnits(np.array(found, dtype=np.float32, order="C"))
