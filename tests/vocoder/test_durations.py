from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import DurationSettings
from speechgpt_lib.vocoder.durations import DurationPredictor, scale_durations


def test_a_duration_is_rounded_and_at_least_one_frame():
    predictor = DurationPredictor(4, 8)
    units = torch.tensor([[0, 1, 2, 3]])
    torch.nn.init.zeros_(predictor.proj.weight)
    cases = ((-3.0, 1), (0.0, 1), (np.log(3.4), 2), (np.log(3.6), 3), (np.log(21.0), 20))
    for log_duration, frames in cases:
        torch.nn.init.constant_(predictor.proj.bias, float(log_duration))
        assert predictor.predict(units).tolist() == [[frames] * 4]


WIDE = DurationSettings(convolutions=4, longest=5)


@pytest.fixture(params=[DurationSettings(), WIDE], ids=["published", "wide"])
def timed(request) -> DurationPredictor:
    torch.manual_seed(0)
    return DurationPredictor(9, 8, settings=request.param).double().eval()


def test_the_published_predictor_has_two_convolutions():
    shapes = {name: tuple(p.shape) for name, p in DurationPredictor(9, 8, 12).named_parameters()}
    assert [n for n in shapes if "conv" in n and "weight" in n] == [
        "conv1.0.weight",
        "conv2.0.weight",
    ]
    assert shapes["conv2.0.weight"] == (12, 12, 3) and shapes["proj.weight"] == (1, 12)


def test_a_duration_depends_on_units_as_far_as_the_reach_and_no_further(timed):
    units = torch.randint(0, 9, (1, 60))
    for distance, same in ((timed.reach + 1, True), (timed.reach, False)):
        other = units.clone()
        other[0, 30 + distance] = (other[0, 30 + distance] + 1) % 9
        with torch.inference_mode():
            assert torch.equal(timed(units)[0, 30], timed(other)[0, 30]) == same


def test_the_median_of_the_frames_is_predicted():
    predictor = DurationPredictor(4, 8, settings=WIDE)
    torch.nn.init.zeros_(predictor.proj.weight)
    for shares, frames in (
        ((0.4, 0.2, 0.2, 0.1, 0.1), 2),
        ((0.6, 0.1, 0.1, 0.1, 0.1), 1),
        ((0.0, 0.0, 0.0, 0.0, 1.0), 5),
        ((0.1, 0.1, 0.1, 0.1, 0.6), 5),
    ):
        predictor.proj.bias.data = torch.log(torch.tensor(shares) + 1e-9)
        assert predictor.predict(torch.tensor([[0, 1]])).tolist() == [[frames] * 2]


def test_units_that_last_longer_than_any_it_knows_count_as_the_longest():
    predictor = DurationPredictor(4, 8, settings=WIDE).eval()
    predicted = predictor(torch.tensor([[0, 1]]))[0]
    longest, longer = torch.tensor([5, 5]), torch.tensor([5, 90])
    assert torch.equal(predictor.loss(predicted, longest), predictor.loss(predicted, longer))


def test_prediction_has_no_dropout():
    predictor = DurationPredictor(4, 8).eval()
    units = torch.randint(0, 4, (2, 50))
    with torch.no_grad():
        predictor.proj.bias += 2
    assert torch.equal(predictor.predict(units), predictor.predict(units))


def test_padding_changes_nothing(timed):
    rows = [torch.randint(0, 9, (n,)) for n in (5, 12)]
    padded, mask = torch.full((2, 12), 3), torch.zeros(2, 12, dtype=torch.bool)
    for i, row in enumerate(rows):
        padded[i, : len(row)], mask[i, : len(row)] = row, True
    with torch.inference_mode():
        together = timed(padded, mask)
        for i, row in enumerate(rows):
            assert torch.allclose(together[i, : len(row)], timed(row[None])[0], atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.floats(0.25, 4))
def test_scaled_durations_add_up_to_the_scaled_whole(durations, speed):
    scaled = scale_durations(np.array(durations), speed)
    assert len(scaled) == len(durations)
    assert (scaled >= 0).all()
    assert abs(scaled.sum() - max(1, sum(durations) / speed)) <= 0.5
    if speed <= 1:
        assert (scaled >= np.array(durations)).all()


def test_speed_one_keeps_durations():
    assert scale_durations(np.array([3, 0, 2]), 1.0).tolist() == [3, 0, 2]


@pytest.mark.parametrize("speed", [0, -1, 0.2, 4.5, float("nan")])
def test_a_speed_beyond_reason_is_refused(speed):
    with pytest.raises(UserError, match="speed"):
        scale_durations(np.array([1, 2]), speed)
