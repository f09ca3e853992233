"""What a recipe needs is listed, fetched from a server that speaks the hub's protocol, and checked:
connections that break, repositories that ask for an agreement, no network, wrong files."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from speechgpt_lib.doctor import check_parts
from speechgpt_lib.pipeline import fetch as room
from speechgpt_lib.pipeline.fetch import Part, parts_of, render
from speechgpt_lib.recipes.loading import load_recipe
from tests.builders import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = b"".join(hashlib.sha256(str(k).encode()).digest() for k in range(40_000))  # 1.3 MB
REPOSITORY = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS}


class Hub(http.server.ThreadingHTTPServer):
    """A hub with the repository tests/tiny and the data set tests/talk; `breaks`: after how many
    bytes each coming download breaks off; `status`: its answer instead, with `error`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.breaks, self.asked, self.status, self.error = [], [], 200, ""
        self.files = {f"tests/tiny/resolve/{COMMIT}/{k}": v for k, v in REPOSITORY.items()}
        self.files[f"datasets/tests/talk/resolve/{COMMIT}/talk.jsonl"] = b'{"a": 1}\n'
        self.files["plain/part.bin"] = WEIGHTS

    def handle_error(self, *_):
        pass  # the client hung up

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append((self.command, self.path, asked))
        if server.status != 200 and not self.path.startswith("/plain"):
            self.send_response(server.status)
            self.send_header("X-Error-Code", server.error)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        content = server.files.get(self.path.lstrip("/").partition("?")[0])
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        start = int(re.fullmatch(r"bytes=(\d+)-.*", asked)[1]) if asked else 0
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body:
            stop = server.breaks.pop(0) if server.breaks and len(content) > 1000 else None
            self.wfile.write(content[start:] if stop is None else content[start : start + stop])
            if stop is not None:
                self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    with serving(Hub()) as running:
        yield running


# The hub's client waits up to 8 s before it asks again; here it asks as often, but soon.
RECIPE = """
from pathlib import Path
from speechgpt_lib.cli import main
from speechgpt_lib.pipeline import fetch
import json, sys, time
time.sleep = lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.05))
fetch._LISTED = json.loads(sys.argv.pop(1))
main.main()
"""


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path):
    """`speechgpt fetch` of a recipe that reads a model, a data set and a file of this hub."""
    sha = hashlib.sha256(WEIGHTS).hexdigest()
    hashes = {"config.json": None, "model.safetensors": f"sha256:{sha}"}
    facts = {"what": "w", "size": "tiny", "licence": "CC0", "revision": COMMIT}
    listed = {
        "tiny": facts | {"hub": "tests/tiny", "files": hashes},
        "talk.jsonl": facts | {"hub": "datasets/tests/talk"},
        "part.bin": {
            **{k: facts[k] for k in ("what", "size", "licence")},
            "url": f"{hub.url}/plain/part.bin",
            "checksum": f"sha256:{sha}",
        },
    }
    changes = {
        "imports.text_model": "tiny",
        "imports.vocoder": "part.bin",
        "imports.text_to_unit": "mine",
        "instructions.dialogues": "talk.jsonl",
    }
    sets = [word for k, v in changes.items() for word in ("--set", f"{k}={v}")]

    def run(*more: str, **environment: str) -> subprocess.CompletedProcess:
        words = [sys.executable, "-c", RECIPE, json.dumps(listed), "fetch", "--recipe", "smoke"]
        known = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
        known |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"} | environment
        words += [*sets, "-o", str(tmp_path / "data"), *more]
        return subprocess.run(words, env=known, capture_output=True, text=True, timeout=120)

    return run


def test_everything_public_comes_and_the_rest_is_told(fetch, hub: Hub, tmp_path: Path) -> None:
    done = fetch("--json")
    assert done.returncode == 0, done.stderr
    data = tmp_path / "data"
    for name, content in REPOSITORY.items():
        assert (data / "tiny" / name).read_bytes() == content
    assert (data / "talk.jsonl").read_bytes() == b'{"a": 1}\n'
    assert (data / "part.bin").read_bytes() == WEIGHTS
    told = json.loads(done.stdout)["by_hand"]
    assert [part["path"] for part in told] == ["mine"] and told[0]["state"] == "missing"
    assert all(f"/{COMMIT}/" in path for _, path, _ in hub.asked if "resolve" in path)
    before = len(hub.asked)
    assert fetch().returncode == 0 and len(hub.asked) == before, "what is there isn't asked for"


def test_a_broken_connection_costs_what_had_not_arrived(fetch, hub: Hub, tmp_path: Path) -> None:
    hub.breaks = [300_000, 300_000]
    done = fetch()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/tiny/model.safetensors").read_bytes() == WEIGHTS
    assert (tmp_path / "data/part.bin").read_bytes() == WEIGHTS
    ranges = [asked for command, _, asked in hub.asked if command == "GET" and asked]
    assert ranges and int(ranges[0][6:-1]) > 200_000, "the rest alone is asked for"
    assert not hub.breaks


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, "GatedRepo", "tests/tiny asks for an agreement first: accept its terms"),
        (401, "RepoNotFound", "tests/tiny is not on the hub, or not for you"),
        (500, "", "tests/tiny"),
    ],
)
def test_a_hub_that_refuses(fetch, hub: Hub, status: int, error: str, message: str) -> None:
    hub.status, hub.error = status, error
    done = fetch()
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_no_network_is_said_in_one_line(fetch, hub: Hub) -> None:
    done = fetch(HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1 and "no connection to the hub for tests/tiny" in done.stderr
    done = fetch(HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and "HF_HUB_OFFLINE is set" in done.stderr
    before = len(hub.asked)
    listed = fetch("--list", HF_HUB_OFFLINE="1")
    assert listed.returncode == 0 and f"hub: tests/tiny at {COMMIT[:12]}" in listed.stdout
    assert len(hub.asked) == before, "a list needs no network"


def test_a_file_that_is_another(fetch, hub: Hub, tmp_path: Path) -> None:
    hub.files["plain/part.bin"] = WEIGHTS[:-1] + b"x"
    done = fetch()
    assert done.returncode == 1 and "it was thrown away" in done.stderr
    assert not (tmp_path / "data" / "part.bin").exists()


# --- what recipes need ---------------------------------------------------------------------------
def test_the_built_in_recipes_name_parts_that_are_known() -> None:
    assert parts_of(load_recipe("lab")) == []
    for name in ("small", "release", "paper"):
        parts = parts_of(load_recipe(name))
        assert len({part.path for part in parts}) == len(parts)
        assert all(part.what != room.UNKNOWN["what"] for part in parts), render(parts, None)
    small = {part.path: part for part in parts_of(load_recipe("small"))}
    assert all(part.manual is None for part in small.values()), "all of it is public"
    assert small["LJSpeech-1.1"].archive.name == "lj-speech"
    assert small["LibriSpeech/train-clean-100"].archive.name == "train-clean-100"
    assert "LibriSpeech/train-clean-360" not in small
    paper = [part.path for part in parts_of(load_recipe("paper"))]
    assert "LibriLight/small" in paper and "GigaSpeech" in paper
    for part in small.values():
        if part.hub:
            assert re.fullmatch("[0-9a-f]{40}", part.revision)


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    recipe = load_recipe("small", {"data": str(tmp_path)})
    assert {check.found for check in check_parts(recipe)} == {"missing"}
    (tmp_path / "SmolLM2-135M").mkdir()
    (tmp_path / "SmolLM2-135M" / "config.json").write_text("{}")
    (tmp_path / "databricks-dolly-15k.jsonl").write_text("{}")
    (tmp_path / "g_00500000").write_bytes(b"x")
    found = {check.name: check for check in check_parts(recipe)}
    assert found["SmolLM2-135M"].found == "damaged: no model.safetensors"
    assert found["databricks-dolly-15k.jsonl"].found.endswith(
        "has another hash than its publisher's"
    )
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / "SmolLM2-135M" / name).write_bytes(b"half of it")
    found = {check.name: check for check in check_parts(recipe)}
    assert found["SmolLM2-135M"].found.startswith("damaged: model.safetensors has another hash")
    assert found["g_00500000"].ok
    assert "speechgpt fetch --recipe small" in found["config.json"].cost


def test_a_part_says_where_it_comes_from() -> None:
    part = Part("x", "w", "1 MB", "CC0", manual="Ask for it.")
    assert part.source == "by hand: Ask for it."
    assert "x\n    w; 1 MB; CC0\n" in render([part], None)
