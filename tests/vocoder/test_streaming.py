from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechgpt_lib.errors import UserError
from speechgpt_lib.rates import HOP
from speechgpt_lib.recipes.schema import DurationSettings, Optimization, VocoderSettings
from speechgpt_lib.vocoder.durations import DurationPredictor
from speechgpt_lib.vocoder.generator import UnitGenerator
from speechgpt_lib.vocoder.streaming import GeneratorStream, lookahead
from speechgpt_lib.vocoder.synthesis import Vocoder

UNITS = 9
_O = Optimization(steps=1, learning_rate=1e-3)
PUBLISHED = VocoderSettings(optimization=_O, duration_optimization=_O)
NARROW = PUBLISHED.model_copy(update={"channels": 32, "embedding": 16})
GEOMETRIES = {
    "published, narrow": NARROW,
    "lab, narrow": NARROW.model_copy(
        update={"resblock_kernels": (3, 7), "resblock_dilations": ((1,), (3,))}
    ),
    "kernels far longer than rates": VocoderSettings(
        channels=8,
        embedding=4,
        upsample_rates=(2, 160),
        upsample_kernels=(10, 160),
        resblock_kernels=(1, 3),
        resblock_dilations=((1,), (1, 2)),
        optimization=_O,
        duration_optimization=_O,
    ),
    "inverse STFT": VocoderSettings(
        channels=16,
        embedding=8,
        upsample_rates=(),
        upsample_kernels=(),
        inverse_stft_hop=320,
        frame_blocks=2,
        durations=DurationSettings(convolutions=4, longest=6),
        optimization=_O,
        duration_optimization=_O,
    ),
    "inverse STFT after two stages": NARROW.model_copy(
        update={
            "upsample_rates": (5, 4),
            "upsample_kernels": (11, 8),
            "inverse_stft_hop": 16,
            "frame_blocks": 1,
        }
    ),
}


def loud(generator: UnitGenerator) -> UnitGenerator:
    """Biases and weights at a size at which mistakes at borders show."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(1.3)
        for name, parameter in generator.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return generator.fold_weight_norm().eval()


@pytest.fixture(scope="module", params=GEOMETRIES, ids=str)
def speaking(request) -> Vocoder:
    torch.manual_seed(0)
    settings = GEOMETRIES[request.param]
    durations = DurationPredictor(UNITS, settings.embedding, settings=settings.durations)
    with torch.no_grad():
        durations.proj.bias += 1.0
        durations.proj.weight.mul_(2)
    return Vocoder(loud(UnitGenerator(UNITS, settings)), durations, "inventory-a", settings)


@pytest.mark.parametrize("piece", [1, 2, 7, 50, 1000])
def test_pieces_together_are_the_whole(speaking, piece):
    frames = np.random.default_rng(0).integers(0, UNITS, 61)
    with torch.inference_mode():
        whole = speaking.generator(torch.from_numpy(frames)[None])[0].numpy()
    stream, made, withheld = GeneratorStream(speaking.generator), [], lookahead(speaking.generator)
    for start in range(0, 61, piece):
        last = start + piece >= 61
        made.append(stream(frames[start : start + piece], last))
        expected = 61 * HOP if last else max(0, min(61, start + piece) * HOP - withheld)
        # Else sound is withheld longer than needed, or given too early.
        assert abs(sum(map(len, made)) - expected) < (1 if last else HOP)
    assert whole.std() > 1e-3
    assert np.abs(np.concatenate(made) - whole).max() <= 1e-5


def test_the_published_geometry_looks_ahead_by_two_fifths_of_a_second():
    with torch.device("meta"):
        generator = UnitGenerator(4, PUBLISHED)
    assert lookahead(generator) == 6418


def test_nothing_after_what_it_looks_ahead_changes_what_was_said(speaking):
    """So the sound may go out: whatever follows, these samples stay."""
    rng, withheld = np.random.default_rng(0), lookahead(speaking.generator)
    first = rng.integers(0, UNITS, 40)
    for seed in range(3):
        rest = np.random.default_rng(seed).integers(0, UNITS, 30)
        units = torch.from_numpy(np.concatenate([first, rest]))[None]
        with torch.inference_mode():
            whole = speaking.generator(units)[0].numpy()
        early = GeneratorStream(speaking.generator)(first)
        assert len(early) >= 40 * HOP - withheld
        assert np.abs(early - whole[: len(early)]).max() <= 1e-5


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, UNITS - 1), min_size=0, max_size=6), min_size=1, max_size=12),
    st.sampled_from([0.25, 0.7, 1.0, 1.3, 2.0, 4.0]),
    st.integers(1, 20),
)
def test_units_pushed_in_any_portions_sound_as_if_spoken_at_once(portions, speed, piece):
    units = [unit for portion in portions for unit in portion]
    if not units:
        return
    torch.manual_seed(0)
    geometry = GEOMETRIES["lab, narrow"]
    generator = loud(UnitGenerator(UNITS, geometry))
    vocoder = Vocoder(generator, DurationPredictor(UNITS, 16), "inventory-a", geometry)
    stream = vocoder.stream(speed=speed, piece=piece)
    pieces = [stream.push(portion) for portion in portions] + [stream.finish()]
    whole = vocoder.synthesize(units, speed=speed)
    streamed = np.concatenate(pieces)
    assert streamed.dtype == np.float32 and streamed.shape == whole.shape
    assert np.abs(streamed - whole).max() <= 1e-4


def test_the_first_sound_comes_before_the_last_unit(speaking):
    units = np.random.default_rng(0).integers(0, UNITS, 80).tolist()
    whole = speaking.synthesize(units)
    stream = speaking.stream(piece=1)
    heard = np.zeros(0, np.float32)
    for unit in units:
        heard = np.concatenate([heard, stream.push(unit)])
    assert 0 < len(heard) < len(whole)
    last = -speaking.durations.reach
    untimed = HOP * int(speaking.predict_durations(units)[last:].sum())
    assert len(whole) - len(heard) <= lookahead(speaking.generator) + untimed
    assert np.abs(np.concatenate([heard, stream.finish()]) - whole).max() <= 1e-4


def test_a_generator_of_units_gives_pieces_of_sound(speaking):
    units = np.random.default_rng(2).integers(0, UNITS, 70)
    pieces = list(speaking.stream(piece=5).run(iter(units)))
    assert len(pieces) > 3 and all(len(piece) for piece in pieces)
    assert np.abs(np.concatenate(pieces) - speaking.synthesize(units)).max() <= 1e-4


def test_memory_does_not_grow(speaking):
    """What all layers keep after 30 s is what they kept after 3 s."""

    def kept(stream: GeneratorStream) -> int:
        found, seen = 0, set()
        todo: list = [stream]
        while todo:
            thing = todo.pop()
            if id(thing) in seen or isinstance(thing, torch.nn.Module):
                continue
            seen.add(id(thing))
            if isinstance(thing, torch.Tensor):
                found += thing.numel()
            elif isinstance(thing, list | tuple):
                todo += thing
            elif isinstance(thing, dict):
                todo += thing.values()
            elif hasattr(thing, "__dict__"):
                todo += vars(thing).values()
        return found

    stream, sizes = GeneratorStream(speaking.generator), []
    for _ in range(30):
        stream(np.random.default_rng(0).integers(0, UNITS, 50))
        sizes.append(kept(stream))
    assert sizes[2] == sizes[-1] > 0


def test_mistakes_are_named(speaking):
    stream = speaking.stream()
    with pytest.raises(UserError, match="unit id 9 is out of range"):
        stream.push([1, 9])
    assert len(stream.push([])) == 0
    stream.push([1, 2])
    stream.finish()
    assert len(stream.finish()) == 0
    with pytest.raises(UserError, match="finished"):
        stream.push(1)
    assert len(speaking.stream().finish()) == 0
    with pytest.raises(UserError, match="speed"):
        speaking.stream(speed=9)
    with pytest.raises(UserError, match="piece"):
        speaking.stream(piece=0)
    with pytest.raises(UserError, match=r"inventory-a.*inventory-b"):
        speaking.stream(inventory="inventory-b")
