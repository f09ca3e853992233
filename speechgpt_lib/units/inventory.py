"""The unit inventory: encoder + layer + centroids, as one named object that all units refer to.

    inventory/{inventory.json, encoder/ (config.json, model.safetensors), centroids.safetensors}

Its id is a hash over all of that.  A vocoder or language model of one refuses units of another.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.foreign.tensors import check_described, check_sizes
from speechgpt_lib.rates import HOP, SAMPLE_RATE
from speechgpt_lib.runs.artefacts import hash_json, read_json, write_json
from speechgpt_lib.training.checkpoints import load_module, save_module
from speechgpt_lib.units.features import FeatureEncoder, check_kind, check_layer, framing
from speechgpt_lib.units.kmeans import KMeansUnits
from speechgpt_lib.units.sequence import merge


@dataclass(frozen=True)
class UnitInventory:
    """Turns speech into units."""

    id: str  # of encoder, layer and centroids together
    encoder: transformers.HubertModel
    layer: int
    kmeans: KMeansUnits
    normalize: bool = False  # whether the encoder wants waves of zero mean and unit variance

    @property
    def count(self) -> int:
        """K, the number of units."""
        return self.kmeans.count

    @property
    def hop(self) -> int:
        """Samples from one unit to the next, at 16 kHz."""
        return framing(self.encoder.config)[0]

    @property
    def frame_rate(self) -> float:
        """Frames, and so units before they are merged, a second."""
        return SAMPLE_RATE / self.hop

    @functools.cached_property
    def feature_encoder(self) -> FeatureEncoder:
        """The encoder up to the chosen layer, on the CPU."""
        return FeatureEncoder(self.encoder, self.layer, normalize=self.normalize)

    def features(self, wave: np.ndarray) -> np.ndarray:
        """Hidden states of the chosen layer: float32 samples (n,) at 16 kHz → (frames, width)."""
        return self.feature_encoder.single(wave)

    def encode(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Speech → (merged units (n,), durations in frames (n,)), int64."""
        return merge(self.kmeans.assign(self.features(wave)))

    def save(self, folder: Path) -> None:
        """Writes the inventory into `folder`."""
        (folder / "encoder").mkdir(parents=True, exist_ok=True)
        self.encoder.config.save_pretrained(folder / "encoder")
        save_module(self.encoder, folder / "encoder" / "model.safetensors")
        self.kmeans.save(folder / "centroids.safetensors")
        facts = {"id": self.id, "layer": self.layer, "clusters": self.count}
        facts |= {"frame_rate_hz": self.frame_rate, "normalize": self.normalize}
        facts |= {"hop_samples": self.hop} if self.hop != HOP else {}
        write_json(folder / "inventory.json", facts)

    @classmethod
    def load(cls, folder: Path) -> UnitInventory:
        """Reads what `save` wrote; raises UserError where its files don't make its id."""
        facts = read_json(folder / "inventory.json")
        with reading(folder, "run notebook 01 again, or get it again", "is no whole inventory"):
            config = transformers.HubertConfig.from_pretrained(
                folder / "encoder", local_files_only=True
            )
            check_sizes(config.to_dict(), folder)
            weights = folder / "encoder" / "model.safetensors"
            check_described(lambda: transformers.HubertModel(config), weights)
            encoder = transformers.HubertModel(config).eval()
            load_module(encoder, weights)
            kmeans = KMeansUnits.load(folder / "centroids.safetensors")
            found = cls.create(encoder, facts["layer"], kmeans, facts.get("normalize", False))
        if (said := facts.get("frame_rate_hz", found.frame_rate)) != found.frame_rate:
            made = f"says {said} units a second, its encoder makes {found.frame_rate:g}"
            raise UserError(f"{folder} {made}: import the encoder again")
        if found.id != facts["id"]:
            made = f"says it is inventory {facts['id']} but makes {found.id}"
            raise UserError(f"{folder} {made}: a file there was changed")
        return found

    @classmethod
    def create(
        cls,
        encoder: transformers.HubertModel,
        layer: int,
        kmeans: KMeansUnits,
        normalize: bool = False,
    ) -> UnitInventory:
        """Names the parts; raises UserError where they don't belong together."""
        check_layer(layer, encoder.config.num_hidden_layers)
        check_kind(encoder.config)
        width, expected = kmeans.centroids.shape[1], encoder.config.hidden_size
        if width != expected:
            raise UserError(f"centroids have width {width} but layer {layer} gives {expected}")

        def digest(tensor: torch.Tensor) -> str:
            return hashlib.sha256(tensor.contiguous().cpu().numpy().tobytes()).hexdigest()

        weights = {name: digest(tensor) for name, tensor in encoder.state_dict().items()}
        centroids = digest(torch.from_numpy(kmeans.centroids))
        identity = {"weights": weights, "layer": layer, "centroids": centroids}
        identity |= {"normalize": True} if normalize else {}
        return cls(hash_json(identity)[:16], encoder.eval(), layer, kmeans, normalize)


def check_inventory(found: str, expected: str, what: str) -> None:
    """Refuses units of inventory `found` where `expected` is needed; `what` names the consumer."""
    if found != expected:
        both = f"inventory {expected} but the units are of inventory {found}"
        raise UserError(f"{what} was made for unit {both}: use units of the same run")


def check_hop(inventory: UnitInventory, hop: int, what: str) -> None:
    """Refuses a vocoder, named in `what`, that makes a unit longer or shorter than it is."""
    if hop != inventory.hop:
        lasts = f"a unit of inventory {inventory.id} lasts {inventory.hop}"
        raise UserError(f"{what} makes {hop} samples a unit, {lasts} ({inventory.frame_rate:g} Hz)")
