"""Units by the real fairseq, for those who want the original, and as the measure for the reader that needs no fairseq.

`make fairseq` installs it.  fairseq 0.12.2 is older than Python 3.11 and PyTorch 2.6; what it needs to run here is arranged while it is
imported, and nothing of it on disk is changed:

- Python 3.11 refuses its configuration classes as defaults, because they can't be hashed: they get a hash;
- PyTorch reads weights alone by default: two plain classes of its files are allowed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.foreign.checkpoints import check_is_no_text
from speechgpt_lib.rates import MINIMUM_SAMPLES
from speechgpt_lib.units.long_audio import RELEASE_CHUNK

HARMLESS = {"fairseq.data.dictionary.Dictionary", "argparse.Namespace"}


def is_installed() -> bool:
    return importlib.util.find_spec("fairseq") is not None


class FairseqEncoder:
    """A HuBERT in fairseq's own code, read with fairseq's own loader.

    Its loader would run whatever a checkpoint names, so one that names more than fairseq's two plain classes is refused before.
    """

    def __init__(self, path: Path | str, layer: int):
        checkpoint = Path(path).expanduser()
        refuse_code(checkpoint)
        fairseq = import_fairseq()
        with torch.serialization.safe_globals(
            [fairseq.data.dictionary.Dictionary, argparse.Namespace]
        ):
            models, _, task = fairseq.checkpoint_utils.load_model_ensemble_and_task(
                [str(checkpoint)]
            )
        self.model, self.layer, self.normalize = models[0].eval(), layer, bool(task.cfg.normalize)
        depth = len(self.model.encoder.layers)
        if not 1 <= layer <= depth:
            raise UserError(f"the encoder has layers 1 to {depth}, layer {layer} was asked for")

    @torch.inference_mode()
    def features(self, wave: np.ndarray, chunk: int = RELEASE_CHUNK) -> np.ndarray:
        """float32 samples (n,) at 16 kHz → (frames, width), in chunks of `chunk` samples as the release reads them."""
        if len(wave) < MINIMUM_SAMPLES:
            raise UserError(
                f"audio of {len(wave)} samples is too short: units need at least {MINIMUM_SAMPLES} (25 ms at 16 kHz)"
            )
        samples = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
        if self.normalize:
            samples = torch.nn.functional.layer_norm(samples, samples.shape)
        parts = [samples[start : start + chunk] for start in range(0, len(samples), chunk)]
        parts = [part for part in parts if len(part) >= MINIMUM_SAMPLES]
        options = {"padding_mask": None, "mask": False, "output_layer": self.layer}
        return torch.cat(
            [self.model.extract_features(source=part[None], **options)[0][0] for part in parts]
        ).numpy()

    def units(self, wave: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        """One unit a frame, by the formula of fairseq's `ApplyKmeans`: ‖x‖² − 2x·C + ‖C‖²."""
        features = self.features(wave)
        if features.shape[1] != centroids.shape[1]:
            raise UserError(
                f"features have width {features.shape[1]} but the centroids have {centroids.shape[1]}: they belong apart"
            )
        distances = (
            (features**2).sum(1, keepdims=True)
            - 2 * features @ centroids.T
            + (centroids.T**2).sum(0, keepdims=True)
        )
        return distances.argmin(1)


def refuse_code(path: Path) -> None:
    """Refuse a checkpoint that names anything that could be run; reads the list of names only."""
    check_is_no_text(path)
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is in the format from before PyTorch 1.6, which can't be searched for code: use --backend own"
        )
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:  # whatever a damaged archive makes its reader raise
        raise UserError(
            f"{path} is no whole PyTorch checkpoint ({str(error).splitlines()[0][:120]}): get it again"
        ) from None
    if strange := sorted(names - HARMLESS):
        raise UserError(
            f"{path} was not given to fairseq: it asks to run {strange[0]}; --backend own reads what is safe to read"
        )


@functools.cache
def import_fairseq():
    """The package, made to run here; raises UserError where it isn't installed."""
    if not is_installed():
        raise UserError(
            "fairseq is not installed here: run `make fairseq`, or use --backend own, which gives the same units"
        )
    before = logging.getLogger().level
    with _hashable_configurations():
        import fairseq
        import fairseq.checkpoint_utils
        import fairseq.data.dictionary
        import fairseq.tasks
    logging.getLogger().setLevel(before)  # fairseq makes every library talk
    return fairseq


@contextlib.contextmanager
def _hashable_configurations() -> Iterator[None]:
    """While this lasts, dataclasses of fairseq and hydra get a hash, as every class had before Python 3.11 looked for it."""
    real = dataclasses.dataclass

    def dataclass(cls=None, /, **options):
        def wrap(found):
            if found.__module__.partition(".")[0] in ("fairseq", "hydra") and not options.get(
                "frozen"
            ):
                return real(found, **options | {"unsafe_hash": True})
            return real(found, **options)

        return wrap if cls is None else wrap(cls)

    dataclasses.dataclass = dataclass
    try:
        yield
    finally:
        dataclasses.dataclass = real
