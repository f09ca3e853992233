"""Foreign PyTorch checkpoints: tensors and settings come out, code stays where it is."""

import argparse
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import HubertConfig, HubertModel, LlamaConfig, LlamaForCausalLM

from speechgpt_lib.errors import UserError
from speechgpt_lib.foreign.checkpoints import Stub, load_torch_checkpoint, plain
from speechgpt_lib.foreign.tensors import check_described, checkpoint_tensors
from tests.foreign.hostile import Hostile, HostileEval, module_with

SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4}
ZIP = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])


@ZIP
def test_tensors_come_out_and_foreign_objects_are_stand_ins(tmp_path, zipped):
    with module_with("fairseq.data.dictionary", "Dictionary") as dictionary:
        words = dictionary()
        words.symbols = ["<s>", "<pad>"]
        state = {
            "model": {"w": torch.arange(3.0)},
            "args": argparse.Namespace(layers=4),
            "task_state": {"dictionaries": [words]},
        }
        torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = load_torch_checkpoint(tmp_path / "x.pt")
    assert found["model"]["w"].tolist() == [0, 1, 2] and plain(found["args"]) == {"layers": 4}
    stand_in = found["task_state"]["dictionaries"][0]
    assert isinstance(stand_in, Stub) and stand_in.symbols == ["<s>", "<pad>"]


@ZIP
@pytest.mark.parametrize("kind", [Hostile, HostileEval])
@pytest.mark.parametrize(
    "wrap", [lambda x: {"model": x}, lambda x: x, lambda x: {"a": [({"b": x},)]}]
)
def test_hostile_files_are_refused_and_run_nothing(tmp_path, zipped, kind, wrap):
    marker = tmp_path / "ran"
    torch.save(wrap(kind(marker)), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"x.pt was not read: .*(system|eval)"):
        load_torch_checkpoint(tmp_path / "x.pt")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\x80\x02garbage" * 20, "not read|no whole PyTorch checkpoint"),
        (b"PK\x03\x04" + b"x" * 200, "not read|no whole PyTorch checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, words):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_torch_checkpoint(tmp_path / "x.pt")


def test_a_cut_off_checkpoint_is_named(tmp_path):
    torch.save({"model": {"w": torch.randn(1000)}}, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:2000])
    with pytest.raises(UserError, match="x.pt"):
        load_torch_checkpoint(tmp_path / "x.pt")


def test_a_missing_file_and_a_lone_tensor_are_named(tmp_path):
    with pytest.raises(UserError, match="no file at"):
        load_torch_checkpoint(tmp_path / "absent.pt")
    torch.save(torch.zeros(2), tmp_path / "x.pt")
    with pytest.raises(UserError, match="holds a Tensor, expected a dictionary"):
        load_torch_checkpoint(tmp_path / "x.pt")


def test_omegaconf_containers_become_plain():
    def stand_in(**attributes):
        made = Stub()
        made.__dict__.update(attributes)
        return made

    config = stand_in(
        _content={"layers": stand_in(_val=4), "names": stand_in(_content=[stand_in(_val="a")])}
    )
    assert plain({"cfg": config}) == {"cfg": {"layers": 4, "names": ["a"]}}


def test_a_zip_that_inflates_beyond_all_reason_is_refused(tmp_path):
    torch.save({"model": torch.zeros(3_000_000)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as stored,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in stored.namelist():
            small.writestr(name, stored.read(name))
    with pytest.raises(UserError, match=r"y.pt of \d+ bytes inflates to \d+"):
        load_torch_checkpoint(tmp_path / "y.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_tensor_that_repeats_its_bytes_is_refused(tmp_path, dtype):
    huge = torch.zeros(1, dtype=dtype).expand(10**6, 10**6)
    torch.save({"model": {"w": huge}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x.pt: w has shape \(1000000, 1000000\)"):
        checkpoint_tensors(load_torch_checkpoint(tmp_path / "x.pt"), "model", tmp_path / "x.pt")


def test_settings_without_end_are_refused():
    nested = ["x"]
    for _ in range(40):
        nested = [nested, nested]
    own = []
    own.append(own)
    with pytest.raises(UserError, match="more than 100000 settings"):
        plain(nested)
    with pytest.raises((UserError, RecursionError)):
        plain(own)


@pytest.mark.parametrize(
    "make",
    [lambda: LlamaForCausalLM(LlamaConfig(**SMALL)), lambda: HubertModel(HubertConfig(**SMALL))],
)
def test_to_count_what_is_described_draws_no_random_number(make, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(10_000_000))
    before = torch.get_rng_state()
    check_described(make, tmp_path / "model.safetensors")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
@pytest.mark.parametrize(("key", "value"), [("hidden_size", 1 << 20), ("intermediate_size", 10**7)])
@pytest.mark.parametrize("layers", [2, 900])
def test_what_settings_describe_must_fit_the_weights_that_are_there(
    key: str, value: int, layers: int, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": layers}
    config = LlamaConfig(vocab_size=100, **sizes | {key: value})
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    tracemalloc.start()
    with pytest.raises(UserError, match="weights, in 1000 bytes can't be so many"):
        check_described(lambda: LlamaForCausalLM(config), tmp_path / "model.safetensors")
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    check_described(lambda: LlamaForCausalLM(config), tmp_path / "nothing.safetensors")
