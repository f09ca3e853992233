"""Units by the real fairseq (`make fairseq`), as the measure for the reader that needs no fairseq.

fairseq 0.12.2 is older than Python 3.11, which refuses its configuration classes as defaults since
they have no hash: they get one while it is imported.  And it is older than PyTorch 2.6, which reads
weights alone: two plain classes of its files are allowed.  Nothing of it on disk is changed.
"""

import argparse
import dataclasses
import functools
import importlib.util
import logging
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.foreign.checkpoints import check_is_no_text, named_classes
from speechgpt_lib.rates import MINIMUM_SAMPLES
from speechgpt_lib.units.features import check_layer, check_length
from speechgpt_lib.units.kmeans import KMeansUnits
from speechgpt_lib.units.long_audio import RELEASE_CHUNK

HARMLESS = {"fairseq.data.dictionary.Dictionary", "argparse.Namespace"}
plain_dataclass = dataclasses.dataclass


class FairseqEncoder:
    """A HuBERT in fairseq's own code, read with its own loader once `refuse_code` has looked."""

    def __init__(self, path: Path | str, layer: int):
        refuse_code(checkpoint := Path(path).expanduser())
        fairseq = import_fairseq()
        allowed = [fairseq.data.dictionary.Dictionary, argparse.Namespace]
        with torch.serialization.safe_globals(allowed):
            load = fairseq.checkpoint_utils.load_model_ensemble_and_task
            models, _, task = load([str(checkpoint)])
        self.model, self.layer, self.normalize = models[0].eval(), layer, bool(task.cfg.normalize)
        check_layer(layer, len(self.model.encoder.layers))

    @torch.inference_mode()
    def features(self, wave: np.ndarray, chunk: int = RELEASE_CHUNK) -> np.ndarray:
        """float32 samples (n,) at 16 kHz → (frames, width), in the release's chunks of samples."""
        check_length(len(wave))
        samples = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
        if self.normalize:
            samples = torch.nn.functional.layer_norm(samples, samples.shape)
        options = {"padding_mask": None, "mask": False, "output_layer": self.layer}
        parts = [p for p in samples.split(chunk) if len(p) >= MINIMUM_SAMPLES]
        found = [self.model.extract_features(source=part[None], **options)[0][0] for part in parts]
        return torch.cat(found).numpy()

    def units(self, wave: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        """The nearest centroid of each frame, (frames,), as fairseq's `ApplyKmeans` finds it."""
        return KMeansUnits(centroids).assign(self.features(wave))


def refuse_code(path: Path) -> None:
    """Refuses a checkpoint that names more than plain classes: fairseq would run whatever it names.

    Only the list of names is read.
    """
    check_is_no_text(path)
    if not zipfile.is_zipfile(path):
        old = "is in the format from before PyTorch 1.6, which can't be searched for code"
        raise UserError(f"{path} {old}: use --backend own")
    if strange := sorted(set(named_classes(path)) - HARMLESS):
        reason = f"was not given to fairseq: it asks to run {strange[0]}"
        raise UserError(f"{path} {reason}; --backend own reads what is safe to read")


@functools.cache
def import_fairseq():
    """The package, made to run here; raises UserError where it isn't installed."""
    if not importlib.util.find_spec("fairseq"):
        cure = "run `make fairseq`, or use --backend own, which gives the same units"
        raise UserError(f"fairseq is not installed here: {cure}")
    before = logging.getLogger().level
    with mock.patch.object(dataclasses, "dataclass", _hashable_dataclass):
        import fairseq
        import fairseq.checkpoint_utils
        import fairseq.data.dictionary
        import fairseq.tasks
    logging.getLogger().setLevel(before)  # fairseq makes every library talk
    return fairseq


def _hashable_dataclass(cls=None, /, **options):
    """`dataclass` that gives those of fairseq and hydra a hash, as before Python 3.11."""
    if cls is None:
        return functools.partial(_hashable_dataclass, **options)
    foreign = cls.__module__.partition(".")[0] in ("fairseq", "hydra")
    hashed = {"unsafe_hash": True} if foreign and not options.get("frozen") else {}
    return plain_dataclass(cls, **options | hashed)
