"""Checkpoints: whole or not there, recognised when damaged, tied weights written once."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from speechgpt_lib.errors import UserError
from speechgpt_lib.training.checkpoints import (
    find_checkpoint,
    load_module,
    save_checkpoint,
    save_module,
)
from speechgpt_lib.training.sharding import load_optimizer
from tests.builders import files_limited_to


def fresh(value: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.add_(value)
    return model


def one_update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()


def damage_hash(path: Path) -> None:
    content = bytearray((path / "m.safetensors").read_bytes())
    content[-1] ^= 1  # a single bit
    (path / "m.safetensors").write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit": damage_hash,
    "weights cut short": lambda path: (path / "m.safetensors").write_bytes(b"rubbish"),
    "no weights": lambda path: (path / "m.safetensors").unlink(),
    "no optimizer": lambda path: (path / "optimizers.pt").unlink(),
    "state cut short": lambda path: (path / "state.json").write_text('{"step": 9, "fi'),
    "no state": lambda path: (path / "state.json").unlink(),
    "empty state": lambda path: (path / "state.json").write_text("{}"),
    "a list for a state": lambda path: (path / "state.json").write_text("[]"),
    "a step in words": lambda path: (path / "state.json").write_text(
        (path / "state.json").read_text().replace("9", '"nine"', 1)
    ),
}


def test_weights_and_optimizer_come_back_exactly(tmp_path: Path) -> None:
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters())
    one_update(model, optimizer)
    save_checkpoint(tmp_path, 1, {"m": model}, {"o": optimizer.state_dict()})
    other = fresh(5.0)
    restored = torch.optim.AdamW(other.parameters())
    found = find_checkpoint(tmp_path)
    assert found.load_modules({"m": other}) == 1
    load_optimizer(restored, found.load_moments()["o"])
    for pair in ((model, optimizer), (other, restored)):
        one_update(*pair)  # shows whether the moments came along
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path, damage: str) -> None:
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters())
    save_checkpoint(tmp_path, 5, {"m": model}, {"o": optimizer.state_dict()})
    with torch.no_grad():
        model.weight.add_(1)
    DAMAGES[damage](save_checkpoint(tmp_path, 9, {"m": model}, {"o": optimizer.state_dict()}))
    with pytest.warns(UserWarning, match="step_00000009 is damaged"):
        found = find_checkpoint(tmp_path)
    assert found.load_modules({"m": model}) == 5
    assert torch.equal(model.weight, fresh().weight)


def test_when_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    for step in (1, 2):
        damage_hash(save_checkpoint(tmp_path, step, {"m": fresh()}, {}))
    with pytest.warns(UserWarning, match="damaged") as seen:
        assert find_checkpoint(tmp_path) is None
    assert len(seen) == 2


def test_a_checkpoint_half_written_by_a_kill_is_not_seen(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, {"m": fresh()}, {})
    half = tmp_path / ".step_00000009.x1" / "step_00000009"  # where `atomic_path` writes
    half.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_checkpoint(tmp_path).step == 5


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    model = nn.Linear(100, 100)
    save_checkpoint(tmp_path, 5, {"m": model}, {})
    refused = pytest.raises(UserError, match="could not write .*step_00000009")
    with files_limited_to(20_000), refused:
        save_checkpoint(tmp_path, 9, {"m": model}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000005"]
    assert find_checkpoint(tmp_path).step == 5


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    model = fresh()
    for step in (1, 2, 30, 4):
        save_checkpoint(tmp_path, step, {"m": model}, {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000004", "step_00000030"]


def test_the_state_says_step_and_hashes(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 7, {"m": fresh()}, {})
    state = json.loads((path / "state.json").read_text())
    assert state["step"] == 7 and state["files"].keys() == {"m.safetensors", "optimizers.pt"}


class Tied(nn.Module):
    """An embedding that is also the output, as in the language model."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.output = nn.Embedding(6, 3), nn.Linear(3, 6, bias=False)
        self.output.weight = self.table.weight


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    first, second = Tied(), Tied()
    save_module(first, tmp_path / "w.safetensors")
    assert list(load_file(tmp_path / "w.safetensors")) == ["table.weight"]
    load_module(second, tmp_path / "w.safetensors")
    assert second.output.weight is second.table.weight
    assert torch.equal(second.output.weight, first.table.weight)


def test_equal_weights_that_are_not_tied_are_all_saved(tmp_path: Path) -> None:
    pair = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    pair[1].load_state_dict(pair[0].state_dict())
    save_module(pair, tmp_path / "w.safetensors")
    assert len(load_file(tmp_path / "w.safetensors")) == 4


def test_weights_of_another_shape_or_none_are_refused_by_name(tmp_path: Path) -> None:
    save_module(nn.Linear(4, 2, bias=False), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"weight has shape \(2, 4\), this model expects \(1, 4\)"):
        load_module(nn.Linear(4, 1, bias=False), tmp_path / "w.safetensors")
    message = "does not fit this model: missing .*0.weight.*unexpected .*weight"
    with pytest.raises(UserError, match=message):
        load_module(nn.Sequential(nn.Linear(4, 2, bias=False)), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="absent.safetensors are missing"):
        load_module(fresh(), tmp_path / "absent.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="not a readable"):
        load_module(fresh(), tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    "state",
    ["", "[]", "null", "{}", '{"step": 1}', '{"step": 1, "files": 3}', "[" * 100_000, "\x00"]
    + ['{"step": null, "files": {}}', '{"step": NaN, "files": {}}', '{"step": "1e9"}'],
    ids=lambda text: ascii(text[:20]),
)
def test_a_state_that_can_not_be_is_passed_over(state: str, tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"m": fresh()}, {})
    (tmp_path / "step_00000002" / "state.json").write_text(state)
    with pytest.warns(UserWarning, match="step_00000002 is damaged"):
        assert find_checkpoint(tmp_path).step == 1


@pytest.mark.parametrize("moments", [b"", b"PK", b"\x80\x02cos\nsystem\n", b"x" * 100])
def test_states_of_optimizers_that_can_not_be_are_one_error(moments, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"m": fresh()}, {})
    found = find_checkpoint(tmp_path)
    (path / "optimizers.pt").write_bytes(moments)
    with pytest.raises(UserError, match="optimizers.pt"):
        found.load_moments()
