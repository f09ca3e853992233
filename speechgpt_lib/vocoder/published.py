"""fairseq's unit vocoder (code HiFi-GAN: a checkpoint and its `config.json`) → a `Vocoder` of this project, without fairseq.

The checkpoint holds `{"generator": tensors}`.  Weight norm is folded (`weight_g`, `weight_v` → `weight`), the duration predictor gets a
copy of the unit embedding that it shares with the generator there, and everything else keeps its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.foreign.checkpoints import check_is_no_text, load_torch_checkpoint
from speechgpt_lib.recipes.schema import Optimization, VocoderSettings
from speechgpt_lib.vocoder.durations import DurationPredictor
from speechgpt_lib.vocoder.generator import UnitGenerator
from speechgpt_lib.vocoder.synthesis import Vocoder

DURATIONS = "dur_predictor."
GEOMETRY = {  # name in config.json → in our settings
    "embedding_dim": "embedding",
    "upsample_initial_channel": "channels",
    "upsample_rates": "upsample_rates",
    "upsample_kernel_sizes": "upsample_kernels",
    "resblock_kernel_sizes": "resblock_kernels",
    "resblock_dilation_sizes": "resblock_dilations",
}
EXPECTED = {
    "resblock": "1",
    "code_hop_size": 320,
    "sampling_rate": 16_000,
    "f0": False,
    "f0_quant_num_bin": 0,
    "embedder_params": None,
}


def vocoder_from_fairseq(checkpoint: Path | str, config: Path | str, inventory: str) -> Vocoder:
    """The published vocoder, ready to speak.

    Args:
        checkpoint: such as `g_00500000` or `vocoder.pt`.
        config: the `config.json` published beside it.
        inventory: id of the unit inventory whose units it speaks; the files don't say it.

    The vocoder drops negative units, as fairseq's does, and has one speaker, or as many as its checkpoint has vectors for.

    Raises:
        UserError: files missing, damaged or dangerous, a model of another kind (with pitch input, for example), tensors missing or of
            another shape than the config says.
    """
    settings, count, width = read_config(Path(config).expanduser())
    tensors = fold(generator_tensors(Path(checkpoint).expanduser()), checkpoint)
    speakers = len(tensors["spkr.weight"]) if "spkr.weight" in tensors else 0
    with torch.device("meta"):
        generator = UnitGenerator(count, settings, speakers).fold_weight_norm()
        durations = DurationPredictor(count, settings.embedding, width)
    predictor = {
        name.removeprefix(DURATIONS): tensor
        for name, tensor in tensors.items()
        if name.startswith(DURATIONS)
    }
    if not predictor:
        raise UserError(
            f"{checkpoint} has no {DURATIONS}* tensors: a vocoder that predicts durations is needed (published with `_lj`)"
        )
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(DURATIONS)}
    _fill(generator, own, checkpoint)
    _fill(durations, predictor | {"dict.weight": own["dict.weight"].clone()}, checkpoint, DURATIONS)
    names = tuple(str(k) for k in range(speakers))
    return Vocoder(generator, durations, inventory, settings, names, drops_negative=True)


def read_config(path: Path) -> tuple[VocoderSettings, int, int]:
    """`config.json` → (geometry, number of units, width of the duration predictor)."""
    check_is_no_text(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"it holds a {type(config).__name__}, expected keys and values")
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is no readable config.json ({' '.join(str(error).split())}): get it again"
        ) from None
    for name, wanted in EXPECTED.items():
        found = config.get(name, wanted)
        if str(found) != str(wanted) and (found or wanted):
            raise UserError(
                f"{path}: {name} is {found!r}, expected {wanted!r}: this is no vocoder of units alone at 50 Hz and 16 kHz"
            )
    predictor = config.get("dur_predictor_params") or {}
    needed = [name for name in ("num_embeddings", *GEOMETRY) if name not in config]
    needed += [
        f"dur_predictor_params.{name}" for name in ("var_pred_hidden_dim",) if name not in predictor
    ]
    if needed:
        raise UserError(
            f"{path} lacks {', '.join(needed)}: expected the config.json of a fairseq unit vocoder that predicts durations"
        )
    if predictor.get("var_pred_kernel_size", 3) != 3:
        raise UserError(
            f"{path}: a duration predictor of kernel {predictor['var_pred_kernel_size']} is not supported, only of 3"
        )
    unused = Optimization(steps=1, learning_rate=2e-4)
    values = {ours: config[theirs] for theirs, ours in GEOMETRY.items()}
    try:
        settings = VocoderSettings(**values, optimization=unused, duration_optimization=unused)
        return settings, int(config["num_embeddings"]), int(predictor["var_pred_hidden_dim"])
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not describe a unit vocoder: {' '.join(str(error).split())[:200]}"
        ) from None


def generator_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The generator's tensors of a checkpoint, by fairseq's names."""
    loaded: Mapping[str, Any] = load_torch_checkpoint(path)
    tensors = loaded.get("generator", loaded)
    if (
        not isinstance(tensors, dict)
        or not tensors
        or not all(isinstance(t, torch.Tensor) for t in tensors.values())
    ):
        raise UserError(
            f"{path} holds {', '.join(map(str, list(loaded)[:5]))}: expected a `generator` with tensors only"
        )
    return tensors


def fold(tensors: Mapping[str, torch.Tensor], where: Path | str) -> dict[str, torch.Tensor]:
    """Replace each pair `weight_g`, `weight_v` by g · v / ‖v‖, the norm being over all but the first dimension."""
    folded = {}
    for name, tensor in tensors.items():
        stem = name[: -len("_g")]
        if (
            name.endswith((".weight_g", ".weight_v"))
            and not {f"{stem}_g", f"{stem}_v"} <= tensors.keys()
        ):
            raise UserError(
                f"{where} has {name} without its other half: the checkpoint is not whole, get it again"
            )
        if name.endswith(".weight_g"):
            direction = tensors[f"{stem}_v"].float()
            folded[stem] = torch._weight_norm(direction, tensor.float(), 0)
        elif not name.endswith(".weight_v"):
            folded[name] = tensor.float()
    return folded


def _fill(
    module: torch.nn.Module, tensors: dict[str, torch.Tensor], where: Path | str, prefix: str = ""
) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if missing := sorted(expected.keys() - tensors.keys()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{where} lacks {prefix}{missing[0]}{more}, which its config.json promises: is this the config of another model?"
        )
    if strange := sorted(tensors.keys() - expected.keys()):
        raise UserError(
            f"{where} holds {prefix}{strange[0]}, for which its config.json has no place: is this the config of another model?"
        )
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise UserError(
                f"{where}: {prefix}{name} has shape {tuple(tensors[name].shape)}, by its config.json it should be {shape}"
            )
    module.load_state_dict(tensors, assign=True)
