"""fairseq's unit vocoder (code HiFi-GAN: a checkpoint and its `config.json`) → a `Vocoder`.

Needs no fairseq.  The checkpoint holds `{"generator": tensors}`; weight norm (`weight_g`,
`weight_v`) is folded, the duration predictor gets a copy of the unit embedding they share there.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from speechgpt_lib.errors import UserError, reads
from speechgpt_lib.foreign.checkpoints import check_is_no_text, load_torch_checkpoint
from speechgpt_lib.foreign.tensors import check_sizes, check_tensors, checkpoint_tensors
from speechgpt_lib.recipes.schema import Optimization, VocoderSettings
from speechgpt_lib.runs.artefacts import read_json
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
# Units alone at 50 Hz and 16 kHz, no pitch.
EXPECTED = {"resblock": "1", "code_hop_size": 320, "sampling_rate": 16_000, "f0": False}
EXPECTED |= {"f0_quant_num_bin": 0, "embedder_params": None, "var_pred_kernel_size": 3}


@reads("does not fit its config.json", "are both files of the same model?")
def vocoder_from_fairseq(checkpoint: Path | str, config: Path | str, inventory: str) -> Vocoder:
    """The published vocoder (`g_00500000` or `vocoder.pt`, and its `config.json`), ready to speak.

    inventory: id of that of its units.  It drops negative units, as fairseq's does, and has one
    voice, or a speaker for each of its vectors.  Raises UserError: files missing, damaged or
    dangerous, a model of another kind (with pitch input, say), other tensors than the config says.
    """
    checkpoint = Path(checkpoint).expanduser()
    settings, count, width = read_config(Path(config).expanduser())
    tensors = checkpoint_tensors(load_torch_checkpoint(checkpoint), "generator", checkpoint)
    if not any(name.startswith(DURATIONS) for name in tensors):
        raise UserError(f"{checkpoint} has no {DURATIONS}*: get a vocoder that predicts durations")
    for name in [name[:-2] for name in tensors if name.endswith(".weight_g")]:
        if f"{name}_v" in tensors:  # g · v / ‖v‖, norms over all but dimension 0
            v, g = tensors.pop(f"{name}_v"), tensors.pop(f"{name}_g")
            tensors[name] = torch._weight_norm(v, g, 0)
    speakers = len(tensors.get("spkr.weight", ()))
    with torch.device("meta"):  # shapes without memory: the checkpoint's tensors take their place
        generator = UnitGenerator(count, settings, speakers).fold_weight_norm()
        durations = DurationPredictor(count, settings.embedding, width)
    own, timing = generator.state_dict(), durations.state_dict()
    expected = own | {DURATIONS + name: timing[name] for name in timing if name != "dict.weight"}
    check_tensors(tensors, expected, checkpoint)
    tensors[f"{DURATIONS}dict.weight"] = tensors["dict.weight"].clone()
    generator.load_state_dict({name: tensors[name] for name in own}, assign=True)
    durations.load_state_dict({name: tensors[DURATIONS + name] for name in timing}, assign=True)
    names = tuple(map(str, range(speakers)))
    return Vocoder(generator, durations, inventory, settings, names, drops_negative=True)


@reads("does not describe a unit vocoder", "is it of one that predicts durations?")
def read_config(path: Path) -> tuple[VocoderSettings, int, int]:
    """`config.json` → (geometry, number of units, width of the duration predictor)."""
    check_is_no_text(path)
    config = read_json(path, "get it again")
    check_sizes(config, path)
    config = (config.get("dur_predictor_params") or {}) | config
    for name, wanted in EXPECTED.items():
        found = config.get(name, wanted)
        if str(found) != str(wanted) and (found or wanted):
            raise UserError(f"{path}: {name} is {found!r}, only {wanted!r} can be read")
    unused = Optimization(steps=1, learning_rate=2e-4)
    geometry = {ours: config[theirs] for theirs, ours in GEOMETRY.items()}
    settings = VocoderSettings(**geometry, optimization=unused, duration_optimization=unused)
    if (hop := math.prod(settings.upsample_rates)) != (wanted := EXPECTED["code_hop_size"]):
        raise ValueError(f"upsample_rates multiply to {hop}, they must make {wanted}")
    return settings, int(config["num_embeddings"]), int(config["var_pred_hidden_dim"])
