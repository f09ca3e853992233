"""Whatever reading foreign bytes raises is one clear error: place, reason, cure, in few words."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import pytest

from speechgpt_lib.corpora.audio import BadAudio
from speechgpt_lib.errors import LONGEST, UserError, out_of_memory, reading, reads


class PanicException(BaseException):
    """As libraries in Rust raise it: no `Exception`."""


@pytest.mark.parametrize(
    "error",
    [
        KeyError("layer"),
        IndexError("list index out of range"),
        TypeError("unhashable type"),
        AttributeError("'list' object has no attribute 'get'"),
        OverflowError("cannot convert float infinity to integer"),
        RecursionError("maximum recursion depth exceeded"),
        ZeroDivisionError("division by zero"),
        AssertionError(),
        NotImplementedError("bf16"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        struct.error("unpack requires a buffer of 4 bytes"),
        EOFError(),
        StopIteration(),
        OSError(5, "Input/output error"),
        PanicException("index out of bounds"),
        json.JSONDecodeError("Expecting value", "x", 0),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_failure_names_place_reason_and_cure(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    with pytest.raises(UserError) as found, reading(path, "get it again", "is no model"):
        raise error
    words = str(error) if not isinstance(error, KeyError) else "it lacks 'layer'"
    assert str(path) in str(found.value) and "get it again" in str(found.value)
    assert words[:40] in str(found.value) and "\n" not in str(found.value)


def test_what_is_known_already_and_interrupts_pass() -> None:
    with pytest.raises(UserError, match=r"^the cause$"), reading("x"):
        raise UserError("the cause")
    with pytest.raises(KeyboardInterrupt), reading("x"):
        raise KeyboardInterrupt
    with pytest.raises(SystemExit), reading("x"):
        raise SystemExit(3)


def test_a_function_that_reads_is_guarded_by_its_first_argument(tmp_path: Path) -> None:
    @reads("is no list", "make it again")
    def second(path: Path, place: int = 1) -> object:
        return json.loads(path.read_text())[place]

    path = tmp_path / "list.json"
    path.write_text("[1, 2]")
    assert second(path) == 2
    with pytest.raises(UserError, match=r"list.json is no list \(list index.*\): make it again"):
        second(path, place=7)
    with pytest.raises(UserError, match="gone.json is missing: make it again"):
        second(tmp_path / "gone.json")


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "endless device"])
def test_pipes_and_devices_are_refused_before_they_block(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "list.tsv"
    if "pipe" in kind:
        os.mkfifo(tmp_path / "pipe")
        path = tmp_path / "pipe"
    if kind == "link to a pipe":
        path = tmp_path / "link"
        path.symlink_to(tmp_path / "pipe")
    if "device" in kind:
        path = Path("/dev/null" if kind == "device" else "/dev/zero")
    with pytest.raises(UserError, match="pipe or device"), reading(path):
        pytest.fail("it was opened")


@pytest.mark.parametrize("size", [999, 10_000, 60_000_000])
def test_messages_are_short_whatever_they_quote(size: int) -> None:
    error = UserError(f"begin {'x' * size} end: try this")
    assert len(str(error)) <= LONGEST
    assert str(error).startswith("begin x") and str(error).endswith("x end: try this")
    audio = BadAudio("not_audio", "a.wav", "y" * size)
    assert len(str(audio)) <= LONGEST and audio.reason == "not_audio"


def test_the_words_of_an_error_reach_another_process() -> None:
    error = BadAudio("silent", "a.wav", "no sample above 0")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("could not create a primitive"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("std::bad_alloc"),
        ImportError("libtorch.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
        ValueError("Unable to allocate 3.6 TiB for an array"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
    ids=str,
)
def test_memory_that_ran_out_is_known_in_every_librarys_words(error: Exception) -> None:
    assert out_of_memory(error)
    with pytest.raises(UserError, match="memory ran out"), reading("x"):
        raise error
    assert not out_of_memory(RuntimeError("shapes differ"))
