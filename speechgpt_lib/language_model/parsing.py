"""Token ids of a row → what it is made of: the inverse of `Vocabulary.encode_row`, for whatever its texts say.

As ids a marker written in a text is plain characters and a marker of the template is one id, so nothing is ambiguous but a description that
holds the words which end it ("This is input:").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.parsing import fit_row, shapes
from speechgpt_lib.instructions.templates import MARKERS
from speechgpt_lib.language_model.vocabulary import Vocabulary
from speechgpt_lib.units.sequence import EOSP, SOSP


def parse_ids(ids: Sequence[int], vocabulary: Vocabulary, templates: str | None = None) -> dict:
    """Ids of a whole row → its record (see `instructions.parsing.parse_row`); white space at the ends of a text is not kept.

    Raises UserError for ids that are no row of `templates` (None: of any), or whose units are not between `<sosp>` and `<eosp>`.
    """
    names = {vocabulary.marker(name): name for name in MARKERS}
    markers, pieces = [], [""]
    for token in ids[1:] if len(ids) and ids[0] == vocabulary.begin else ids:
        if token in names:
            markers.append(names[token])
            pieces.append("")
        else:
            pieces[-1] += chr(token)  # ids as characters: the matcher works on text

    def literal(text: str) -> str:
        return "".join(map(chr, vocabulary.encode_text(text))) if text.strip() else ""

    for shape in shapes():
        if (
            templates in (None, shape.templates)
            and (values := fit_row(shape, markers, pieces, literal)) is not None
        ):
            return _record(
                shape.kind,
                shape.templates,
                {name: _content(value, vocabulary) for name, value in values.items()},
            )
    raise UserError(
        f"ids are no row of {templates or 'any'} templates: their markers are {' '.join(markers) or 'missing'}"
    )


def _content(value: str, vocabulary: Vocabulary) -> str | np.ndarray:
    """A slot: units where it is `<sosp>` units `<eosp>`, text where it has text only."""
    ids = [ord(character) for character in value]
    if ids and ids[0] == vocabulary.marker(SOSP):
        if ids[-1] != vocabulary.marker(EOSP) or not all(map(vocabulary.is_unit, ids[1:-1])):
            end = " ".join(map(vocabulary.name, ids[-4:]))
            raise UserError(
                f"ids of a spoken part are not {SOSP} units {EOSP}: found {end} at its end"
            )
        return vocabulary.units_in(ids)
    if strange := [token for token in ids if not vocabulary.is_text(token)]:
        raise UserError(
            f"ids of a written part hold {vocabulary.name(strange[0])}, which is no text"
        )
    return vocabulary.decode_text(ids)


def _record(kind: str, templates: str, values: dict) -> dict:
    if kind == "cross_modal":
        spoken = isinstance(values["input"], np.ndarray)
        units, text = (
            (values["input"], values["output"]) if spoken else (values["output"], values["input"])
        )
        if isinstance(text, np.ndarray) or isinstance(units, str):
            raise UserError(
                "ids of a cross-modal row have two spoken or two written parts, expected one of each"
            )
        return {
            "task": "asr" if spoken else "tts",
            "description": values["description"],
            "text": text,
            "units": units,
            "templates": templates,
        }
    spoken, nothing = kind.startswith("speech"), np.array([], dtype=np.int64)
    return {
        "format": kind,
        "instruction": values["tq"] if spoken else values["instruction"],
        "response": values["ta"],
        "instruction_units": values["instruction"] if spoken else nothing,
        "response_units": values.get("ua", nothing),
        "templates": templates,
    }
