"""Notebook 11 in JupyterLab, in a browser whose microphone plays a file; or refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from speechgpt_lib.corpora.audio import read_audio, write_audio
from speechgpt_lib.runs.run import Run
from speechgpt_lib.voices.prompts import prompts
from speechgpt_lib.voices.store import Voice
from tests.builders import spoken

pytestmark = pytest.mark.slow
SECONDS = 120  # that JupyterLab, a kernel or the judge may take on a busy machine


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser's program; tests are skipped without it, or fail where it is required."""
    found = shutil.which("chromium")
    if found and importlib.util.find_spec("playwright"):
        return found
    why = "needs Debian's chromium (apt install chromium) and playwright (the dev extra)"
    if "browser" in os.environ.get("SPEECHGPT_REQUIRE", ""):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="module")
def run(smoke_run: Path, tmp_path_factory) -> Run:
    """A copy of the smoke run, in which a voice may be recorded."""
    copy = tmp_path_factory.mktemp("microphone") / "smoke"
    shutil.copytree(smoke_run, copy, ignore=shutil.ignore_patterns("voices", "notebooks"))
    return Run.open(copy)


@pytest.fixture(scope="module")
def jupyter(run: Run, root: Path, chromium: str, tmp_path_factory) -> Iterator[str]:
    """The address of notebook 11 up to its microphone, in a JupyterLab of its own."""
    place = tmp_path_factory.mktemp("jupyter")
    notebook = json.loads((root / "notebooks" / "11_your_own_voice.ipynb").read_text())
    cells = {cell["id"]: cell for cell in notebook["cells"]}
    given = f'\nrecipe, run_dir, consent, name = "smoke", {str(run.path)!r}, True, "tester"'
    cells["parameters"]["source"] += given.splitlines(keepends=True)
    last = notebook["cells"].index(cells["record"])
    notebook["cells"] = [c for c in notebook["cells"][: last + 1] if c["cell_type"] == "code"]
    (place / "voice.ipynb").write_text(json.dumps(notebook))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {f"JUPYTER_{name}_DIR": str(place / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    folders |= {"JUPYTERLAB_SETTINGS_DIR": str(place / "settings"), "PYTHONPATH": str(root)}
    options = [f"--port={port}", "--no-browser", "--allow-root", "--IdentityProvider.token=secret"]
    options += ["--LabApp.expose_app_in_browser=True", f"--notebook-dir={place}"]
    command = [sys.executable, "-m", "jupyterlab", *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, env=os.environ | folders, cwd=place, **quiet)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/status?token=secret", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None and time.monotonic() < end, "JupyterLab did not start"
                time.sleep(0.5)
        yield f"{address}/lab/tree/voice.ipynb?reset&token=secret"
    finally:
        server.terminate()
        server.wait(30)


def open_widget(browser, address: str):
    """The widget of notebook 11, after all its cells have run."""
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=1000 * SECONDS)
    kernel = "window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel"
    page.wait_for_function(f"{kernel}?.status === 'idle'", timeout=1000 * SECONDS)
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    widget = page.locator(".speechgpt-microphone")
    widget.wait_for(timeout=1000 * SECONDS)
    return widget


def status_of(widget, beginnings: tuple[str, ...]) -> str:
    """What the widget says, as soon as it says something that begins so."""
    end = time.monotonic() + SECONDS
    while not (said := widget.get_by_role("status").inner_text()).startswith(beginnings):
        assert time.monotonic() < end, said
        time.sleep(0.2)
    return said


def launch(program: str, *options: str):
    from playwright.sync_api import sync_playwright

    driver = sync_playwright().start()
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", *options]
    return driver, driver.chromium.launch(executable_path=program, args=arguments)


def test_a_sentence_is_recorded_checked_and_kept(jupyter, run, chromium, tmp_path):
    first, second = prompts(run, 2)
    said = np.pad(spoken(first, voice="Male1")[0], (8000, 16_000))
    sound = write_audio(tmp_path / "said.wav", said)
    options = (f"--use-file-for-fake-audio-capture={sound}%noloop",)
    driver, browser = launch(chromium, "--use-fake-ui-for-media-stream", *options)
    try:
        widget = open_widget(browser, jupyter)
        assert widget.locator("p").first.inner_text() == first
        for expected in ("Kept", "Not kept: wrong sentence"):  # the file says the same again
            widget.get_by_role("button", name="Record").click()
            time.sleep(len(said) / 16_000)
            widget.get_by_role("button", name="Stop").click()
            assert status_of(widget, ("Kept", "Not kept")).startswith(expected)
            assert widget.locator("p").first.inner_text() == second
    finally:
        browser.close()
        driver.stop()
    voice = Voice(run, "tester")
    (record,) = voice.records()
    assert voice.has_consent() and record["text"] == first
    kept = read_audio(voice.path / record["path"])
    assert abs(len(kept) - len(said)) < 16_000 and np.abs(kept).max() > 0.1
    assert not [p for p in voice.path.iterdir() if p.suffix in (".webm", ".ogg", ".mp4")]


def test_a_refused_microphone_is_one_line(jupyter, chromium):
    driver, browser = launch(chromium, "--deny-permission-prompts")
    try:
        widget = open_widget(browser, jupyter)
        widget.get_by_role("button", name="Record").click()
        said = status_of(widget, ("The microphone was refused",))
        assert "allow it" in said and "folder" in said and "\n" not in said
        assert widget.get_by_role("button", name="Record").is_enabled(), "it can be tried again"
    finally:
        browser.close()
        driver.stop()
