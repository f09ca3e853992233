"""Figures, sounds and tables in a notebook, as HTML with alt text and a caption.

JupyterLab drops the alt text of PNG outputs, an untrusted notebook plays no sound, and
`IPython.display.Audio` makes every clip equally loud: hence the three functions `show_…`.  What
makes a PDF through LaTeX reads no HTML: it takes a figure's PNG, which is there, too.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import matplotlib.style
import numpy as np
import soundfile
from IPython import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from speechgpt_lib.errors import UserError
from speechgpt_lib.runs.artefacts import atomic_path

# Okabe and Ito (2008), "Color Universal Design": told apart by everybody, and in grey.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
DASHED = {"color": "#888888", "linestyle": "--", "linewidth": 1}  # a level to compare with
LONGEST_CLIP_S = 8.0  # seconds embedded of one clip; 16 kHz costs 43 KB a second


def use_house_style() -> None:
    """Set matplotlib's defaults: readable sizes, few lines, colours that all can tell apart.

    A matplotlibrc that lies about has no say (`text.usetex` would need LaTeX).
    """
    matplotlib.rcdefaults()
    colors = {"axes.prop_cycle": matplotlib.cycler(color=COLORS)}
    matplotlib.style.use([Path(__file__).with_suffix(".mplstyle"), colors])


def new_axes(rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None, **options):
    """A figure of `size` inches and its axes; options as of `plt.subplots`."""
    return plt.subplots(rows, columns, figsize=size, **options)


def heat_map(ax: Axes, values: Any, **look: Any) -> None:
    """Draw values (rows, columns) as colours, row 0 below; `look`: options as of `imshow`."""
    ax.imshow(values, **{"aspect": "auto", "origin": "lower", "interpolation": "nearest"} | look)
    ax.grid(False)


def show_figure(
    fig: Figure, alt: str, caption: str, name: str = "", save_dir: Path | None = None, **place: Any
) -> None:
    """Show a matplotlib figure as HTML and close it; with `name` and `save_dir` also save it.

    `alt` says what there is to see to somebody who can't see it; `caption` stands below.  The
    resolution is 100 dots an inch of 256 colours, less when the PNG would exceed 75 kB.  `place`:
    where to show it, as options of IPython's `display`.
    """
    if not alt.strip():
        raise UserError("show_figure needs an alt text: a sentence that says what there is to see")
    for dpi in (100, 75, 50):
        buffer, png = io.BytesIO(), io.BytesIO()
        fig.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
        Image.open(buffer).convert("RGB").quantize(256, dither=0).save(png, "PNG", optimize=True)
        if png.tell() <= 75_000:  # bytes; seven figures, each there twice, fit a notebook of 1.5 MB
            break
    plt.close(fig)
    path = save_dir / f"{name}.png" if name and save_dir else None
    source = _embed("image/png", png.getvalue(), path)
    image = f'<img alt="{html.escape(alt)}" style="max-width: 100%" src="{source}"/>'
    _show(image, caption, f"[figure] {alt}\n{caption}", png.getvalue(), **place)


def show_audio(wave: Any, sample_rate: int, caption: str, path: Path | None = None) -> None:
    """Show a player for a wave (samples,) of full scale ±1 at `sample_rate` Hz, as loud as it is.

    The notebook holds its first 8 s at most; with `path`, all is written there as 16-bit WAV.

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
        _embed("audio/wav", _wav(samples, sample_rate), path)
    clip = _wav(samples[: int(LONGEST_CLIP_S * sample_rate)], sample_rate)
    player = f'<audio controls preload="metadata" src="{_embed("audio/wav", clip)}"></audio>'
    _show(player, caption + note, f"[audio] {caption}{note}")


def show_table(rows: Sequence[Mapping[str, Any]], caption: str) -> None:
    """Show rows (mappings, whose keys become the head) as a table; numbers get 3 digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    styles = []
    for column in columns:
        numbers = all(isinstance(row.get(column, 0), int | float | np.number) for row in rows)
        styles.append(f'style="text-align: {"right" if numbers else "left"}"')
    lines = []
    for tag, texts in (('th scope="col"', columns), *(("td", texts) for texts in cells)):
        both = zip(styles, texts, strict=True)
        found = (f"<{tag} {style}>{html.escape(str(t))}</{tag[:2]}>" for style, t in both)
        lines.append(f"<tr>{''.join(found)}</tr>")
    table = f"<table><thead>{lines[0]}</thead><tbody>{''.join(lines[1:])}</tbody></table>"
    plain = "\n".join("  ".join(map(str, texts)) for texts in [columns, *cells])
    _show(table, caption, f"{plain}\n{caption}")


def _wav(samples: np.ndarray, sample_rate: int) -> bytes:
    """A mono 16-bit WAV file in memory; floats are clipped at ±1."""
    if samples.dtype != np.int16:
        clipped = np.clip(np.nan_to_num(samples.astype(np.float64)), -1, 1)
        samples = np.round(clipped * 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, int(sample_rate), format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _embed(kind: str, content: bytes, path: Path | None = None) -> str:
    """A file as an address that holds it; with `path` it is written there, too."""
    if path is not None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _show(content: str, caption: str, plain: str, png: bytes = b"", **place: Any) -> None:
    caption = f"<figcaption>{html.escape(caption)}</figcaption>"
    markup = f'<figure style="margin: 0.5em 0">{content}{caption}</figure>'
    bundle = {"text/html": markup, "text/plain": plain}
    bundle |= {"image/png": base64.b64encode(png).decode()} if png else {}
    display.display(bundle, raw=True, **place)


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)
