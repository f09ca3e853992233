"""Figures, sounds and tables in a notebook, as HTML with alt text and a caption.

JupyterLab drops the alt text of PNG outputs, an untrusted notebook plays no sound, and
`IPython.display.Audio` makes every clip equally loud.  So everything a reader sees or hears goes
through the three functions here.  Figures and clips can also be written as files into the run
directory, where they are found without Jupyter.
"""

from __future__ import annotations

import base64
import html
import io
import wave as wave_file
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import atomic_path

if TYPE_CHECKING:  # it takes a second to import; a notebook that only plays sounds needn't wait
    from matplotlib.figure import Figure

# Okabe and Ito (2008), "Color Universal Design": told apart by everybody, and in grey.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
LARGEST_FIGURE = 150_000  # bytes of PNG; ten figures fit a notebook of 1.5 MB
LONGEST_CLIP_S = 8.0  # seconds embedded of one clip; 16 kHz costs 43 KB a second
_HEAD = 'th scope="col"'
_STYLE = {
    "figure.figsize": (7.0, 3.2),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "image.cmap": "cividis",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "lines.linewidth": 1.8,
}


def use_house_style() -> None:
    """Set matplotlib's defaults: readable sizes, few lines, colours that all can tell apart."""
    import matplotlib

    matplotlib.rcParams.update(_STYLE | {"axes.prop_cycle": matplotlib.cycler(color=COLORS)})


def new_axes(rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None, **options):
    """A figure of `size` inches and its axes; options as of `plt.subplots`."""
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=size, **options)


def show_figure(
    fig: Figure, alt: str, caption: str, name: str | None = None, save_dir: Path | str | None = None
) -> None:
    """Show a matplotlib figure as HTML and close it; with `name` and `save_dir` also save it.

    `alt` says what there is to see to somebody who can't see it; `caption` stands below.  The
    resolution is 100 dots an inch, less when the PNG would exceed 150 kB.
    """
    from IPython.display import display

    display(figure_bundle(fig, alt, caption, name, save_dir), raw=True)


def figure_bundle(
    fig: Figure, alt: str, caption: str, name: str | None = None, save_dir: Path | str | None = None
) -> dict[str, str]:
    """What `show_figure` shows: MIME type → content, for a place of one's own."""
    import matplotlib.pyplot as plt

    if not alt.strip():
        raise UserError(
            "show_figure needs an alt text: one sentence that says what there is to see"
        )
    png = _render(fig)
    plt.close(fig)
    if name is not None and save_dir is not None:
        with atomic_path(Path(save_dir) / f"{name}.png") as temporary:
            temporary.write_bytes(png)
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = f'<img alt="{html.escape(alt)}" style="max-width: 100%" src="{source}"/>'
    return _bundle(_figure(image, caption), f"[figure] {alt}\n{caption}")


def show_audio(wave: Any, sample_rate: int, caption: str, path: Path | str | None = None) -> None:
    """Show a player for a wave (samples,) of full scale ±1 at `sample_rate` Hz, as loud as it is.

    With `path` the whole clip is written there as 16-bit WAV; the notebook itself holds its first 8
    seconds at most.

    Raises UserError when `wave` is empty or not one-dimensional.
    """
    samples = np.asarray(wave.detach().cpu() if hasattr(wave, "detach") else wave)
    if samples.ndim != 1 or samples.size == 0:
        cure = "mix down or squeeze it"
        raise UserError(f"show_audio plays one channel (samples,), found {samples.shape}; {cure}")
    seconds = samples.size / sample_rate
    note = f" ({seconds:.1f} s)"
    if seconds > LONGEST_CLIP_S:
        whole = f"; all {seconds:.0f} s are in {path}" if path else f" of {seconds:.0f} s"
        note = f" (first {LONGEST_CLIP_S:.0f} s{whole})"
    if path is not None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(wav_bytes(samples, sample_rate))
    clip = wav_bytes(samples[: int(LONGEST_CLIP_S * sample_rate)], sample_rate)
    source = f"data:audio/wav;base64,{base64.b64encode(clip).decode()}"
    player = f'<audio controls preload="metadata" src="{source}"></audio>'
    _display(_figure(player, caption + note), f"[audio] {caption}{note}")


def show_table(rows: Sequence[Mapping[str, Any]], caption: str) -> None:
    """Show rows (mappings, whose keys become the head) as a table; numbers get 3 digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    number = int | float | np.number
    right = [all(isinstance(row.get(column, 0), number) for row in rows) for column in columns]
    styles = [f' style="text-align: {"right" if each else "left"}"' for each in right]

    def line(tag: str, texts: Sequence[Any]) -> str:
        pairs = zip(texts, styles, strict=True)
        kind = tag.split()[0]
        return "".join(f"<{tag}{style}>{html.escape(str(t))}</{kind}>" for t, style in pairs)

    body = "".join(f"<tr>{line('td', texts)}</tr>" for texts in cells)
    head = f"<thead><tr>{line(_HEAD, columns)}</tr></thead>"
    plain = "\n".join("  ".join(map(str, texts)) for texts in [columns, *cells])
    markup = _figure(f"<table>{head}<tbody>{body}</tbody></table>", caption)
    _display(markup, f"{plain}\n{caption}")


def wav_bytes(samples: np.ndarray, sample_rate: int) -> bytes:
    """A mono 16-bit WAV file in memory.  Floats are clipped at ±1, 16-bit integers taken as is."""
    samples = np.asarray(samples)
    if samples.dtype != np.int16:
        clipped = np.clip(np.nan_to_num(samples.astype(np.float64)), -1, 1)
        samples = np.round(clipped * 32767).astype(np.int16)
    buffer = io.BytesIO()
    with wave_file.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(int(sample_rate))
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def _render(fig: Figure) -> bytes:
    for dpi in (100, 75, 50):
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
        if buffer.tell() <= LARGEST_FIGURE:
            break
    return buffer.getvalue()


def _figure(content: str, caption: str) -> str:
    caption = f"<figcaption>{html.escape(caption)}</figcaption>"
    return f'<figure style="margin: 0.5em 0">{content}{caption}</figure>'


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def _display(markup: str, plain: str) -> None:
    from IPython.display import display

    display(_bundle(markup, plain), raw=True)


def _bundle(markup: str, plain: str) -> dict[str, str]:
    return {"text/html": markup, "text/plain": plain}
