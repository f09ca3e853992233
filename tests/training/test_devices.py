"""What "auto" means: a device that is there, and bf16 only where it is computed in."""

from __future__ import annotations

import pytest
import torch

from speechgpt_lib.errors import UserError
from speechgpt_lib.training import devices
from speechgpt_lib.training.devices import resolve_device, resolve_precision


def test_the_cpu_is_always_there():
    assert resolve_device("cpu") == "cpu" and resolve_device("auto") in ("cpu", "cuda", "mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(UserError, match='"cuda" is not available here; this machine has .*cpu'):
        resolve_device("cuda")


@pytest.mark.parametrize(
    ("extensions", "gain", "precision"),
    [
        (["avx2"], 9.0, "no"),
        (["avx2", "avx512f", "avx512_vnni"], 9.0, "no"),
        (["avx2", "avx512f", "avx512_bf16"], 1.8, "bf16"),
        (["avx2", "avx512f", "avx512_bf16"], 0.7, "no"),
        (["amx_bf16"], 4.0, "bf16"),
        (["asimd", "bf16"], 2.0, "bf16"),
        ([], 9.0, "no"),
    ],
)
def test_auto_is_bf16_on_processors_that_gain_by_it(monkeypatch, extensions, gain, precision):
    monkeypatch.setattr(devices, "cpu_facts", lambda: {"extensions": extensions})
    monkeypatch.setattr(devices, "bf16_gain", lambda: gain)
    assert resolve_precision("auto", "cpu") == precision
    assert resolve_precision("bf16", "cpu") == "bf16" and resolve_precision("no", "cuda") == "no"
    assert resolve_precision("auto", "cuda") == "bf16" and resolve_precision("auto", "mps") == "no"


def test_the_gain_is_measured():
    devices.bf16_gain.cache_clear()
    assert 0 < devices.bf16_gain() < 100
    assert devices.bf16_gain() == devices.bf16_gain(), "once a process: a run must not change it"
