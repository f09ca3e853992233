from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from speechgpt_lib.errors import UserError
from speechgpt_lib.training.log import read_metrics
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.sequence import merge
from speechgpt_lib.vocoder import training
from speechgpt_lib.vocoder.speech import SpeechInMemory
from speechgpt_lib.vocoder.training import train_durations, train_vocoder

UNITS, OPTIONS = 6, TrainingOptions(seed=0)


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in module.state_dict().values()])


def checkpoint(work, step: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(work / "checkpoints" / f"step_{step:08d}" / f"{name}.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_discriminators_change_in_the_adversarial_phase_and_only_then(pairs, tiny, tmp_path):
    """Steps 1 and 2 are warm-up, 3 and 4 adversarial; a checkpoint is kept after each of the last three but the end."""
    generator, summary = train_vocoder(SpeechInMemory(pairs, UNITS), UNITS, tiny, tmp_path, OPTIONS)
    assert summary["steps"] == 4 and summary["adversarial_steps"] == 2
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert ["adversarial" in row for row in rows] == [False, False, True, True]
    assert ["discriminators_loss" in row for row in rows] == [False, False, True, True]
    assert not same(
        checkpoint(tmp_path, 2, "discriminators"), checkpoint(tmp_path, 3, "discriminators")
    )
    assert not same(checkpoint(tmp_path, 2, "generator"), checkpoint(tmp_path, 3, "generator"))

    warm_up = tiny.model_copy(update={"adversarial_from": 1.0})
    alone, summary = train_vocoder(
        SpeechInMemory(pairs, UNITS), UNITS, warm_up, tmp_path / "alone", OPTIONS
    )
    assert summary["adversarial_steps"] == 0
    folder = tmp_path / "alone"
    assert same(checkpoint(folder, 2, "discriminators"), checkpoint(folder, 3, "discriminators"))
    assert not torch.equal(weights(alone), weights(generator))


def test_a_run_that_was_killed_ends_in_the_same_weights(pairs, tiny, tmp_path):
    """Killed inside the adversarial phase, when both optimizers carry state, and at its border."""
    whole, _ = train_vocoder(SpeechInMemory(pairs, UNITS), UNITS, tiny, tmp_path / "whole", OPTIONS)
    for step in (2, 3):
        work = tmp_path / f"killed_{step}"
        (work / "checkpoints").mkdir(parents=True)
        name = f"step_{step:08d}"
        shutil.copytree(tmp_path / "whole" / "checkpoints" / name, work / "checkpoints" / name)
        resumed, summary = train_vocoder(SpeechInMemory(pairs, UNITS), UNITS, tiny, work, OPTIONS)
        assert summary["resumed_from"] == step
        assert torch.equal(weights(whole), weights(resumed))


def test_without_discriminators_only_they_are_missing(pairs, tiny, tmp_path):
    """It starts from the very state in which they join, and ends as a training in which they never do."""
    speech = SpeechInMemory(pairs, UNITS)
    judged, _ = train_vocoder(speech, UNITS, tiny, tmp_path / "judged", OPTIONS)
    alone, summary = train_vocoder(
        speech, UNITS, tiny, tmp_path / "alone", OPTIONS, joined_from=tmp_path / "judged"
    )
    assert summary["resumed_from"] == 2 and summary["adversarial_steps"] == 0
    never, _ = train_vocoder(
        speech,
        UNITS,
        tiny.model_copy(update={"adversarial_from": 1.0}),
        tmp_path / "never",
        OPTIONS,
    )
    assert torch.equal(weights(alone), weights(never))
    assert not torch.equal(weights(alone), weights(judged))


def test_one_hears_and_sees_how_it_learns(pairs, tiny, tmp_path):
    """A sound and a picture early, where the discriminators join, and at the end; again after a kill; the training is not disturbed."""
    import soundfile
    from matplotlib.image import imread

    speech, frames = SpeechInMemory(pairs, UNITS), pairs[0][0][:10]
    generator, _ = train_vocoder(speech, UNITS, tiny, tmp_path / "heard", OPTIONS, sample=frames)
    silent, _ = train_vocoder(speech, UNITS, tiny, tmp_path / "silent", OPTIONS)
    assert torch.equal(weights(generator), weights(silent))
    samples = tmp_path / "heard" / "samples"
    names = [f"step_{step:06d}" for step in training.sample_steps(tiny)]
    assert len(names) == 3 and sorted(p.name for p in samples.iterdir()) == sorted(
        f"{n}.{kind}" for n in names for kind in ("png", "wav")
    )
    waves = [soundfile.read(samples / f"{name}.wav")[0] for name in names]
    assert all(len(wave) == 3200 for wave in waves)
    assert not np.array_equal(waves[0], waves[-1])
    with torch.inference_mode():
        last = generator(torch.from_numpy(frames)[None])[0].numpy()
    assert np.abs(waves[-1] - last).max() < 1e-4
    assert imread(samples / f"{names[0]}.png").shape[0] == 40

    work = tmp_path / "killed"
    (work / "checkpoints").mkdir(parents=True)
    shutil.copytree(
        tmp_path / "heard" / "checkpoints" / "step_00000002", work / "checkpoints" / "step_00000002"
    )
    train_vocoder(
        speech, UNITS, tiny, work, OPTIONS, sample=frames
    )  # killed while it spoke at step 2
    for name in names[1:]:
        assert (work / "samples" / f"{name}.wav").read_bytes() == (
            samples / f"{name}.wav"
        ).read_bytes()


def test_speakers_are_learned_apart(pairs, tiny, tmp_path):
    """The same units as a tone for one speaker, as near silence for another."""
    quiet = [(units, 0.01 * wave) for units, wave in pairs]
    speech = SpeechInMemory(pairs + quiet, UNITS, ["loud"] * len(pairs) + ["quiet"] * len(quiet))
    assert speech.names == ("loud", "quiet") and speech.speakers.tolist() == [0] * 5 + [1] * 5
    longer = tiny.optimization.model_copy(
        update={"steps": 120, "learning_rate": 1e-2, "save_every_s": 60.0}
    )
    settings = tiny.model_copy(update={"optimization": longer, "adversarial_from": 1.0})
    generator, _ = train_vocoder(speech, UNITS, settings, tmp_path, OPTIONS)
    units = torch.from_numpy(pairs[0][0])[None]
    with torch.inference_mode():
        loud, soft = (
            generator(units, torch.tensor([speaker])).square().mean().sqrt() for speaker in (0, 1)
        )
    assert loud > 2 * soft


def test_the_seed_decides_everything(pairs, tiny, tmp_path):
    runs = [
        train_vocoder(
            SpeechInMemory(pairs, UNITS), UNITS, tiny, tmp_path / str(i), TrainingOptions(seed)
        )[0]
        for i, seed in enumerate((0, 0, 1))
    ]
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


def test_training_learns(pairs, tiny, tmp_path):
    longer = tiny.optimization.model_copy(
        update={"steps": 40, "learning_rate": 1e-2, "save_every_s": 60.0}
    )
    settings = tiny.model_copy(update={"optimization": longer, "adversarial_from": 1.0})
    train_vocoder(SpeechInMemory(pairs, UNITS), UNITS, settings, tmp_path, OPTIONS)
    losses = [row["reconstruction"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_the_generator_phase_leaves_the_discriminators_no_gradient():
    torch.manual_seed(0)
    judge = training.Discriminators(1)
    made = (0.1 * torch.randn(2, 2560)).requires_grad_()
    adversarial, matching = training._judged_loss(judge, made, torch.randn(2, 2560))
    (adversarial + matching).backward()
    assert made.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in judge.parameters())


def test_durations_are_learned_and_resume_exactly(tiny, tmp_path):
    """Unit u lasts u + 1 frames."""
    rng = np.random.default_rng(0)
    sequences = [(units, units + 1) for units in (rng.permutation(UNITS) for _ in range(20))]
    longer = tiny.duration_optimization.model_copy(
        update={"steps": 150, "learning_rate": 2e-2, "save_every_s": 60.0}
    )
    settings = tiny.model_copy(update={"duration_optimization": longer, "embedding": 16})
    predictor, _ = train_durations(sequences, UNITS, settings, tmp_path / "long", OPTIONS)
    predicted = predictor.predict(torch.arange(UNITS)[None])[0]
    assert (predicted - torch.arange(1, UNITS + 1)).abs().max() <= 1

    whole, _ = train_durations(sequences, UNITS, tiny, tmp_path / "whole", OPTIONS)
    work = tmp_path / "killed" / "checkpoints"
    work.mkdir(parents=True)
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step_00000002", work / "step_00000002")
    resumed, summary = train_durations(sequences, UNITS, tiny, work.parent, OPTIONS)
    assert summary["resumed_from"] == 2
    assert torch.equal(weights(whole), weights(resumed))


def test_data_that_cannot_be_learned_from_is_refused(pairs, tiny, tmp_path):
    units, wave = copy.deepcopy(pairs[0])
    with pytest.raises(UserError, match="out of range"):
        SpeechInMemory([(units + 1, wave)], int(units.max()) + 1)
    with pytest.raises(UserError, match="fewer than"):
        SpeechInMemory([(merge(units)[0], wave[:100])], UNITS)
    with pytest.raises(UserError, match="none of 1 utterances"):
        train_vocoder(SpeechInMemory([(units[:3], wave)], UNITS), UNITS, tiny, tmp_path, OPTIONS)
    with pytest.raises(UserError, match="one each"):
        train_durations([(np.array([1, 2]), np.array([1]))], UNITS, tiny, tmp_path, OPTIONS)
    with pytest.raises(UserError, match="no unit sequences"):
        train_durations([], UNITS, tiny, tmp_path, OPTIONS)
    assert not (tmp_path / "checkpoints").exists()
