"""Prompts in, answers out: batched decoding that stops at end markers, and parsing of chains.

Prompts of different lengths are padded on the left *with* an attention mask (the release had none
and corrupted its batches); answers are handled as ids and never searched as text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from transformers import LlamaForCausalLM

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.templates import ChainFormat, Row, chain_row, cross_modal_row
from speechgpt_lib.language_model.unit_vocabulary import UnitVocabulary
from speechgpt_lib.language_model.vocabulary import PAD
from speechgpt_lib.units.sequence import EOSP, SOSP

ASR_PROMPT = "Please write down what you hear."
TTS_PROMPT = "Please say this sentence aloud."
CHAIN_MARKERS = ("[tq]", "[ta]", "[ua]", "<eoa>")
_SPELLED = re.compile("(" + "|".join(map(re.escape, CHAIN_MARKERS)) + ")")


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the likeliest.

    The release samples with 0.7 / 50 / 0.8.
    """

    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 0.8


@dataclass(frozen=True)
class Written:
    """An answer in words; `cut` where it met its longest length before it came to an end."""

    text: str
    cut: bool


@dataclass(frozen=True)
class Spoken:
    """An answer as merged units (n,); `cut` as in `Written`."""

    units: np.ndarray
    cut: bool


@dataclass(frozen=True)
class Chain:
    """A parsed answer: transcript, text answer, spoken answer (units (n,) or None).

    It is well-formed when it has exactly the parts asked for.
    """

    tq: str
    ta: str
    ua: np.ndarray | None
    wellformed: bool
    cut: bool = False


@torch.inference_mode()
def generate(
    model: LlamaForCausalLM,
    vocabulary: UnitVocabulary,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    batch_size: int = 64,
) -> list[list[int]]:
    """Continue each prompt (ids) until an end marker or `max_new_tokens`.

    Returns the new ids, the end marker included if it came.  The answer to a prompt does not depend
    on the others in its batch (greedy decoding).
    """
    stops, context = vocabulary.stops, model.config.max_position_embeddings
    longest = max((len(p) for p in prompts), default=0)
    if longest + 8 > context:
        raise UserError(
            f"a prompt has {longest} tokens, the model reads {context} in all: "
            "use shorter audio or text"
        )
    choice = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    if sampling and sampling.temperature > 0:
        choice = {"do_sample": True} | asdict(sampling)
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    model.eval()
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        length = max(len(prompts[i]) for i in chosen)
        ids = torch.full((len(chosen), length), PAD, dtype=torch.long)  # (batch, tokens)
        mask = torch.zeros_like(ids)
        for k, i in enumerate(chosen):  # padding on the left, so that all answers begin together
            ids[k, length - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[k, length - len(prompts[i]) :] = 1
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=min(max_new_tokens, context - length),
            eos_token_id=stops,
            pad_token_id=PAD,
            **choice,
        )
        for k, i in enumerate(chosen):
            answers[i] = _until(output[k, length:].tolist(), stops)
    return answers


def transcribe(
    model: LlamaForCausalLM,
    vocabulary: UnitVocabulary,
    units: Sequence[np.ndarray],
    limit: int,
    templates: str = "paper",
    **options,
) -> list[Written]:
    """Merged units → text, by a cross-modal prompt; at most `limit` tokens each."""
    rows = [cross_modal_row("asr", ASR_PROMPT, "", u, templates) for u in units]
    prompts = [_prompt(vocabulary, row) for row in rows]
    answers = generate(model, vocabulary, prompts, limit, **options)
    return [Written(vocabulary.decode_text(ids), _cut(ids, vocabulary)) for ids in answers]


def speak(
    model: LlamaForCausalLM,
    vocabulary: UnitVocabulary,
    texts: Sequence[str],
    limit: int,
    templates: str = "paper",
    **options,
) -> list[Spoken]:
    """Text → merged units (n,), by a cross-modal prompt; at most `limit` tokens each."""
    rows = [cross_modal_row("tts", TTS_PROMPT, text, np.array([]), templates) for text in texts]
    prompts = [_prompt(vocabulary, row) for row in rows]
    answers = generate(model, vocabulary, prompts, limit, **options)
    return [Spoken(vocabulary.units_in(ids), _cut(ids, vocabulary)) for ids in answers]


def answer(
    model: LlamaForCausalLM,
    vocabulary: UnitVocabulary,
    instructions: Sequence[np.ndarray | str],
    limit: int,
    reply: str = "speech",
    templates: str = "paper",
    **options,
) -> list[Chain]:
    """Answer spoken (units) or written instructions through the chain of modality.

    `reply` is "speech" or "text"; a whole chain has at most `limit` tokens.
    """
    if reply not in ("speech", "text"):
        raise UserError(f"unknown reply {reply!r}: choose speech or text")
    prompts, formats = [], []
    for instruction in instructions:
        written = isinstance(instruction, str)
        chain_format: ChainFormat = f"{'text' if written else 'speech'}_{reply}"  # type: ignore[assignment]
        text, units = (instruction, None) if written else ("", instruction)
        row = chain_row(chain_format, text, instruction_units=units, templates=templates)
        prompts.append(vocabulary.encode_row(row)[0])
        formats.append(chain_format)
    outputs = generate(model, vocabulary, prompts, limit, **options)
    return [parse_chain(ids, vocabulary, f) for ids, f in zip(outputs, formats, strict=True)]


def parse_chain(ids: list[int], vocabulary: UnitVocabulary, chain_format: ChainFormat) -> Chain:
    """Split answer ids at their markers.

    Well-formed means: the markers of the format and nothing before, between or after them but what
    belongs there, that is text (one piece at least) after `[tq]` and `[ta]`, units in their
    brackets after `[ua]`, and `<eoa>` at the end.
    """
    asked, _, reply = chain_format.partition("_")
    expected = ["[tq]"] * (asked == "speech") + ["[ta]"] + ["[ua]"] * (reply == "speech")
    pieces = _pieces(ids, vocabulary)
    found = [piece for piece in pieces if piece in CHAIN_MARKERS]
    segments: dict[str, list[str | int]] = {}
    current = None
    for piece in pieces:
        if piece in CHAIN_MARKERS:
            current = segments.setdefault(str(piece), [])
        elif current is not None:
            current.append(piece)
    spoken, units, units_whole = segments.get("[ua]"), None, True
    if spoken is not None:
        units = vocabulary.units_in(i for i in spoken if isinstance(i, int))
        brackets = [vocabulary.marker(SOSP), vocabulary.marker(EOSP)]
        units_whole = [*spoken[:1], *spoken[-1:]] == brackets and 0 < len(units) == len(spoken) - 2
    text, words_only = {}, True
    for name in ("[tq]", "[ta]"):
        own = segments.get(name, [])
        words = [piece for piece in own if isinstance(piece, str)]
        text[name] = " ".join(words).removesuffix(";").strip()
        words_only &= len(words) == len(own)
    all_there = all(text[name] for name in expected if name in text)
    in_order = found == [*expected, "<eoa>"] and pieces[0] == expected[0]
    nothing_after = in_order and not segments["<eoa>"]
    wellformed = nothing_after and units_whole and words_only and all_there
    return Chain(text["[tq]"], text["[ta]"], units, wellformed, _cut(ids, vocabulary))


def _pieces(ids: list[int], vocabulary: UnitVocabulary) -> list[str | int]:
    """Ids → a chain's markers and the texts between them as strings, everything else as it is.

    In the released vocabulary these markers are text, and told from it as the release does, by
    their spelling.
    """
    markers = {vocabulary.marker(m): m for m in CHAIN_MARKERS if vocabulary.has_marker(m)}
    pieces: list[str | int] = []
    for is_text, run in itertools.groupby(ids, vocabulary.is_text):
        if not is_text:
            pieces += [markers.get(token, token) for token in run]
        elif markers:
            pieces.append(vocabulary.decode_text(run))
        else:
            spelled = _SPELLED.split(vocabulary.decode_text(run))
            pieces += [piece.strip() for piece in spelled if piece.strip()]
    if markers:
        return pieces
    return [piece for piece in pieces if piece != vocabulary.marker("<eos>")]  # after "<eoa>"


def _prompt(vocabulary: UnitVocabulary, row: Row) -> list[int]:
    """The ids of a row's prompt; its answer, which is empty, is not encoded."""
    return vocabulary.encode_row(Row(row.prompt))[0]


def _cut(ids: list[int], vocabulary: UnitVocabulary) -> bool:
    """Whether an answer met its longest length: its last id is no end marker."""
    return not ids or ids[-1] not in vocabulary.stops


def _until(ids: list[int], stops: list[int]) -> list[int]:
    """`ids` up to their first stop, or without padding where there is none."""
    for k, token in enumerate(ids):
        if token in stops:
            return ids[: k + 1]
    return [i for i in ids if i != PAD]
