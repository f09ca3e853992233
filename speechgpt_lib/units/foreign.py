"""Encoders and centroids that others trained → a unit inventory of this project.

| source | read by |
|---|---|
| HuBERT of fairseq (`.pt`), such as mHuBERT | `hubert_from_fairseq`, without fairseq and without running the pickle |
| HuBERT of transformers: folder, or name on the hub | `hubert_from_transformers` |
| centroids: joblib `.bin` of scikit-learn, `.npy`, `.safetensors`, an inventory | `kmeans_from` |
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers import HubertConfig, HubertModel

from speechgpt_lib.errors import UserError
from speechgpt_lib.foreign.checkpoints import check_is_no_text, load_torch_checkpoint
from speechgpt_lib.foreign.joblib_files import load_joblib
from speechgpt_lib.foreign.stubs import Stub, plain
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import KMeansUnits

RUN_INVENTORY = "01_unit_extraction/inventory"
DROPPED = r"final_proj\..*|label_embs_concat|target_glu\..*|_ema|layer_norm_no_affine\..*"  # heads of pre-training
RENAMED = (  # fairseq → transformers
    (r"mask_emb", "masked_spec_embed"),
    (r"(feature_extractor\.conv_layers\.\d+)\.0\.(weight|bias)", r"\1.conv.\2"),
    (r"(feature_extractor\.conv_layers\.\d+)\.2(?:\.1)?\.(weight|bias)", r"\1.layer_norm.\2"),
    (r"layer_norm\.(weight|bias)", r"feature_projection.layer_norm.\1"),
    (r"post_extract_proj\.(weight|bias)", r"feature_projection.projection.\1"),
    (
        r"encoder\.pos_conv\.0\.(?:weight_g|parametrizations\.weight\.original0)",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
    ),
    (
        r"encoder\.pos_conv\.0\.(?:weight_v|parametrizations\.weight\.original1)",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
    ),
    (r"encoder\.pos_conv\.0\.bias", "encoder.pos_conv_embed.conv.bias"),
    (
        r"(encoder\.layers\.\d+)\.self_attn\.([kvq]|out)_proj\.(weight|bias)",
        r"\1.attention.\2_proj.\3",
    ),
    (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.(weight|bias)", r"\1.layer_norm.\2"),
    (r"(encoder\.layers\.\d+)\.fc1\.(weight|bias)", r"\1.feed_forward.intermediate_dense.\2"),
    (r"(encoder\.layers\.\d+)\.fc2\.(weight|bias)", r"\1.feed_forward.output_dense.\2"),
    (r"(encoder\.layers\.\d+)\.final_layer_norm\.(weight|bias)", r"\1.final_layer_norm.\2"),
    (r"encoder\.layer_norm\.(weight|bias)", r"encoder.layer_norm.\1"),
)
EXPECTED = {
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "pos_enc_type": "abs",
    "pos_conv_depth": 1,
    "conv_pos_batch_norm": False,
}


def open_inventory(
    run: Path | None = None,
    encoder: str | None = None,
    layer: int | None = None,
    kmeans: str | None = None,
) -> UnitInventory:
    """The inventory of a run (or in an inventory folder), or one put together from an encoder, one of its layers, and centroids.

    Raises:
        UserError: both or neither given, a part of the three missing, or parts that don't fit.
    """
    if encoder is None:
        if layer is not None or kmeans is not None:
            raise UserError(
                "--layer and --kmeans belong to an --encoder: give all three, or none and the units of --run are used"
            )
        if run is None:
            raise UserError(
                "no units were named: give --run, or --encoder with --layer and --kmeans"
            )
        folder = run if (run / "inventory.json").is_file() else run / RUN_INVENTORY
        if not (folder / "inventory.json").is_file():
            raise UserError(
                f"no unit inventory in {run}: run notebook 01_unit_extraction.ipynb first, or give --encoder, --layer and --kmeans"
            )
        return UnitInventory.load(folder)
    missing = [name for name, value in (("--layer", layer), ("--kmeans", kmeans)) if value is None]
    if missing:
        raise UserError(
            f"--encoder {encoder} needs {' and '.join(missing)}: units are named by all three (mHuBERT: layer 11, km1000)"
        )
    if run is not None:
        raise UserError("--run and --encoder exclude each other: units are of one inventory")
    model, normalize = encoder_from(encoder)
    return UnitInventory.create(model, layer, kmeans_from(kmeans), normalize)


def encoder_from(source: str | Path) -> tuple[HubertModel, bool]:
    """(encoder, whether it wants normalised waveforms) from a fairseq `.pt` file, or a folder or name of transformers."""
    if str(source).endswith(".pt"):
        return hubert_from_fairseq(source)
    return hubert_from_transformers(source)


def hubert_from_fairseq(path: Path | str) -> tuple[HubertModel, bool]:
    """A HuBERT that fairseq trained; features of layer k equal its `extract_features(output_layer=k)`.

    Raises:
        UserError: not such a checkpoint, damaged, hostile, or of a kind that HubertModel can't express.
    """
    state = load_torch_checkpoint(path)
    if not isinstance(state.get("model"), dict):
        raise UserError(
            f"{path} has no `model`: found {', '.join(map(str, list(state)[:6]))}; expected a checkpoint of fairseq"
        )
    model_settings, task = _settings(state, path)
    config = _config(model_settings, path)
    model = HubertModel(config).eval()
    wanted = model.state_dict()
    renamed = _rename(state["model"], path)
    if (
        "feature_projection.projection.weight" not in renamed
        and config.conv_dim[-1] == config.hidden_size
    ):
        # fairseq leaves the projection out where the widths are equal
        renamed["feature_projection.projection.weight"] = torch.eye(config.hidden_size)
        renamed["feature_projection.projection.bias"] = torch.zeros(config.hidden_size)
    missing, left_over = (
        sorted(wanted.keys() - renamed.keys()),
        sorted(renamed.keys() - wanted.keys()),
    )
    if missing or left_over:
        what = (
            f"without {missing[0]}"
            if missing
            else f"with {left_over[0]}, for which there is no place"
        )
        raise UserError(
            f"{path} holds {len(renamed)} weights of {len(wanted)}, {what}: is it a HuBERT with the settings that it states?"
        )
    for name, tensor in renamed.items():
        if tensor.shape != wanted[name].shape:
            found, expected = tuple(tensor.shape), tuple(wanted[name].shape)
            raise UserError(
                f"{path}: {name} has shape {found}, its settings make it {expected}: the file contradicts itself"
            )
    model.load_state_dict({name: tensor.float() for name, tensor in renamed.items()})
    return model, bool(task.get("normalize", False))


def _settings(state: dict, path: Path | str) -> tuple[dict, dict]:
    """(model, task) settings, from the `cfg` of newer checkpoints or the `args` of older ones."""
    cfg = plain(state.get("cfg"))
    if isinstance(cfg, dict) and isinstance(cfg.get("model"), dict):
        return cfg["model"], cfg.get("task") or {}
    arguments = plain(state.get("args"))
    if isinstance(arguments, dict):
        return arguments, arguments
    raise UserError(
        f"{path} states no settings of its model (neither `cfg` nor `args`): expected a checkpoint of fairseq's trainer"
    )


def _config(settings: dict, path: Path | str) -> HubertConfig:
    name = str(settings.get("_name") or settings.get("arch") or "hubert")
    if not name.startswith("hubert"):
        raise UserError(f"{path} holds a model of kind {name!r}, expected hubert")
    for key, expected in EXPECTED.items():
        if settings.get(key, expected) != expected:
            raise UserError(
                f"{path} has {key} = {settings[key]!r}, which transformers' HubertModel can't express (it has {expected!r})"
            )
    try:
        layers = conv_layers(settings["conv_feature_layers"])
        mode = settings["extractor_mode"]
        if mode not in ("default", "layer_norm"):
            raise UserError(f"{path} has extractor_mode = {mode!r}, expected default or layer_norm")
        return HubertConfig(
            hidden_size=int(settings["encoder_embed_dim"]),
            num_hidden_layers=int(settings["encoder_layers"]),
            num_attention_heads=int(settings["encoder_attention_heads"]),
            intermediate_size=int(settings["encoder_ffn_embed_dim"]),
            conv_dim=[width for width, _, _ in layers],
            conv_kernel=[kernel for _, kernel, _ in layers],
            conv_stride=[stride for _, _, stride in layers],
            num_feat_extract_layers=len(layers),
            feat_extract_norm="group" if mode == "default" else "layer",
            conv_bias=bool(settings["conv_bias"]),
            num_conv_pos_embeddings=int(settings["conv_pos"]),
            num_conv_pos_embedding_groups=int(settings["conv_pos_groups"]),
            do_stable_layer_norm=bool(settings["layer_norm_first"]),
            attn_implementation="sdpa",
        )
    except KeyError as error:
        raise UserError(
            f"{path} does not state {error.args[0]}: expected the settings of a HuBERT of fairseq"
        ) from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} has settings that make no HuBERT: {error}") from None


def conv_layers(expression: Any) -> list[tuple[int, int, int]]:
    """`"[(512,10,5)] + [(512,3,2)] * 4"` → [(width, kernel, stride), …].  Lists, tuples, numbers, + and * only: nothing is evaluated."""

    def value(node: ast.AST) -> Any:
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, int)
            and 0 < node.value < 100_000
        ):
            return node.value
        if isinstance(node, ast.Tuple | ast.List):
            return [value(item) for item in node.elts]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
            left, right = value(node.left), value(node.right)
            if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
                return left + right
            if isinstance(node.op, ast.Mult) and isinstance(left, list) != isinstance(right, list):
                items, times = (left, right) if isinstance(left, list) else (right, left)
                if len(items) * times <= 32:
                    return items * times
        raise ValueError

    try:
        layers = value(ast.parse(str(expression).strip(), mode="eval").body)
        if layers and all(
            isinstance(layer, list) and len(layer) == 3 and all(isinstance(n, int) for n in layer)
            for layer in layers
        ):
            return [tuple(layer) for layer in layers]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        pass
    raise UserError(
        f"conv_feature_layers {str(expression)[:60]!r} is no list of (width, kernel, stride), such as [(512,10,5)] + [(512,3,2)] * 4"
    )


def _rename(weights: dict, path: Path | str) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in weights.items():
        if re.fullmatch(DROPPED, name) or not isinstance(tensor, torch.Tensor):
            continue
        target = next(
            (re.sub(pattern, new, name) for pattern, new in RENAMED if re.fullmatch(pattern, name)),
            None,
        )
        if target is None:
            raise UserError(
                f"{path} has a weight {name!r} that no HuBERT of fairseq has: expected a pre-trained model, not a fine-tuned one"
            )
        renamed[target] = tensor
    return renamed


def hubert_from_transformers(source: Path | str) -> tuple[HubertModel, bool]:
    """A HuBERT in transformers' format: a folder, or a name on the hub (which needs a network, or the model in the cache).

    Whether waveforms are normalised is what `preprocessor_config.json` says; without one, what the kind of encoder is trained with.
    """
    folder = Path(source).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} has no config.json: expected a folder of transformers, with config.json and model.safetensors"
        )
    try:
        name = folder if folder.is_dir() else str(source)
        config = HubertConfig.from_pretrained(name, local_files_only=folder.is_dir())
        if config.model_type != "hubert":
            raise UserError(f"{source} is a model of kind {config.model_type!r}, expected hubert")
        config._attn_implementation = "sdpa"
        model, info = HubertModel.from_pretrained(
            name, config=config, local_files_only=folder.is_dir(), output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        if folder.exists():
            raise UserError(
                f"{folder} is no whole HuBERT of transformers: {_line(error)}"
            ) from None
        how = (
            "give a folder, or a fairseq .pt file; a name needs a network or the model in the cache"
        )
        raise UserError(
            f"no encoder {str(source)!r} here, and it could not be fetched ({_line(error)}): {how}"
        ) from None
    if info["missing_keys"]:
        raise UserError(
            f"{source} lacks weights of the encoder, such as {sorted(info['missing_keys'])[0]}: is it a HuBERT?"
        )
    return model.eval().float(), _wants_normalised(folder, config)


def _wants_normalised(folder: Path, config: HubertConfig) -> bool:
    path = folder / "preprocessor_config.json"
    if path.is_file():
        try:
            return bool(json.loads(path.read_text()).get("do_normalize", True))
        except (ValueError, AttributeError):
            raise UserError(f"{path} is not valid JSON: get it again") from None
    return config.feat_extract_norm == "layer"


def kmeans_from(source: Path | str) -> KMeansUnits:
    """Centroids (K, width) from an inventory or run folder, `.safetensors` (`centroids`), `.npy`, or a joblib file of scikit-learn."""
    path = Path(source).expanduser()
    if path.is_dir():
        folder = next(
            (f for f in (path, path / RUN_INVENTORY) if (f / "centroids.safetensors").is_file()),
            None,
        )
        if folder is None:
            raise UserError(
                f"no centroids in {path}: expected a run, or an inventory folder with centroids.safetensors"
            )
        return KMeansUnits.load(folder / "centroids.safetensors")
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
        raise UserError(f"{path} holds no readable centroids: {_line(error)}") from None
    if (
        not isinstance(found, np.ndarray)
        or found.ndim != 2
        or found.dtype.kind != "f"
        or not np.isfinite(found).all()
    ):
        what = (
            f"an array {found.shape} of {found.dtype}"
            if isinstance(found, np.ndarray)
            else "no array of centroids"
        )
        raise UserError(
            f"{path} holds {what}, expected finite numbers (K, width): centroids of k-means"
        )
    return KMeansUnits(np.array(found, dtype=np.float32, order="C"))


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
