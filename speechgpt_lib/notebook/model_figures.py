"""Pictures of the language model: what it attends to, guesses, learns and answers."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from speechgpt_lib.language_model.rows import TokenRow
from speechgpt_lib.language_model.vocabulary import UnitVocabulary
from speechgpt_lib.notebook.figure import COLORS, DASHED, heat_map, new_axes


def draw_attention(panels: Mapping[str, torch.Tensor], names: Sequence[str]) -> Figure:
    """Attention (tokens, tokens) of some heads: a row for each token that looks."""
    fig, axes = new_axes(1, len(panels), (10, 4.6))
    for ax, (title, attention) in zip(axes, panels.items(), strict=True):
        heat_map(ax, attention, origin="upper", aspect="equal", vmax=1)
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        ax.set_yticks(range(len(names)), names, fontsize=7)
        ax.set(title=title)
    return fig


def draw_logits(before: torch.Tensor, after: torch.Tensor) -> Figure:
    """Logits of one position before (old tokens,) and after (all tokens,) the vocabulary grew."""
    old, new = after[: len(before)], after[len(before) :]
    fig, (left, right) = new_axes(1, 2, (9, 3.4))
    left.plot(before, old, ".", markersize=3)
    left.set(xlabel="before", ylabel="after", title="Logits of old tokens")
    edges = torch.linspace(after.min(), after.max(), 60).tolist()
    for values, name in ((old, "text"), (new, "units and markers")):
        right.hist(values.numpy(), bins=edges, density=True, alpha=0.6, label=name)
    right.set(xlabel="logit", yticks=[], title="After: old and new side by side")
    right.legend()
    return fig


def draw_embeddings(table: torch.Tensor, old: int) -> Figure:
    """Embeddings (tokens, width) along the two main directions of the first `old` ones."""
    mean = table[:old].mean(0)
    directions = torch.pca_lowrank(table[:old], 2)[2]
    fig, ax = new_axes(size=(5, 4))
    for points, name in ((table[:old], "text"), (table[old:], "units and markers")):
        ax.plot(*((points - mean) @ directions).T, ".", markersize=4, label=name)
    ax.legend()
    return fig


def draw_guesses(chances: torch.Tensor, came: Sequence[int]) -> Figure:
    """Probability of each unit at each position (positions, units), and the units that came."""
    fig, ax = new_axes(size=(9, 4))
    heat_map(ax, chances.T.sqrt())
    ax.plot(came, "o", markersize=4, markerfacecolor="none", markeredgecolor=COLORS[5])
    ax.set(xlabel="position", ylabel="unit", title="Guesses (bright) and what came (circles)")
    return fig


def draw_loss_weights(rows: Mapping[str, TokenRow], vocabulary: UnitVocabulary) -> Figure:
    """The loss mask of each row: a tick for each token, a bar as high as its weight."""
    fig, axes = new_axes(len(rows), 1, (9, 2 * len(rows)))
    for ax, (task, row) in zip(axes, rows.items(), strict=True):
        is_unit = np.array([vocabulary.is_unit(token) for token in row.ids])
        for kind, label in enumerate(("text and markers", "units")):
            place = np.flatnonzero(is_unit == kind)
            ax.bar(place, np.array(row.weights)[place], width=1, color=COLORS[kind], label=label)
            ax.plot(place, np.full(len(place), -0.4), "|", color=COLORS[kind], markersize=5)
        title = f"{task.upper()} row: ticks are tokens, bars are weights"
        ax.set(ylabel="weight", ylim=(-0.8, None), title=title)
    axes[0].legend(loc="upper center", ncols=2)
    axes[-1].set(xlabel="position in the row")
    return fig


def draw_rows(rows: Mapping[str, Sequence[tuple[str, int]]], xlabel: str) -> Figure:
    """Rows of parts (name, length) as bars; the same part has the same colour."""
    names = dict.fromkeys(name for parts in rows.values() for name, _ in parts)
    colors = dict(zip(names, COLORS, strict=False))
    fig, ax = new_axes(size=(8, 2.4))
    for k, parts in enumerate(rows.values()):
        left = 0
        for name, length in parts:
            ax.barh(k, length, left=left, color=colors[name], label=name if k == 0 else None)
            left += length
    ax.set(yticks=range(len(rows)), yticklabels=list(rows), xlabel=xlabel)
    ax.invert_yaxis()
    ax.legend(ncols=len(names), loc="lower right")
    return fig


def draw_quantiles(measures: Mapping[str, Mapping[str, float]]) -> Figure:
    """Median and middle 90 % of each measure, from the quantiles of a set's summary."""
    fig, ax = new_axes(size=(8, 2.2))
    for k, q in enumerate(measures.values()):
        ax.plot([q["5 %"], q["95 %"]], [k, k], linewidth=6, solid_capstyle="butt")
        ax.plot(q["median"], k, "k|", markersize=14)
    names = [name.replace("_", " ") for name in measures]
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="length", xscale="log", ylim=(-0.5, len(names) - 0.5))
    return fig


def draw_singular_values(matrices: Mapping[str, torch.Tensor], rank: int) -> Figure:
    """Singular values of each matrix, largest first; a line at `rank`."""
    fig, ax = new_axes()
    for label, matrix in matrices.items():
        ax.plot(torch.linalg.svdvals(matrix), marker=".", linewidth=0.8, label=label)
    ax.axvline(rank - 0.5, **DASHED)
    what, title = "singular value, largest first", f"Nothing beyond r = {rank}"
    ax.set(xlabel=what, ylabel="size", xlim=(-1, 4 * rank), title=title)
    ax.legend()
    return fig


def draw_answer(ids: Sequence[int], chances: np.ndarray, vocabulary: UnitVocabulary) -> Figure:
    """Tokens of an answer with the probability that the model gave to each."""
    kinds = [1 if vocabulary.is_unit(i) else 2 if i >= vocabulary.text_size else 0 for i in ids]
    fig, ax = new_axes(size=(10, 3))
    ax.bar(range(len(ids)), chances, color=[COLORS[kind] for kind in kinds])
    names = [vocabulary.name(i).strip() for i in ids]
    ax.set_xticks(range(len(ids)), names, rotation=90, fontsize=8)
    title = "Text in blue, markers in green, units in orange"
    ax.set(ylim=(0, 1.05), ylabel="probability", title=title, xmargin=0.01)
    return fig


def draw_markers(
    names: Sequence[str], rows: Mapping[str, torch.Tensor], chances: Mapping[str, Sequence[float]]
) -> Figure:
    """How alike the embeddings (markers, width) of some markers are before and after, and the
    probability that each got in a chain."""
    fig, axes = new_axes(1, len(rows) + 1, (10, 3.6))
    for ax, (title, table) in zip(axes, rows.items(), strict=False):
        unit = torch.nn.functional.normalize(table.float(), dim=1)
        cosines = unit @ unit.T
        heat_map(ax, cosines, origin="upper", aspect="equal", vmin=0, vmax=1)
        for (row, column), cosine in np.ndenumerate(cosines.numpy()):
            ax.text(column, row, f"{cosine:.2f}", ha="center", va="center", fontsize=8)
        ax.set_xticks(range(len(names)), names, rotation=90)
        ax.set_yticks(range(len(names)), names)
        ax.set(title=f"Cosines, {title}")
    for k, (label, heights) in enumerate(chances.items()):
        axes[-1].bar(np.arange(len(names)) + 0.4 * k - 0.2, heights, 0.38, label=label)
    axes[-1].set_xticks(range(len(names)), names, rotation=90)
    axes[-1].set(ylim=(0, 1.35), title="Probability in the chain")
    axes[-1].legend(loc="upper center", ncols=2, fontsize=9)
    return fig


def draw_kinds(kinds: Mapping[str, Mapping[str, dict]], baseline: float) -> Figure:
    """Share right by kind of question, in text and in speech, with intervals and a baseline."""
    fig, ax = new_axes(size=(8, 3.4))
    for shift, how in ((-0.2, "text"), (0.2, "speech")):
        place, found = np.arange(len(kinds)) + shift, [k[how] for k in kinds.values()]
        _bars(ax, place, found, 0.38, f"answered in {how}")
    ax.axhline(baseline, label="nearest training question", **DASHED)
    ax.set_xticks(range(len(kinds)), list(kinds))
    ax.set(ylim=(0, 1.35), ylabel="share right", title="Spoken questions, held-out sentences")
    ax.legend(loc="upper center", ncols=3, fontsize=9)
    return fig


def draw_pairs(stages: Mapping[str, Mapping[str, dict]]) -> Figure:
    """Share of minimal pairs whose right side is likelier, by kind and model, with intervals."""
    kinds = [kind for kind in next(iter(stages.values())) if kind != "all"]
    width = 0.8 / len(stages)
    fig, ax = new_axes(size=(8, 3.2))
    for k, (name, found) in enumerate(stages.items()):
        place = np.arange(len(kinds)) + (k - (len(stages) - 1) / 2) * width
        _bars(ax, place, [found[kind] for kind in kinds], 0.95 * width, name)
    ax.axhline(0.5, label="chance", **DASHED)
    ax.set_xticks(range(len(kinds)), kinds)
    ax.set(ylim=(0, 1.35), ylabel="right one likelier", title="Which of two recordings?")
    ax.legend(loc="upper center", ncols=len(stages) + 1, fontsize=9)
    return fig


def _bars(ax, place: np.ndarray, found: Sequence[dict], width: float, label: str) -> None:
    """A bar for each estimate, with its interval."""
    value, low, high = np.array([[f[name] for name in ("value", "low", "high")] for f in found]).T
    reach = np.abs([value - low, high - value])
    ax.bar(place, value, width, yerr=reach, capsize=3, label=label)


def draw_memory(plans: Mapping[str, Mapping[int, dict[str, float]]], limit: float) -> Figure:
    """Memory (GB) on each GPU by number of GPUs: stacked parts for each plan; a line at `limit`."""
    fig, axes = new_axes(1, len(plans), (9.5, 3.6), sharey=True)
    for ax, (name, needs) in zip(axes, plans.items(), strict=True):
        below = np.zeros(len(needs))
        for part in next(iter(needs.values())):
            sizes = np.array([need[part] for need in needs.values()])
            ax.bar([str(gpus) for gpus in needs], sizes, bottom=below, label=part)
            below += sizes
        ax.axhline(limit, **DASHED)
        ax.set(xlabel="GPUs", title=name)
    axes[0].set(ylabel="GB on each GPU")
    axes[0].legend()
    return fig
