"""Prompts in, answers out: batched decoding that stops at the end markers, and the parser of the chain of modality.

Prompts of different lengths are padded on the left *with* an attention mask (the release had none and corrupted its batches), answers
are handled as ids and never searched as text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LlamaForCausalLM

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.templates import ChainFormat, chain_row, cross_modal_row
from speechgpt_lib.language_model.llama_vocabulary import LlamaVocabulary
from speechgpt_lib.language_model.vocabulary import PAD, Vocabulary
from speechgpt_lib.units.sequence import EOSP, SOSP

ASR_PROMPT = "Please write down what you hear."
TTS_PROMPT = "Please say this sentence aloud."
CHAIN_MARKERS = ("[tq]", "[ta]", "[ua]", "<eoa>")
_SPELLED = re.compile("(" + "|".join(map(re.escape, CHAIN_MARKERS)) + ")")


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the likeliest.  The release samples with 0.7 / 50 / 0.8."""

    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 0.8


@dataclass(frozen=True)
class Chain:
    """A parsed answer: transcript, text answer, spoken answer (units (n,) or None), and whether it has exactly the parts asked for."""

    tq: str
    ta: str
    ua: np.ndarray | None
    wellformed: bool


@torch.inference_mode()
def generate(
    model: LlamaForCausalLM,
    vocabulary: Vocabulary | LlamaVocabulary,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    batch_size: int = 64,
) -> list[list[int]]:
    """Continue each prompt (ids) until an end marker or `max_new_tokens`; returns the new ids, the end marker included if it came.

    The answer to a prompt does not depend on the others in its batch (greedy decoding).
    """
    stops = vocabulary.stops
    context = model.config.max_position_embeddings
    longest = max((len(p) for p in prompts), default=0)
    if longest + 8 > context:
        raise UserError(
            f"a prompt has {longest} tokens, the model reads {context} in all: use shorter audio or text"
        )
    choice = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    if sampling and sampling.temperature > 0:
        choice = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        }
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    model.eval()
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        length = max(len(prompts[i]) for i in chosen)
        ids = torch.full((len(chosen), length), PAD, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for k, i in enumerate(chosen):
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
    vocabulary: Vocabulary | LlamaVocabulary,
    units: Sequence[np.ndarray],
    limit: int,
    templates: str = "paper",
    **options,
) -> list[str]:
    """Merged units → text, by a cross-modal prompt."""
    prompts = [
        vocabulary.encode_row(
            _without_answer(cross_modal_row("asr", ASR_PROMPT, "", u, templates))
        )[0]
        for u in units
    ]
    return [
        vocabulary.decode_text(ids)
        for ids in generate(model, vocabulary, prompts, limit, **options)
    ]


def speak(
    model: LlamaForCausalLM,
    vocabulary: Vocabulary | LlamaVocabulary,
    texts: Sequence[str],
    limit: int,
    templates: str = "paper",
    **options,
) -> list[np.ndarray]:
    """Text → merged units, by a cross-modal prompt."""
    empty = np.array([])
    prompts = [
        vocabulary.encode_row(
            _without_answer(cross_modal_row("tts", TTS_PROMPT, text, empty, templates))
        )[0]
        for text in texts
    ]
    return [
        vocabulary.units_in(ids) for ids in generate(model, vocabulary, prompts, limit, **options)
    ]


def answer(
    model: LlamaForCausalLM,
    vocabulary: Vocabulary | LlamaVocabulary,
    instructions: Sequence[np.ndarray | str],
    limit: int,
    reply: str = "speech",
    templates: str = "paper",
    **options,
) -> list[Chain]:
    """Answer spoken (units) or written instructions through the chain of modality; `reply` is "speech" or "text"."""
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


def parse_chain(
    ids: list[int], vocabulary: Vocabulary | LlamaVocabulary, chain_format: ChainFormat
) -> Chain:
    """Split answer ids at their markers.

    Well-formed means: the markers of the format and nothing before, between or after them but what belongs there, that is text (one
    piece at least) after `[tq]` and `[ta]`, units in their brackets after `[ua]`, and `<eoa>` at the end.
    """
    wanted = {
        "[tq]": chain_format.startswith("speech"),
        "[ta]": True,
        "[ua]": chain_format.endswith("speech"),
    }
    expected = [marker for marker, is_wanted in wanted.items() if is_wanted]
    pieces = _pieces(ids, vocabulary)
    found = [piece for piece in pieces if piece in CHAIN_MARKERS]
    segments: dict[str, list[str | int]] = {}
    current = None
    for piece in pieces:
        if piece in CHAIN_MARKERS:
            current = str(piece)
            segments.setdefault(current, [])
        elif current:
            segments[current].append(piece)
    spoken = segments.get("[ua]")
    brackets = [vocabulary.marker(SOSP), vocabulary.marker(EOSP)]
    units_whole = spoken is None or (
        len(spoken) > 2
        and [spoken[0], spoken[-1]] == brackets
        and all(isinstance(i, int) and vocabulary.is_unit(i) for i in spoken[1:-1])
    )
    text = {}
    for name in ("[tq]", "[ta]"):
        text[name] = (
            " ".join(piece for piece in segments.get(name, []) if isinstance(piece, str))
            .removesuffix(";")
            .strip()
        )
    words_only = all(isinstance(piece, str) for name in text for piece in segments.get(name, []))
    parts_whole = (
        units_whole and words_only and all(text[name] for name in expected if name in text)
    )
    nothing_else = (
        found == [*expected, "<eoa>"] and pieces[0] == expected[0] and not segments["<eoa>"]
    )
    units = None if spoken is None else vocabulary.units_in(i for i in spoken if isinstance(i, int))
    return Chain(text["[tq]"], text["[ta]"], units, nothing_else and parts_whole)


def _pieces(ids: list[int], vocabulary: Vocabulary | LlamaVocabulary) -> list[str | int]:
    """Ids → the markers of a chain and the texts between them as strings, everything else as it is.

    In the released vocabulary these markers are text, and told from it as the release does, by their spelling.
    """
    markers = {
        vocabulary.marker(name): name for name in CHAIN_MARKERS if vocabulary.has_marker(name)
    }
    pieces: list[str | int] = []
    for is_text, run in itertools.groupby(ids, vocabulary.is_text):
        if not is_text:
            pieces += [markers.get(token, token) for token in run]
        elif markers:
            pieces.append(vocabulary.decode_text(run))
        else:
            pieces += [
                piece.strip()
                for piece in _SPELLED.split(vocabulary.decode_text(run))
                if piece.strip()
            ]
    return (
        pieces if markers else [piece for piece in pieces if piece != vocabulary.marker("<eos>")]
    )  # which follows the spelled one


def _without_answer(row):
    return type(row)(row.prompt)


def _until(ids: list[int], stops: list[int]) -> list[int]:
    for k, token in enumerate(ids):
        if token in stops:
            return ids[: k + 1]
    return [i for i in ids if i != PAD]
