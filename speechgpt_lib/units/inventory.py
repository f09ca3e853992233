"""The unit inventory: encoder + layer + centroids, as one named and hashed object that every consumer of units checks.

    inventory/{inventory.json, encoder/ (config.json, model.safetensors), centroids.safetensors}

Its id is a hash over all of that.  A vocoder or language model made for one inventory refuses units of another.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import HubertConfig, HubertModel

from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import hash_json, read_json, write_json
from speechgpt_lib.training.checkpoints import load_module, save_module
from speechgpt_lib.units.hubert import RECEPTIVE_FIELD
from speechgpt_lib.units.kmeans import KMeansUnits
from speechgpt_lib.units.sequence import merge

FRAME_RATE = 50.0


@dataclass(frozen=True)
class UnitInventory:
    """Turns speech into units.  `count` is K; `id` names encoder, layer and centroids together."""

    id: str
    encoder: HubertModel
    layer: int
    kmeans: KMeansUnits

    @property
    def count(self) -> int:
        return self.kmeans.count

    @torch.inference_mode()
    def features(self, wave: np.ndarray) -> np.ndarray:
        """Hidden states of the chosen layer: float32 samples (n,) at 16 kHz → (frames, width)."""
        if len(wave) < RECEPTIVE_FIELD:
            raise UserError(f"audio of {len(wave)} samples is too short: units need at least {RECEPTIVE_FIELD} (25 ms at 16 kHz)")
        waves = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))[None]
        return layer_features(self.encoder, waves, self.layer)[0].numpy()

    def encode(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Speech → (merged units (n,), durations in frames (n,)), int64."""
        return merge(self.kmeans.assign(self.features(wave)))

    def save(self, folder: Path) -> None:
        (folder / "encoder").mkdir(parents=True, exist_ok=True)
        self.encoder.config.save_pretrained(folder / "encoder")
        save_module(self.encoder, folder / "encoder" / "model.safetensors")
        self.kmeans.save(folder / "centroids.safetensors")
        facts = {"id": self.id, "layer": self.layer, "clusters": self.count, "frame_rate_hz": FRAME_RATE}
        write_json(folder / "inventory.json", facts)

    @classmethod
    def load(cls, folder: Path) -> UnitInventory:
        facts = read_json(folder / "inventory.json")
        config = HubertConfig.from_pretrained(folder / "encoder", local_files_only=True)
        encoder = HubertModel(config).eval()
        load_module(encoder, folder / "encoder" / "model.safetensors")
        kmeans = KMeansUnits.load(folder / "centroids.safetensors")
        found = cls.create(encoder, int(facts["layer"]), kmeans)
        if found.id != facts["id"]:
            raise UserError(f"{folder} says it is inventory {facts['id']} but its files make {found.id}: a file there was changed")
        return found

    @classmethod
    def create(cls, encoder: HubertModel, layer: int, kmeans: KMeansUnits) -> UnitInventory:
        depth = encoder.config.num_hidden_layers
        if not 1 <= layer <= depth:
            raise UserError(f"the encoder has layers 1 to {depth}, layer {layer} was asked for: change units.layer in the recipe")
        if kmeans.centroids.shape[1] != encoder.config.hidden_size:
            raise UserError(
                f"centroids have width {kmeans.centroids.shape[1]} but layer {layer} gives {encoder.config.hidden_size}: they belong apart"
            )
        weights = {name: _hash_tensor(tensor) for name, tensor in encoder.state_dict().items()}
        identity = {"weights": weights, "layer": layer, "centroids": _hash_tensor(torch.from_numpy(kmeans.centroids))}
        return cls(hash_json(identity)[:16], encoder.eval(), layer, kmeans)


def layer_features(encoder: HubertModel, waves: torch.Tensor, layer: int) -> torch.Tensor:
    """Hidden states after block `layer` (1 = first), as `hidden_states[layer]` of transformers, without running the blocks above it.

    waves: (batch, samples) → (batch, frames, width).  All of a batch must have the same true length, since the group norm of the
    first convolution and the attention would otherwise see the padding.
    """
    hidden = encoder.feature_projection(encoder.feature_extractor(waves).transpose(1, 2))
    blocks = encoder.encoder
    hidden = blocks.dropout(hidden + blocks.pos_conv_embed(hidden))
    if not encoder.config.do_stable_layer_norm:
        hidden = blocks.layer_norm(hidden)
    for block in blocks.layers[:layer]:
        output = block(hidden)
        hidden = output[0] if isinstance(output, tuple) else output
    # Where norms stand before the blocks, one more follows the last block, and transformers counts it as part of that layer.
    last = layer == len(blocks.layers)
    return blocks.layer_norm(hidden) if last and encoder.config.do_stable_layer_norm else hidden


def check_inventory(found: str, expected: str, what: str) -> None:
    """Refuse units of inventory `found` where `expected` is needed; `what` names the consumer."""
    if found != expected:
        raise UserError(f"{what} was made for unit inventory {expected} but the units are of inventory {found}: use units of the same run")


def _hash_tensor(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().cpu().numpy().tobytes()).hexdigest()
