"""A text-to-unit model for the tables of a corpus: trained, stopped and resumed, used from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from speechgpt_lib.text_to_unit.corpus import read_pairs, train_on_units

from speechgpt_lib.errors import UserError
from speechgpt_lib.recipes.loading import load_recipe
from speechgpt_lib.runs.artefacts import write_json
from speechgpt_lib.text_to_unit.synthesis import TextToUnit
from speechgpt_lib.units.sequence import parse_units
from tests.instructions.tables import INVENTORY, UNIT_COUNT, unit_rows, write_table


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder as `units extract` leaves it: transcripts in capitals, as LibriSpeech's are."""
    rows = unit_rows(900)
    for row in rows:
        row["text"] = f"SENTENCE {int(row['id'][1:])}, IT'S SO."
    rows[3]["text"] = ""
    rows[4]["units"] = list(range(5)) * 300
    rows[4]["durations"] = [1] * 1500
    write_table(tmp_path / "units-x" / "units", rows[:500], rows[500:])
    (tmp_path / "units-x" / "inventory").mkdir()
    write_json(
        tmp_path / "units-x" / "inventory" / "inventory.json",
        {"id": INVENTORY, "clusters": UNIT_COUNT},
    )
    return tmp_path / "units-x"


def settings(steps: int = 6):
    found = load_recipe("smoke").text_to_unit
    return found.model_copy(
        update={"optimization": found.optimization.model_copy(update={"steps": steps})}
    )


def test_pairs_are_in_spoken_form_and_held_out_by_sentence(corpus: Path) -> None:
    training, held_out, dropped = read_pairs([corpus], INVENTORY)
    assert dropped == {"no text": 1, "too long": 1}
    assert len(training) + len(held_out) == 898 and held_out
    assert training[0][0] == "sentence zero it's so"
    assert not {text for text, _ in training} & {text for text, _ in held_out}
    with pytest.raises(UserError, match="inventory"):
        read_pairs([corpus], "other")


def test_training_resumes_and_the_model_speaks_written_text(corpus: Path, tmp_path: Path) -> None:
    said: list[str] = []
    facts = train_on_units([corpus], settings(), tmp_path / "m", device="cpu", say=said.append)
    assert facts["pairs"] + facts["held_out"] == 898 and facts["held_out_unit_error_rate"] > 0
    model = TextToUnit.load(tmp_path / "m", INVENTORY)
    assert (
        model.generate(["Sentence 7!"])[0].tolist()
        == model.generate(["SENTENCE SEVEN"])[0].tolist()
    )
    assert model.refuses("?!")
    again = train_on_units([corpus], settings(), tmp_path / "m", device="cpu", say=said.append)
    assert again == facts and said[-1].endswith("finished already")
    with pytest.raises(UserError, match="begun with other"):
        train_on_units([corpus], settings(8), tmp_path / "m", device="cpu")


@pytest.mark.slow
def test_the_command_line(corpus: Path, tmp_path: Path, speechgpt) -> None:
    out = tmp_path / "m"
    done = speechgpt(
        "text-to-unit", "train", corpus, "-o", out, "--recipe", "smoke", "--device", "cpu", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["inventory"] == INVENTORY
    done = speechgpt("text-to-unit", "generate", "Sentence 7!", "it is so", "--text-to-unit", out)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all(parse_units(line, UNIT_COUNT).size for line in lines)
    done = speechgpt("text-to-unit", "generate", "犬", "--text-to-unit", out)
    assert done.returncode == 1 and done.stderr.startswith("error: there is no text")


@pytest.mark.slow
def test_the_published_model_from_the_command_line(
    reference: Path, tmp_path: Path, speechgpt
) -> None:
    files = reference / "fixtures" / "fairseq" / "text2unit"
    command = (
        "text-to-unit",
        "import",
        files / "text2unit.pt",
        files / "spm.model",
        "--inventory",
        "feed",
        "-o",
        tmp_path / "m",
    )
    done = speechgpt(*command, "--dictionary", files / "binary" / "dict.unit.txt", "--json")
    assert json.loads(done.stdout)["units"] == 50, done.stderr
    wanted = json.loads((files / "expected.json").read_text())["sentences"][2]
    done = speechgpt(
        "text-to-unit", "generate", wanted["text"], "--text-to-unit", tmp_path / "m", "--json"
    )
    found = json.loads(done.stdout)
    assert " ".join(f"<{unit}>" for unit in found["units"][0]) == wanted["translate"]
    assert np.array(found["units"][0]).max() < 50
