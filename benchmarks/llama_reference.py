"""A stand-in for LLaMA's tokenizer file, which can't be shipped, and the release's way of using it.

The release's way is written from its description.

The model is a byte-fallback BPE of 32,000 pieces with LLaMA's settings, trained on made-up words:
always the same, and as fast to use.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable, Iterator

import sentencepiece

from speechgpt_lib.instructions.descriptions import load_descriptions
from speechgpt_lib.instructions.templates import META_PREFIX

ONSETS = "b c d f g h j k l m n p r s t v w z".split()
ONSETS += "br ch cl cr dr fl fr gl gr pl pr sh sl sp st str th tr wh".split()
VOWELS = "a e i o u ai ea ee ie oo ou".split()
CODAS = "b d g k l m n p r s t x ck ll nd ng nt rd rk rm rn rt ss st".split()


def made_up_words(seed: int, count: int) -> list[str]:
    """Words of one to four syllables, short ones first as in a real language's frequency list."""
    rng = random.Random(seed)
    words = (
        "".join(_syllable(rng) for _ in range(rng.choice((1, 1, 2, 2, 2, 3, 3, 4))))
        for _ in range(count)
    )
    return sorted(words, key=lambda word: len(word) + 4 * rng.random())


def _syllable(rng: random.Random) -> str:
    return (
        rng.choice(ONSETS) + rng.choice(VOWELS) + (rng.choice(CODAS) if rng.random() < 0.6 else "")
    )


def sentences(seed: int, count: int, words: int = 12) -> Iterator[str]:
    """Sentences whose words are as unevenly frequent as those of a language."""
    vocabulary, rng = made_up_words(0, 60_000), random.Random(seed)
    for _ in range(count):
        ranks = (int(len(vocabulary) ** rng.random()) for _ in range(words))  # Zipf's law
        chosen = (vocabulary[rank - 1] for rank in ranks)
        yield " ".join(chosen).capitalize() + rng.choice(".?!")


def train_tokenizer(pieces: int = 32_000, count: int = 60_000) -> bytes:
    """A SentencePiece model as LLaMA's; the same bytes every time.

    BPE, byte fallback, no normalisation, blanks kept, dummy prefix.
    """
    texts = [
        *sentences(1, count),
        *load_descriptions("asr"),
        *load_descriptions("tts"),
        *META_PREFIX.splitlines(),
    ]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        vocab_size=pieces,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()


def release_tokenizer(
    processor: sentencepiece.SentencePieceProcessor, added: dict[str, int], compiled: bool = False
) -> Callable[[str], list[int]]:
    """Text → ids as the slow tokenizer of the release's transformers does it.

    Text is cut at added tokens, and white space around them is dropped.

    `compiled` cuts by a regular expression instead of the trie in Python that it had.
    """
    if compiled:
        pattern = re.compile(
            "(" + "|".join(map(re.escape, sorted(added, key=len, reverse=True))) + ")"
        )
        cut = pattern.split
    else:
        from transformers.tokenization_python import Trie

        trie = Trie()
        for token in added:
            trie.add(token)
        cut = trie.split

    def tokenize(text: str) -> list[int]:
        pieces = cut(text)
        for k, piece in enumerate(pieces):
            if piece in added:
                if k + 1 < len(pieces) and pieces[k + 1] not in added:
                    pieces[k + 1] = pieces[k + 1].lstrip()
                if k and pieces[k - 1] not in added:
                    pieces[k - 1] = pieces[k - 1].rstrip()
        ids = [processor.bos_id()]
        for piece in pieces:
            if piece in added:
                ids.append(added[piece])
            elif piece:
                ids += processor.encode(piece)
        return ids

    return tokenize
