import base64
import io
import re
import wave

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from nbconvert import get_exporter
from PIL import Image

from speechgpt_lib.errors import UserError
from speechgpt_lib.notebook import figure
from speechgpt_lib.notebook.figure import show_audio, show_figure, show_table, use_house_style


@pytest.fixture
def shown(monkeypatch):
    """The MIME bundles that were displayed."""
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def embedded(markup):
    return base64.b64decode(re.search(r'base64,([^"]*)"', markup)[1])


def samples_of(wav):
    with wave.open(io.BytesIO(wav)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2"), file.getframerate()


def test_figure_has_alt_text_and_caption_and_is_closed(shown, tmp_path):
    others = plt.get_fignums()
    fig, axes = plt.subplots(figsize=(3, 2))
    axes.plot([3, 1, 2])
    show_figure(
        fig, 'Loss "falls" & rises', "Figure 1. <Loss>", name="loss", save_dir=tmp_path / "media"
    )
    markup = shown[0]["text/html"]
    assert 'alt="Loss &quot;falls&quot; &amp; rises"' in markup
    assert "<figcaption>Figure 1. &lt;Loss&gt;</figcaption>" in markup
    assert shown[0]["text/plain"].startswith('[figure] Loss "falls"')
    assert embedded(markup).startswith(b"\x89PNG")
    assert (tmp_path / "media/loss.png").read_bytes() == embedded(markup)
    assert plt.get_fignums() == others


@pytest.mark.parametrize("kind", ["latex", "html", "markdown", "rst"])
@pytest.mark.parametrize("count", [1, 3])
def test_figures_go_into_what_a_notebook_is_exported_to(shown, kind, count):
    for k in range(count):
        fig, axes = plt.subplots()
        axes.plot([k, 1, 2])
        show_figure(fig, f"A line from {k}", "Figure 1.")
    outputs = [nbformat.v4.new_output("display_data", bundle) for bundle in shown]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=outputs)])
    text, resources = get_exporter(kind)().from_notebook_node(notebook)
    if kind == "latex":
        pictures = re.findall(r"adjustimage.*{(output.*)}", text)
        assert len(pictures) == count
        assert all(resources["outputs"][name].startswith(b"\x89PNG") for name in pictures)
    else:
        assert text.count('<img alt="A line from') == count


def test_colours_survive(shown):
    fig, axes = plt.subplots(figsize=(4, 3))
    axes.imshow(np.linspace(0, 1, 10_000).reshape(100, 100), cmap="cividis")
    full = io.BytesIO()
    fig.savefig(full, dpi=100, bbox_inches="tight")
    show_figure(fig, "All colours", "Figure 2.")
    drawn, found = (
        np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), float)
        for png in (full.getvalue(), embedded(shown[0]["text/html"]))
    )
    assert np.abs(drawn - found).mean() < 1.5 and np.abs(drawn - found).max() < 40


@pytest.mark.parametrize("setting", [{"text.usetex": True}, {"savefig.dpi": 10}, {"font.size": 40}])
def test_what_a_matplotlibrc_says_is_left_behind(setting):
    with matplotlib.rc_context(setting):
        figure.use_house_style()
        assert all(matplotlib.rcParams[name] != value for name, value in setting.items())
        assert matplotlib.rcParams["figure.constrained_layout.use"]


def test_figure_needs_an_alt_text():
    fig = plt.figure()
    with pytest.raises(UserError, match="needs an alt text"):
        show_figure(fig, " ", "Figure 1.")
    plt.close(fig)


def test_a_heavy_figure_is_drawn_more_coarsely(shown):
    fig, axes = plt.subplots(figsize=(7, 7))
    axes.imshow(np.random.default_rng(0).random((700, 700)))
    full = io.BytesIO()
    fig.savefig(full, dpi=100, bbox_inches="tight")
    show_figure(fig, "Noise", "Figure 2.")
    assert len(embedded(shown[0]["text/html"])) < full.tell() / 2


@pytest.mark.parametrize("make", [np.asarray, torch.tensor, list])
def test_audio_is_as_loud_as_it_is(shown, tmp_path, make):
    quiet = 0.01 * np.sin(np.arange(1600) / 5)
    show_audio(make(quiet), 16000, "A whisper.", path=tmp_path / "clips" / "a.wav")
    samples, rate = samples_of(embedded(shown[0]["text/html"]))
    assert rate == 16000
    np.testing.assert_allclose(samples / 32767, quiet, atol=1 / 32767)
    assert (tmp_path / "clips/a.wav").read_bytes() == embedded(shown[0]["text/html"])
    assert "A whisper. (0.1 s)" in shown[0]["text/html"]


def test_audio_is_clipped_not_wrapped(shown):
    show_audio(np.array([2.0, -2.0, np.nan]), 8000, "Too loud.")
    assert list(samples_of(embedded(shown[0]["text/html"]))[0]) == [32767, -32767, 0]


def test_a_long_clip_is_embedded_in_part_and_written_whole(shown, tmp_path):
    show_audio(np.zeros(20 * 16000), 16000, "Long.", path=tmp_path / "long.wav")
    assert len(samples_of(embedded(shown[0]["text/html"]))[0]) == figure.LONGEST_CLIP_S * 16000
    assert len(samples_of((tmp_path / "long.wav").read_bytes())[0]) == 20 * 16000
    assert "first 8 s; all 20 s are in" in shown[0]["text/plain"]


@pytest.mark.parametrize("bad", [np.zeros((2, 100)), np.zeros(0)])
def test_audio_wants_one_channel(bad):
    with pytest.raises(UserError, match=re.escape(str(bad.shape))):
        show_audio(bad, 16000, "Stereo or nothing.")


def test_table(shown):
    show_table(
        [{"stage": "<1>", "WER": 0.123456}, {"stage": "2", "WER": 12345.6, "n": 7}], "Table 1."
    )
    markup = shown[0]["text/html"]
    assert '<td style="text-align: left">&lt;1&gt;</td>' in markup
    assert '<td style="text-align: right">0.123</td>' in markup and ">12,346</td>" in markup
    assert markup.count("<tr>") == 3 and markup.count("<th ") == 3
    assert "<figcaption>Table 1.</figcaption>" in markup
    assert "stage  WER  n" in shown[0]["text/plain"]


def test_house_style_can_be_told_apart_in_grey():
    with plt.rc_context():
        use_house_style()
        colors = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colors])
    assert len(colors) == 8
    luminance = rgb @ [0.2126, 0.7152, 0.0722]
    distances = np.abs(rgb[:, None] - rgb[None]).sum(-1) + 1000 * np.eye(8)
    assert distances.min() > 80 and luminance.max() - luminance.min() > 150
