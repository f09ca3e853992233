"""Prompts in, answers out: batched decoding that stops at end markers, and parsing of chains.

Prompts of different lengths are padded on the left *with* an attention mask (the release had none
and corrupted its batches); answers are handled as ids and never searched as text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import transformers
from torch.nn.utils.rnn import pad_sequence

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.templates import (
    ChainFormat,
    Row,
    chain_row,
    cross_modal_row,
    formats_of,
)
from speechgpt_lib.language_model.vocabulary import PAD, UnitVocabulary, cut
from speechgpt_lib.units.sequence import EOSP, SOSP

CHAIN_MARKERS = ("[tq]", "[ta]", "[ua]", "<eoa>")
BATCH = 64  # prompts


class Sampling(NamedTuple):
    """How the next token is chosen (release: 0.7, 50, 0.8); temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 0.8


class Written(NamedTuple):
    """An answer in words; `cut` where it met its longest length before it came to an end."""

    text: str
    cut: bool
    nothing_heard: str | None = None  # why, where the sound holds nothing to write down


class Spoken(NamedTuple):
    """An answer as merged units (n,); where there is a vocoder a wave (samples,) at 16 kHz, too."""

    units: np.ndarray
    cut: bool
    wave: np.ndarray | None = None


class Chain(NamedTuple):
    """A parsed answer: transcript, text, units (n,) or None; well-formed: just what was asked."""

    tq: str
    ta: str
    ua: np.ndarray | None
    wellformed: bool
    cut: bool


@torch.inference_mode()
def generate(
    model: transformers.PreTrainedModel,
    vocabulary: UnitVocabulary,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    until: str | None = None,
) -> list[list[int]]:
    """New ids after each prompt (ids): to an end marker, included, or at most `max_new_tokens`.

    `until`: also to this text.  The answer to a prompt does not depend on the others in its batch
    (greedy decoding).
    """
    stops, context = vocabulary.stops, model.config.max_position_embeddings
    longest = max((len(p) for p in prompts), default=0)
    if longest + 8 > context:
        raise UserError(
            f"a prompt has {longest} tokens, the model reads {context}: use shorter audio or text"
        )
    options = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    if sampling and sampling.temperature > 0:
        options = {"do_sample": True} | sampling._asdict()
    options |= {"eos_token_id": stops, "pad_token_id": PAD}
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    model.eval()
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        given = [torch.tensor(prompts[i], device=model.device) for i in chosen]
        ids = pad_sequence(given, True, PAD, "left")  # (batch, tokens): answers begin together
        mask = pad_sequence([torch.ones_like(each) for each in given], True, 0, "left")
        length = ids.shape[1]
        options["max_new_tokens"] = min(max_new_tokens, context - length)
        if until is not None:
            options["stopping_criteria"] = [_Spelled(vocabulary, until, length)]
        output = model.generate(input_ids=ids, attention_mask=mask, **options)
        for i, new in zip(chosen, output[:, length:].tolist(), strict=True):
            end = min((new.index(stop) for stop in stops if stop in new), default=None)
            answers[i] = [t for t in new if t != PAD] if end is None else new[: end + 1]
    return answers


class _Spelled:
    """An answer is complete once the text `until` is written: where it is no token of its own."""

    def __init__(self, vocabulary: UnitVocabulary, until: str, start: int):
        self.vocabulary, self.until, self.start = vocabulary, until, start
        self.longest = len(until) + 1  # pieces: each has a letter or more, but for a blank

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor, **others) -> torch.Tensor:
        """ids (batch, tokens) → (batch,), true where an answer is complete."""
        written = ids[:, self.start :]
        ends = written[:, -self.longest :].tolist()
        done = [self.vocabulary.decode_text(end).endswith(self.until) for end in ends]
        return torch.tensor(done, device=ids.device)


def transcribe(
    model: transformers.PreTrainedModel,
    vocabulary: UnitVocabulary,
    units: Sequence[np.ndarray],
    limit: int,
    templates: str = "paper",
) -> list[Written]:
    """Merged units → text, by a cross-modal prompt; at most `limit` tokens each."""
    asked = "Please write down what you hear."
    rows = [cross_modal_row("asr", asked, "", each, templates) for each in units]
    answers = generate(model, vocabulary, _prompts(vocabulary, rows), limit)
    return [Written(vocabulary.decode_text(ids), _is_cut(ids, vocabulary)) for ids in answers]


def speak(
    model: transformers.PreTrainedModel,
    vocabulary: UnitVocabulary,
    texts: Sequence[str],
    limit: int,
    templates: str = "paper",
) -> list[Spoken]:
    """Text → merged units (n,), by a cross-modal prompt; at most `limit` tokens each."""
    asked = "Please say this sentence aloud."
    rows = [cross_modal_row("tts", asked, text, np.array([]), templates) for text in texts]
    answers = generate(model, vocabulary, _prompts(vocabulary, rows), limit)
    return [Spoken(vocabulary.units_in(ids), _is_cut(ids, vocabulary)) for ids in answers]


def answer(
    model: transformers.PreTrainedModel,
    vocabulary: UnitVocabulary,
    instructions: Sequence[np.ndarray | str],
    limit: int,
    reply: str = "speech",
    templates: str = "paper",
    sampling: Sampling | None = None,
) -> list[Chain]:
    """Answer spoken (units) or written instructions through the chain of modality.

    `reply` is "speech" or "text"; a whole chain has at most `limit` tokens.  The release has one
    prompt for all four formats, and its model speaks every answer: for a written one, generation
    ends where speech would begin.
    """
    if reply not in ("speech", "text"):
        raise UserError(f"unknown reply {reply!r}: choose speech or text")
    formats = [f"{'text' if isinstance(i, str) else 'speech'}_{reply}" for i in instructions]
    known = formats_of(templates)
    prompts = [form if form in known else known[0] for form in formats]
    asked = zip(prompts, instructions, strict=True)  # the format says which of both forms is read
    rows = [chain_row(form, given, "", given, templates=templates) for form, given in asked]
    end = "<eoa>" if prompts == formats or reply == "speech" else "[ua]"
    spelled = {} if "<eoa>" in vocabulary.markers else {"until": end}
    outputs = generate(model, vocabulary, _prompts(vocabulary, rows), limit, sampling, **spelled)
    return [parse_chain(ids, vocabulary, f) for ids, f in zip(outputs, formats, strict=True)]


def parse_chain(ids: list[int], vocabulary: UnitVocabulary, chain_format: ChainFormat) -> Chain:
    """Split answer ids at their markers.

    Well-formed means: the markers of the format and nothing before, between or after them but what
    belongs there, that is text (one piece at least) after `[tq]` and `[ta]`, units in their
    brackets after `[ua]`, and `<eoa>` at the end.
    """
    asked, _, reply = chain_format.partition("_")
    found, segments = [""], {"": []}  # markers, and what follows each; "" is what stands before all
    pieces = _pieces(ids, vocabulary)
    for piece in pieces:
        if piece in CHAIN_MARKERS:
            found.append(piece)
            segments.setdefault(piece, [])
        else:
            segments[found[-1]].append(piece)
    if segments[""] and "[tq]" not in (*found, *vocabulary.markers):
        # The release's chains begin with what was asked, and no marker stands before it.
        name = "[tq]" if asked == "speech" or "[ta]" in found else "[ta]"
        found[:1], segments = ["", name], segments | {"": [], name: segments[""]}
        asked = "speech" if name == "[tq]" else asked
    unspoken = found[-1] == "[ua]" not in vocabulary.markers and not segments["[ua]"]
    if reply == "text" and unspoken:  # it ended where speech would begin
        found[-1], segments["<eoa>"] = "<eoa>", segments.pop("[ua]")
    expected = ["[tq]"] * (asked == "speech") + ["[ta]"] + ["[ua]"] * (reply == "speech")
    wellformed = found == ["", *expected, "<eoa>"] and not segments[""] + segments["<eoa>"]
    units = None
    if "[ua]" in segments:
        spoken = segments["[ua]"]
        units = vocabulary.units_in(i for i in spoken if isinstance(i, int))
        brackets = [vocabulary.marker(SOSP), vocabulary.marker(EOSP)]
        wellformed &= [*spoken[:1], *spoken[-1:]] == brackets and 0 < len(units) == len(spoken) - 2
    text = {}
    for name in ("[tq]", "[ta]"):
        own = segments.get(name, [])
        words = [piece for piece in own if isinstance(piece, str)]
        text[name] = " ".join(words).removesuffix(";").strip()
        wellformed &= len(words) == len(own) and (name not in expected or bool(text[name]))
    is_cut = _is_cut(ids, vocabulary) and found[-1] != "<eoa>"
    return Chain(text["[tq]"], text["[ta]"], units, wellformed, is_cut)


def _pieces(ids: list[int], vocabulary: UnitVocabulary) -> list[str | int]:
    """Ids → a chain's markers and the texts between them as strings, everything else as it is.

    In the released vocabulary these markers are text, told from it, as there, by their spelling.
    """
    markers = {vocabulary.marker(m): m for m in CHAIN_MARKERS if m in vocabulary.markers}
    pieces: list[str | int] = []
    for is_text, run in itertools.groupby(ids, vocabulary.is_text):
        if not is_text:
            pieces += [markers.get(token, token) for token in run]
        elif markers:
            pieces.append(vocabulary.decode_text(run))
        else:
            spelled = cut(vocabulary.decode_text(run), CHAIN_MARKERS)
            pieces += [piece.strip() for piece in spelled if piece.strip()]
    # Spelled chains have an "<eos>" after their "<eoa>".
    return [piece for piece in pieces if markers or piece != vocabulary.marker("<eos>")]


def _prompts(vocabulary: UnitVocabulary, rows: list[Row]) -> list[list[int]]:
    return [vocabulary.encode_row(row)[0] for row in rows]


def _is_cut(ids: list[int], vocabulary: UnitVocabulary) -> bool:
    """Whether an answer met its longest length: its last id is no end marker."""
    return not ids or ids[-1] not in vocabulary.stops
