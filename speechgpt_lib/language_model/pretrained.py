"""A published LLaMA in a folder on disk → the model and vocabulary to go on with.

The folder is what transformers saves: `config.json`; weights as `model.safetensors` or
`pytorch_model.bin`, whole or in shards; and a tokenizer, `tokenizer.model` (SentencePiece: LLaMA 1
and 2) or `tokenizer.json` (fast BPE: LLaMA 3 and its relatives).  Nothing is fetched and no code of
the folder runs.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from speechgpt_lib.errors import UserError, one_line
from speechgpt_lib.language_model.llama_vocabulary import TOKENIZER, LlamaVocabulary
from speechgpt_lib.language_model.planning import NAMES
from speechgpt_lib.language_model.vocabulary import UnitVocabulary, Vocabulary
from speechgpt_lib.recipes.schema import LanguageModelSettings

FAST = "tokenizer.json"


def load_pretrained(
    folder: Path, settings: LanguageModelSettings
) -> tuple[LlamaForCausalLM, UnitVocabulary]:
    """Model (fp32) and vocabulary of the LLaMA in `folder`.

    Raises:
        UserError: no such folder, another architecture, other sizes than the recipe's, weights or
            tokenizer missing or damaged.
    """
    config = _read_config(folder)
    shape, wanted = config.to_dict(), settings.model_dump(include=set(NAMES))
    for ours, size in wanted.items():
        if size != shape[NAMES[ours]]:
            raise UserError(
                f"language_model.{ours} is {size}, the model in {folder} has {shape[NAMES[ours]]}: "
                "set it to that in the recipe, so that plans and reports are about this model"
            )
    vocabulary = _read_tokenizer(folder, config)
    return _read_weights(folder, config, vocabulary), vocabulary


def load_pretrained_with_units(
    folder: Path, unit_count: int, inventory: str
) -> tuple[LlamaForCausalLM, LlamaVocabulary]:
    """A model whose vocabulary has LLaMA's pieces and the tokens that SpeechGPT adds, as released.

    Its embeddings must be as many as the pieces of `tokenizer.model`, `unit_count` units and the
    markers; else it raises UserError.
    """
    config = _read_config(folder)
    vocabulary = LlamaVocabulary.from_file(folder / TOKENIZER).expand(unit_count, inventory)
    return _read_weights(folder, config, vocabulary), vocabulary


def _read_weights(folder: Path, config: LlamaConfig, whole: UnitVocabulary) -> LlamaForCausalLM:
    """Weights in fp32, all there and of the right shape: an embedding for each id of `whole`."""
    if whole.size != config.vocab_size:
        units = f", {whole.unit_count} units and markers" if whole.unit_count else ""
        raise UserError(
            f"{folder}: the model has {config.vocab_size} embeddings; its pieces{units} are "
            f"{whole.size}: files of two models, or of another inventory?"
        )
    try:
        model, report = LlamaForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise UserError(f"the weights in {folder} were not read: {one_line(error)}") from None
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise UserError(
            f"the weights in {folder} are not whole: {missing[0]} and {len(missing) - 1} more "
            "are missing or of another shape"
        )
    return model.eval()


def _read_config(folder: Path) -> LlamaConfig:
    """`config.json` of a LLaMA.  Raises UserError where it is missing, damaged or of another."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"no config.json in {folder}: expected a folder as transformers saves it")
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError):
        raise UserError(f"{path} is damaged: get it again") from None
    if kind != "llama":
        raise UserError(f"{folder} has a model of type {kind}, expected llama, which we build on")
    return LlamaConfig.from_pretrained(folder, local_files_only=True, attn_implementation="sdpa")


def _read_tokenizer(folder: Path, config: LlamaConfig) -> UnitVocabulary:
    """SentencePiece where it is there, else the fast tokenizer.

    Raises UserError where there is none, or one that is damaged or of another model.
    """
    if (folder / TOKENIZER).is_file():
        return LlamaVocabulary.from_file(folder / TOKENIZER)
    path = folder / FAST
    if not path.is_file():
        raise UserError(f"no tokenizer in {folder}: expected {TOKENIZER} (SentencePiece) or {FAST}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises its bare base class
        raise UserError(f"{path} is no tokenizer ({one_line(error)}): get it again") from None
    pieces, size = tokenizer.get_vocab_size(), config.vocab_size
    if pieces > size:
        raise UserError(f"{path} has {pieces} pieces, the model {size} embeddings: of two models?")
    ends = (config.bos_token_id, config.eos_token_id)
    begin, end = (ids[0] if isinstance(ids, list) else ids for ids in ends)
    if begin is None or end is None:
        raise UserError(f"{folder}/config.json lacks bos_token_id or eos_token_id: add them")
    return Vocabulary.of_published(tokenizer, begin, end, size)
