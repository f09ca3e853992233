"""Four sentences with units of their own, and a model that has learned them."""

import numpy as np
import pytest
import torch

from speechgpt_lib.recipes.schema import Optimization, TextToUnitSettings
from speechgpt_lib.text_to_unit.training import train_text_to_unit
from speechgpt_lib.training.options import TrainingOptions

UNIT_COUNT = 20


def units_of(text: str) -> np.ndarray:
    """Two units a letter, as far as merging leaves them."""
    letters = np.array([ord(c) - ord("a") for c in text if c != " "])
    units = np.stack([letters % UNIT_COUNT, (3 * letters + 7) % UNIT_COUNT], axis=1).ravel()
    return units[np.concatenate(([True], units[1:] != units[:-1]))]


def settings(steps: int, **changes) -> TextToUnitSettings:
    optimization = Optimization(
        steps=steps, learning_rate=3e-3, warmup=10, precision="no", save_every_s=1e9
    )
    shape = {"hidden_size": 32, "layers": 1, "heads": 2, "feed_forward": 64, "tokens_per_batch": 60}
    return TextToUnitSettings(**(shape | changes), optimization=optimization)


@pytest.fixture(scope="session")
def pairs():
    texts = ["the dog is red", "a bird", "where is the old horse", "two and two"]
    return [(text, units_of(text)) for text in texts]


@pytest.fixture(scope="session")
def trained(pairs, tmp_path_factory):
    """(model, summary, folder of the metrics log)."""
    torch.set_num_threads(1)
    work = tmp_path_factory.mktemp("text_to_unit")
    model, summary = train_text_to_unit(
        pairs, UNIT_COUNT, settings(300), work, TrainingOptions(seed=1), inventory_id="feed"
    )
    return model, summary, work
