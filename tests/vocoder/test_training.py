from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.schema import DurationSettings, Optimization
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


def longer(optimization: Optimization, steps: int, learning_rate: float) -> Optimization:
    changes = {"steps": steps, "learning_rate": learning_rate, "save_every_s": 60.0}
    return optimization.model_copy(update=changes)


def killed(whole: Path, step: int, work: Path) -> Path:
    """What a training in the folder `whole` has left behind when it is killed after `step`."""
    name = f"checkpoints/step_{step:08d}"
    shutil.copytree(whole / name, work / name)
    return work


def test_the_discriminators_change_in_the_adversarial_phase_and_only_then(pairs, tiny, tmp_path):
    """Steps 1 and 2 are warm-up, 3 and 4 adversarial; checkpoints are kept after 2 and 3."""
    speech = SpeechInMemory(pairs, UNITS)
    generator, summary = train_vocoder(speech, UNITS, tiny, tmp_path, OPTIONS)
    assert summary["steps"] == 4 and summary["adversarial_steps"] == 2
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert ["adversarial" in row for row in rows] == [False, False, True, True]
    assert ["discriminators_loss" in row for row in rows] == [False, False, True, True]
    for name in ("discriminators", "generator"):
        assert not same(checkpoint(tmp_path, 2, name), checkpoint(tmp_path, 3, name))

    warm_up, folder = tiny.model_copy(update={"adversarial_from": 1.0}), tmp_path / "alone"
    alone, summary = train_vocoder(speech, UNITS, warm_up, folder, OPTIONS)
    assert summary["adversarial_steps"] == 0
    assert same(checkpoint(folder, 2, "discriminators"), checkpoint(folder, 3, "discriminators"))
    assert not torch.equal(weights(alone), weights(generator))


def test_a_run_that_was_killed_ends_in_the_same_weights(pairs, tiny, tmp_path):
    """Killed inside the adversarial phase, when both optimizers carry state, and at its border."""
    speech = SpeechInMemory(pairs, UNITS)
    whole, _ = train_vocoder(speech, UNITS, tiny, tmp_path / "whole", OPTIONS)
    for step in (2, 3):
        work = killed(tmp_path / "whole", step, tmp_path / f"killed_{step}")
        resumed, summary = train_vocoder(speech, UNITS, tiny, work, OPTIONS)
        assert summary["resumed_from"] == step
        assert torch.equal(weights(whole), weights(resumed))


def test_without_discriminators_only_they_are_missing(pairs, tiny, tmp_path):
    """It starts from the state in which they join, and ends as if they had never joined."""
    speech = SpeechInMemory(pairs, UNITS)
    judged, _ = train_vocoder(speech, UNITS, tiny, tmp_path / "judged", OPTIONS)
    alone, summary = train_vocoder(
        speech, UNITS, tiny, tmp_path / "alone", OPTIONS, joined_from=tmp_path / "judged"
    )
    assert summary["resumed_from"] == 2 and summary["adversarial_steps"] == 0
    warm_up = tiny.model_copy(update={"adversarial_from": 1.0})
    never, _ = train_vocoder(speech, UNITS, warm_up, tmp_path / "never", OPTIONS)
    assert torch.equal(weights(alone), weights(never))
    assert not torch.equal(weights(alone), weights(judged))


def test_one_hears_and_sees_how_it_learns(pairs, tiny, tmp_path):
    """A sound and a picture early, where discriminators join, at the end; again after a kill.

    The training is not disturbed.
    """
    import soundfile
    from matplotlib.image import imread

    speech, frames = SpeechInMemory(pairs, UNITS), pairs[0][0][:10]
    generator, _ = train_vocoder(speech, UNITS, tiny, tmp_path / "heard", OPTIONS, sample=frames)
    silent, _ = train_vocoder(speech, UNITS, tiny, tmp_path / "silent", OPTIONS)
    assert torch.equal(weights(generator), weights(silent))
    samples = tmp_path / "heard" / "samples"
    names = [f"step_{step:06d}" for step in (1, 2, 4)]
    files = [f"{name}.{kind}" for name in names for kind in ("png", "wav")]
    assert sorted(p.name for p in samples.iterdir()) == sorted(files)
    waves = [soundfile.read(samples / f"{name}.wav")[0] for name in names]
    assert all(len(wave) == 3200 for wave in waves)
    assert not np.array_equal(waves[0], waves[-1])
    with torch.inference_mode():
        last = generator(torch.from_numpy(frames)[None])[0].numpy()
    assert np.abs(waves[-1] - last).max() < 1e-4
    assert imread(samples / f"{names[0]}.png").shape[0] == 40

    work = killed(tmp_path / "heard", 2, tmp_path / "killed")  # while it spoke at step 2
    train_vocoder(speech, UNITS, tiny, work, OPTIONS, sample=frames)
    for name in names[1:]:
        again = work / "samples" / f"{name}.wav"
        assert again.read_bytes() == (samples / f"{name}.wav").read_bytes()


@pytest.mark.slow
def test_speakers_are_learned_apart(pairs, tiny, tmp_path):
    """The same units as a tone for one speaker, as near silence for another."""
    quiet = [(units, 0.01 * wave) for units, wave in pairs]
    speech = SpeechInMemory(pairs + quiet, UNITS, ["loud"] * len(pairs) + ["quiet"] * len(quiet))
    assert speech.names == ("loud", "quiet") and speech.speakers.tolist() == [0] * 5 + [1] * 5
    changes = {"optimization": longer(tiny.optimization, 120, 1e-2), "adversarial_from": 1.0}
    settings = tiny.model_copy(update=changes)
    generator, _ = train_vocoder(speech, UNITS, settings, tmp_path, OPTIONS)
    units = torch.from_numpy(pairs[0][0])[None]
    with torch.inference_mode():
        waves = [generator(units, torch.tensor([speaker])) for speaker in (0, 1)]
    loud, soft = (wave.square().mean().sqrt() for wave in waves)
    assert loud > 2 * soft


def test_the_seed_decides_everything(pairs, tiny, tmp_path):
    speech, runs = SpeechInMemory(pairs, UNITS), []
    for k, seed in enumerate((0, 0, 1)):
        options = TrainingOptions(seed)
        runs.append(train_vocoder(speech, UNITS, tiny, tmp_path / str(k), options)[0])
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


def test_training_learns(pairs, tiny, tmp_path):
    changes = {"optimization": longer(tiny.optimization, 40, 1e-2), "adversarial_from": 1.0}
    settings = tiny.model_copy(update=changes)
    train_vocoder(SpeechInMemory(pairs, UNITS), UNITS, settings, tmp_path, OPTIONS)
    losses = [row["reconstruction"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_the_generator_phase_leaves_the_discriminators_no_gradient():
    torch.manual_seed(0)
    judge = training.losses.Discriminators(1)
    made = (0.1 * torch.randn(2, 2560)).requires_grad_()
    adversarial, matching = training._judged_loss(judge, made, torch.randn(2, 2560))
    (adversarial + matching).backward()
    assert made.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in judge.parameters())


@pytest.mark.parametrize(("judged", "heard"), [(0, [4, 2, 2]), (1, [2, 1, 1])])
def test_the_discriminators_hear_as_many_waves_as_asked(judged, heard):
    """Real and made ones together in their own phase, one after the other in the generator's."""
    sizes = []

    class Listener(training.losses.Discriminators):
        def forward(self, waves):
            sizes.append(len(waves))
            return super().forward(waves)

    judge, made = Listener(1), torch.nn.Parameter(0.1 * torch.randn(2, 2560))
    modules = {"generator": lambda units, speakers: made, "discriminators": judge}
    batch = (torch.zeros(2, 8), torch.randn(2, 2560), torch.zeros(2))
    step_function = training.adversarial_loss(judge, 0, judged, "cpu")
    for phase in ("discriminators", "generator"):
        loss, count, _ = step_function(phase, modules, batch, 0)
        assert count == 2 and loss.requires_grad
    assert sizes == heard


@pytest.mark.parametrize("longest", [0, 8], ids=["log", "median"])
def test_durations_are_learned_and_resume_exactly(tiny, tmp_path, longest):
    """Unit u lasts u + 1 frames."""
    known = DurationSettings(convolutions=3 if longest else 2, longest=longest)
    tiny = tiny.model_copy(update={"durations": known})
    rng = np.random.default_rng(0)
    sequences = [(units, units + 1) for units in (rng.permutation(UNITS) for _ in range(20))]
    long = longer(tiny.duration_optimization, 150, 2e-2)
    settings = tiny.model_copy(update={"duration_optimization": long, "embedding": 16})
    predictor, _ = train_durations(sequences, UNITS, settings, tmp_path / "long", OPTIONS)
    predicted = predictor.predict(torch.arange(UNITS)[None])[0]
    assert (predicted - torch.arange(1, UNITS + 1)).abs().max() <= 1

    whole, _ = train_durations(sequences, UNITS, tiny, tmp_path / "whole", OPTIONS)
    work = killed(tmp_path / "whole", 2, tmp_path / "killed")
    resumed, summary = train_durations(sequences, UNITS, tiny, work, OPTIONS)
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
