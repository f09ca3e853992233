"""Small real objects for tests: a tiny recipe, vocabulary, language model and unit inventory."""

from __future__ import annotations

import contextlib
import resource
import socketserver
import threading
from collections.abc import Iterator

import numpy as np
import torch

from speechgpt_lib.corpora.build import open_corpora
from speechgpt_lib.corpora.corpus import Corpora
from speechgpt_lib.corpora.lab import speak_all
from speechgpt_lib.corpora.tables import Utterance
from speechgpt_lib.corpora.world import lab_texts
from speechgpt_lib.language_model.model import build_model, load_model
from speechgpt_lib.language_model.vocabulary import Vocabulary, train_text_tokenizer
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.recipes.schema import LanguageModelSettings, Optimization, Recipe
from speechgpt_lib.runs.run import Run
from speechgpt_lib.units.hubert import build_encoder
from speechgpt_lib.units.inventory import UnitInventory
from speechgpt_lib.units.kmeans import KMeansUnits


def smoke_recipe(**changes) -> Recipe:
    return load_recipe("smoke").model_copy(update=changes)


def lab_corpora() -> Corpora:
    """The lab world as the only corpus."""
    return open_corpora(smoke_recipe())


def spoken(*texts: str, voice: str = "Female2") -> list[np.ndarray]:
    """A voice says each of `texts`, always alike: eSpeak carries state along, and what other
    tests had said before would decide what is heard."""
    plan = [Utterance(text, text, "", "", voice, "", rate=175) for text in texts]
    return [u.wave for u in speak_all(plan)]


def few_steps(steps: int, **changes) -> Optimization:
    values = {"learning_rate": 1e-3, "warmup": 1, "precision": "no", "log_every": 1} | changes
    return Optimization(steps=steps, **values)


def tiny_vocabulary(units: int = 20, inventory: str = "test") -> Vocabulary:
    vocabulary = Vocabulary(train_text_tokenizer(lab_texts(0, 200), 500))
    return vocabulary.expand(units, inventory) if units else vocabulary


def tiny_language_model(vocabulary: Vocabulary, seed: int = 0, **changes):
    shape = {"hidden_size": 80, "layers": 2, "heads": 5, "feed_forward": 96}
    settings = shape | {"optimization": few_steps(1)} | changes
    return build_model(LanguageModelSettings(**settings), vocabulary.size, seed).eval()


def tiny_inventory(layer: int = 1, clusters: int = 20, seed: int = 0) -> UnitInventory:
    torch.manual_seed(seed)
    encoder = build_encoder(load_recipe("smoke").units.hubert).eval()
    rng = np.random.default_rng(seed)
    centroids = rng.normal(size=(clusters, encoder.config.hidden_size)).astype(np.float32)
    return UnitInventory.create(encoder, layer, KMeansUnits(centroids))


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: every write beyond fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (
        np.random.default_rng(seed).normal(scale=0.1, size=int(seconds * 16_000)).astype(np.float32)
    )


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator:
    """The server, answering in a thread of its own during the block."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def change_of_old_logits(run: Run) -> float:
    """By how much the expanded model's logits of old tokens differ from the text model's."""
    paths = (run.require(name).path for name in ("text_model", "expanded_model"))
    (old, before), (new, _) = map(load_model, paths)
    probe = torch.tensor([[before.begin, *before.encode_text("the big dog is in the house")]])
    with torch.inference_mode():
        return (new(probe).logits[..., : before.size] - old(probe).logits).abs().max().item()
