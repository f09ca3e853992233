"""A corpus in an object store is the same corpus: in memory, and behind a server that speaks S3."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from speechgpt_lib.corpora.prepare import prepare
from speechgpt_lib.corpora.tables import read_part, read_quarantine, read_utterances
from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.loading import check_sources, load_recipe
from speechgpt_lib.runs import stores
from speechgpt_lib.runs.stores import StorePath, entries, located
from tests.conftest import required
from tests.corpora import layouts

KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Six utterances, of which one is nothing but a page."""
    chapters = {"dev-clean/84/1": ["ONE"] * 4, "test-clean/61/2": ["TWO"] * 2}
    root = layouts.librispeech(tmp_path_factory.mktemp("corpus"), chapters)
    (root / "dev-clean/84/1/84-1-0002.flac").write_text("<html>")
    return root


@pytest.fixture
def in_memory(corpus):
    """Its address in a store in the memory of this process."""
    system = fsspec.filesystem("memory")
    system.put(f"{corpus}/", "/speech/LibriSpeech/", recursive=True)
    yield "memory://speech/LibriSpeech"
    system.rm("/speech", recursive=True)


@pytest.fixture(scope="module")
def s3():
    """The options of fsspec for a server of its own that speaks S3."""
    required("stores", "s3fs moto flask", "make stores")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-p", str(port), "-H", "127.0.0.1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=os.environ | KEYS, **quiet) as server:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None and time.monotonic() < deadline, "no server"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.terminate()


@pytest.fixture
def in_s3(corpus, s3, monkeypatch):
    """Its address in a bucket, which fsspec finds by variables, as users tell it."""
    for name, value in (KEYS | {"FSSPEC_S3_ENDPOINT_URL": s3}).items():
        monkeypatch.setenv(name, value)
    fsspec.config.set_conf_env(fsspec.config.conf)  # read once, when it is imported
    system = fsspec.filesystem("s3")
    system.mkdir("speech")
    system.put(f"{corpus}/", "speech/LibriSpeech/", recursive=True)
    yield "s3://speech/LibriSpeech"
    system.rm("speech", recursive=True)
    fsspec.config.conf.pop("s3", None)


@pytest.fixture(params=["in_memory", "in_s3"])
def address(request) -> str:
    return request.getfixturevalue(request.param)


def test_the_same_table_as_from_a_disk(address, corpus, tmp_path):
    here = prepare("librispeech", corpus, tmp_path / "here", max_bad_share=0.5)
    there = prepare("librispeech", address, tmp_path / "there", max_bad_share=0.5)
    assert there["settings"].pop("root") == address and here["settings"].pop("root")
    assert there == here and here["utterances"] == 5
    faults = [[*read_quarantine(tmp_path / n / "quarantine.parquet")] for n in ("here", "there")]
    assert [f._replace(detail="") for f in faults[0]] == [f._replace(detail="") for f in faults[1]]
    rows = zip(*(read_utterances(tmp_path / n) for n in ("here", "there")), strict=True)
    for a, b in rows:
        assert (a.id, a.text, a.path, a.end) == (b.id, b.text, b.path, b.end) and b.root == address
        assert np.array_equal(a.read(), b.read())
        assert np.array_equal(read_part(a.root, a, 100, 900), read_part(b.root, b, 100, 900))


def test_a_folder_is_listed_where_it_is(address):
    root = located("LibriSpeech", address.rpartition("/")[0])
    assert isinstance(root, StorePath) and str(root) == address and root.is_dir()
    assert sorted(entries(root)) == [("dev-clean", True), ("test-clean", True)]
    chapter = root / "test-clean" / "61" / "2"
    assert {name for name, folder in entries(chapter) if not folder} == {
        "61-2-0000.flac",
        "61-2-0001.flac",
        "61-2.trans.txt",
    }
    assert not (root / "train").exists() and not (chapter / "61-2.trans.txt").is_dir()
    assert not os.path.isfile(root / "train") and os.path.isfile(chapter / "61-2.trans.txt")
    with pytest.raises(FileNotFoundError, match="LibriSpeech/none"):
        (root / "none").stat()
    inside = (chapter.is_relative_to(root), root.is_relative_to(chapter), root.parent)
    assert inside == (True, False, located(address.rpartition("/")[0]))


def test_what_was_read_longest_ago_goes_first(in_memory, monkeypatch):
    chapter = located(in_memory) / "test-clean/61/2"
    files = [chapter / f"61-2-000{k}.flac" for k in (0, 1)]
    kept = stores._Here()
    monkeypatch.setattr(stores, "_here", lambda process: kept)
    first = os.fspath(files[0])
    assert os.fspath(files[0]) == first, "fetched once"
    monkeypatch.setattr(stores, "KEPT_BYTES", os.path.getsize(first))
    second = os.fspath(files[1])
    assert os.path.exists(second) and not os.path.exists(first)
    assert os.path.exists(os.fspath(files[0])) and not os.path.exists(second)


def test_a_recipe_reads_a_store(in_memory, tmp_path):
    corpus = {"reader": "librispeech", "root": in_memory, "held_out": 0.5}
    check_sources(load_recipe("lab", {"corpora": [corpus]}))
    data = {"corpora": [corpus | {"root": "LibriSpeech"}], "data": "memory://speech"}
    check_sources(load_recipe("lab", data))
    elsewhere = {"corpora": [corpus | {"root": "memory://speech/none"}]}
    with pytest.raises(UserError, match="reads what is not there: memory://speech/none"):
        check_sources(load_recipe("lab", elsewhere))
    with pytest.raises(UserError, match="not the import memory://speech/v: copy it to a disk"):
        check_sources(load_recipe("lab", data | {"imports.vocoder": "v"}))


def test_faults_are_told_in_a_line(in_memory, tmp_path, monkeypatch):
    nothing_here = stores._Here()
    monkeypatch.setattr(stores, "_here", lambda process: nothing_here)
    with pytest.raises(UserError, match="no folder at memory://speech/x"):
        prepare("librispeech", "memory://speech/x", tmp_path / "out")
    with pytest.raises(UserError, match="memory://speech/LibriSpeech is not VCTK"):
        prepare("vctk", in_memory, tmp_path / "out")
    with pytest.raises(UserError, match=r"gopher://a/b can't be had .*Protocol not known"):
        located("gopher://a/b").is_dir()
    sound = located(in_memory) / "test-clean/61/2/61-2-0000.flac"
    system = fsspec.filesystem("memory")
    with monkeypatch.context() as patch:
        patch.setattr(system, "size", lambda path: 10**6)
        with pytest.raises(UserError, match=r"61-2-0000.flac breaks off after \d+ of 1000000 b"):
            os.fspath(sound)

    def fails(error: Exception):
        def method(*args, **named):
            raise error

        return method

    for error, told in (
        (PermissionError("403"), "is closed to you .*give credentials"),
        (ImportError("Install s3fs to access S3"), "pip install s3fs"),
        (TimeoutError("no answer"), "can't be had .*no answer.*check the address and the network"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(system, "isfile", fails(error))
            with pytest.raises(UserError, match=told):
                os.fspath(sound)


def test_a_bucket_that_there_is_not(in_s3, tmp_path):
    with pytest.raises(UserError, match="no folder at s3://nothing/here"):
        prepare("librispeech", "s3://nothing/here", tmp_path / "out")
