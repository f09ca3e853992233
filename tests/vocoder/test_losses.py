from __future__ import annotations

import pytest
import torch

from speechgpt_lib.vocoder.losses import (
    Discriminators,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    reconstruction_loss,
)


@pytest.fixture(scope="module")
def waves() -> torch.Tensor:
    return 0.1 * torch.randn(3, 2560, generator=torch.Generator().manual_seed(0))


def test_the_reconstruction_loss_is_zero_for_the_same_wave_only(waves):
    assert reconstruction_loss(waves, waves) == pytest.approx(0, abs=1e-5)
    without_sign = reconstruction_loss(-waves, waves)  # as a spectrum is
    assert without_sign == pytest.approx(0, abs=1e-5)
    little, much = reconstruction_loss(0.9 * waves, waves), reconstruction_loss(0.3 * waves, waves)
    assert 0 < little < much


def test_the_gradient_is_finite_at_digital_silence(waves):
    silence = torch.zeros_like(waves, requires_grad=True)
    reconstruction_loss(silence, waves).backward()
    assert torch.isfinite(silence.grad).all()
    assert torch.isfinite(reconstruction_loss(waves, torch.zeros_like(waves)))


def test_losses_of_a_split_batch_add_up(waves):
    """Several processes may share a batch: the mean is the weighted mean over the parts."""
    real, made = waves, waves.flip(0) * 0.5
    torch.manual_seed(0)
    judge = Discriminators(1).eval()

    def losses(part: slice) -> torch.Tensor:
        r, m = judge(real[part]), judge(made[part])
        sound = reconstruction_loss(made[part], real[part])
        both = judge(torch.cat([real[part], made[part]]))
        judged = discriminator_loss(both, len(real[part])), generator_loss(m)
        return torch.stack([sound, *judged, feature_matching_loss(r, m)]).detach()

    whole = losses(slice(None))
    parts = (2 * losses(slice(0, 2)) + losses(slice(2, 3))) / 3
    assert torch.allclose(whole, parts, rtol=1e-4)


def test_discriminators_are_five_periods_and_three_scales_as_published():
    with torch.device("meta"):
        judge = Discriminators(32)
    assert [period.period for period in judge.periods] == [2, 3, 5, 7, 11]
    assert [conv.out_channels for conv in judge.periods[0].convs] == [32, 128, 512, 1024, 1024]
    assert len(judge.scales) == 3
    widths = [conv.out_channels for conv in judge.scales[0].convs]
    assert widths == [128, 128, 256, 512, 1024, 1024, 1024]
    assert [conv.groups for conv in judge.scales[0].convs] == [1, 4, 16, 16, 16, 16, 1]


def test_discriminators_score_every_wave_of_any_length(waves):
    judge = Discriminators(1)
    for length in (2560, 2551):
        judged = judge(waves[:, :length])
        assert len(judged) == 8
        for scores, features in judged:
            assert len(scores) == 3 and scores.ndim == 2
            assert all(len(feature) == 3 for feature in features)


def test_least_squares_losses_want_one_for_real_and_zero_for_made():
    def judged(*scores: float):
        values = torch.tensor(scores).float().repeat_interleave(2)[:, None]
        return [(values.expand(-1, 5), [values.expand(-1, 4)])]

    assert discriminator_loss(judged(1, 0), 2) == 0
    assert discriminator_loss(judged(0, 1), 2) == 2
    assert generator_loss(judged(1)) == 0
    assert generator_loss(judged(0)) == 1
    assert feature_matching_loss(judged(1), judged(0.25)) == 0.75
