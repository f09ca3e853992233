"""Artefacts are whole or absent, whatever fails while they are written, and their hashes tell them
apart."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes import sources
from speechgpt_lib.runs.artefacts import (
    atomic_path,
    fingerprint,
    hash_file,
    hash_folder,
    hash_json,
    read_json,
    read_text,
    replace,
    write_json,
    write_text,
)
from tests.builders import files_limited_to, tiny_vocabulary

WRITERS: dict[str, Callable[[Path], object]] = {
    "python": lambda path: path.write_bytes(bytes(100_000)),
    "safetensors": lambda path: save_file({"a": torch.zeros(30_000)}, path),
    "torch": lambda path: torch.save(torch.zeros(30_000), path),
    "tokenizers": lambda path: tiny_vocabulary(0).tokenizer.save(str(path)),
    "parquet": lambda path: pyarrow.parquet.write_table(
        pyarrow.table({"a": np.arange(30_000)}), path
    ),
}
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=12,
)


def test_until_the_end_the_old_file_is_there(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with atomic_path(tmp_path / "a.txt") as temporary:
        assert (
            temporary.parent.parent == tmp_path and temporary.name == "a.txt"
        )  # same disk, so that a rename is enough
        temporary.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"
    assert (tmp_path / "a.txt").read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_an_error_leaves_the_old_file_and_no_scraps(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(RuntimeError, match="unrelated"), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise RuntimeError("unrelated")
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_one_line_with_the_path(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with (
        pytest.raises(
            UserError,
            match=r"could not write .*a: No space left on device; nothing there was changed",
        ),
        atomic_path(tmp_path / "a"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("library", WRITERS)
def test_a_write_that_fails_in_any_library_is_one_line_too(tmp_path: Path, library: str) -> None:
    WRITERS[library](tmp_path / "fits")
    write_text(tmp_path / "a", "old")
    with (
        files_limited_to(4000),
        pytest.raises(UserError, match="could not write .*a: ") as error,
        atomic_path(tmp_path / "a") as temporary,
    ):
        WRITERS[library](temporary)
    assert "\n" not in str(error.value)
    assert (tmp_path / "a").read_text() == "old" and sorted(p.name for p in tmp_path.iterdir()) == [
        "a",
        "fits",
    ]


def test_a_folder_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["second"] and len(
        list(tmp_path.iterdir())
    ) == 1


def test_a_folder_takes_the_place_of_a_link_and_spares_what_it_showed(tmp_path: Path) -> None:
    for name in ("original", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text").write_text(name)
    (tmp_path / "link").symlink_to(tmp_path / "original", target_is_directory=True)
    replace(tmp_path / "new", tmp_path / "link")
    assert (
        not (tmp_path / "link").is_symlink() and (tmp_path / "link" / "text").read_text() == "new"
    )
    assert (tmp_path / "original" / "text").read_text() == "original"


@given(st.dictionaries(st.text(max_size=9), json_values, max_size=5))
def test_equal_settings_have_equal_hashes_in_any_order(settings: dict) -> None:
    backwards = dict(reversed(settings.items()))
    assert (
        hash_json(settings) == hash_json(backwards) == hash_json(json.loads(json.dumps(settings)))
    )


def test_different_settings_have_different_hashes() -> None:
    values = [
        {"a": 1, "b": [2]},
        {"a": 1, "b": [3]},
        {"a": 1},
        {"a": "1", "b": [2]},
        {"a": 1, "b": 2},
        {"a": [1, 2]},
        {"a": [2, 1]},
    ]
    assert len({hash_json(value) for value in values}) == len(values)


def test_a_folder_is_hashed_file_by_file(tmp_path: Path) -> None:
    write_text(tmp_path / "b" / "two.txt", "two")
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "scrap" / "x", "x")
    found = hash_folder(tmp_path, "scrap".__ne__)
    assert list(found) == ["a.txt", "b/two.txt"]
    assert found["a.txt"] == {"sha256": hashlib.sha256(b"one").hexdigest(), "bytes": 3}
    assert hash_file(tmp_path / "b" / "two.txt") == found["b/two.txt"]["sha256"]


def test_json_comes_back_and_says_what_is_wrong(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ü": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"ü": [1, 2.5, None]}
    with pytest.raises(UserError, match="missing"):
        read_json(tmp_path / "none.json")
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "a.json")


def test_json_refuses_what_is_no_json_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_of_an_import_changes_with_its_files(tmp_path: Path) -> None:
    settings = sources.VocoderImport(checkpoint="g", config="config.json")
    (tmp_path / "g").write_bytes(bytes(3_000_000))
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(tmp_path, settings)
    assert before == fingerprint(tmp_path, settings) and json.dumps(before)
    assert [file[:2] for file in before["files"]] == [["g", 3_000_000], ["config.json", 2]]
    for place in (0, 2_999_999):  # either end is looked at
        changed = bytearray(3_000_000)
        changed[place] = 1
        (tmp_path / "g").write_bytes(changed)
        assert fingerprint(tmp_path, settings) != before
    (tmp_path / "g").write_bytes(bytes(3_000_000))
    assert fingerprint(tmp_path, settings) == before
    assert fingerprint(tmp_path, settings.model_copy(update={"config": "g"})) != before


def test_the_fingerprint_of_a_folder_is_that_of_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "deep" / "a").write_text("1")
    before = fingerprint(tmp_path, "model")
    assert fingerprint("/", str(tmp_path / "model"))["files"] == before["files"]
    (tmp_path / "model" / "b").write_text("2")
    assert len(fingerprint(tmp_path, "model")["files"]) == 2
    assert fingerprint(tmp_path, "a-name-on-the-hub")["files"] == []


MARK = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for content, text in (
        (MARK + "é".encode(), "é"),
        (MARK, ""),
        (b"", ""),
        (b"a" + MARK, "a\ufeff"),
    ):
        (tmp_path / "a.txt").write_bytes(content)
        assert read_text(tmp_path / "a.txt") == text
    (tmp_path / "a.json").write_bytes(MARK + b'{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("code", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_other_codes_are_named(code: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('{"a": 1}'.encode(code))
    with pytest.raises(UserError, match=r"a.json is not UTF-8 .*as UTF-16 does.*save it as UTF-8"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.txt").write_bytes("one\ncafé".encode("latin-1"))
    with pytest.raises(UserError, match=r"b.txt is not UTF-8 \(see line 2\)"):
        read_text(tmp_path / "b.txt")


@pytest.mark.parametrize("name", ["caf\udce9", "\udcff\udcfe.wav", "half \ud83d of a pair"])
def test_names_that_are_no_utf8_stand_in_json_and_hashes(name: str, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"path": name})
    assert read_json(tmp_path / "a.json") == {"path": name}
    assert hash_json({"path": name}) != hash_json({"path": "caf"})
