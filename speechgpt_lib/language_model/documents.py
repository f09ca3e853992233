"""Documents of the corpora → token rows with loss weights, for pre-training the text model."""

from __future__ import annotations

from collections.abc import Iterable

from speechgpt_lib.corpora.corpus import Document
from speechgpt_lib.corpora.world import SEPARATOR
from speechgpt_lib.language_model.rows import TokenRow
from speechgpt_lib.language_model.vocabulary import UnitVocabulary


def document_rows(
    vocabulary: UnitVocabulary, documents: Iterable[Document], weight: float = 1.0
) -> list[TokenRow]:
    """A row for each document, between begin and end; its tokens count `weight` times."""
    rows = []
    for document in documents:
        ids, weights = [vocabulary.begin], [0.0]
        for piece in document:
            tokens = vocabulary.encode_text(piece.text, first=len(ids) == 1)
            ids += tokens
            last = piece.weight if piece.last is None else piece.last
            weights += [piece.weight] * (len(tokens) - 1) + [last] * min(1, len(tokens))
        rows.append(TokenRow([*ids, vocabulary.end], [weight * w for w in [*weights, 1.0]]))
    return rows


def question_prompt(vocabulary: UnitVocabulary, question: str) -> list[int]:
    """The ids after which the pre-trained text model continues with the answer to `question`."""
    separator = vocabulary.encode_text(SEPARATOR, first=False)
    return [vocabulary.begin, *vocabulary.encode_text(question), *separator]
