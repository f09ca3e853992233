"""Speed of SpeechInstruct.

    python benchmarks/instructions.py [--rows 2000] [--rounds 5] [--memory-rows 1000000]

Three things, one core each:

1. Rows of a set → token ids of the released layout.  The baseline is the release's way, row by row:
   the text form through the tokenizer, units and all, and the meta prefix once more to know how
   much of it is masked.  Parity: equal ids.
2. Text-to-unit with beam search, in batches of 32: against one text at a time by the library's
   search (the release's way), and by ours. Parity: equal units.
3. Memory while a cross-modal set is built: of few rows and of many, each in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import finish, measure
from benchmarks.llama_reference import release_tokenizer, sentences, train_tokenizer
from speechgpt_lib.instructions.descriptions import choose_description
from speechgpt_lib.instructions.records import CrossModalRecord
from speechgpt_lib.instructions.sets import record_to_row
from speechgpt_lib.instructions.templates import META_PREFIX
from speechgpt_lib.language_model.vocabulary import ADDED_MARKERS, LlamaVocabulary
from speechgpt_lib.recipes.schema import Optimization, TextToUnitSettings
from speechgpt_lib.text_to_unit.synthesis import TextToUnit
from speechgpt_lib.text_to_unit.training import train_text_to_unit
from speechgpt_lib.training.options import TrainingOptions
from speechgpt_lib.units.extract import Counts, write_units
from speechgpt_lib.units.sequence import merge

UNITS = 1000
MEMORY = """
import resource, sys
from pathlib import Path
from speechgpt_lib.instructions.cross_modal import Pairing, build_cross_modal
table, out = map(Path, sys.argv[1:])
more = {"inventory_id": "bench", "unit_count": 1000}
summary = build_cross_modal([table], out, Pairing(), **more)
megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(summary["statistics"]["rows"] + summary["held_out"], megabytes)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--memory-rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="write the result to this file, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        ratios, parity = rows_to_ids(Path(folder), arguments.rows, arguments.rounds)
        voiced = voicing(Path(folder), arguments.texts, min(arguments.rounds, 3))
        memory = memory_of_building(Path(folder), arguments.memory_rows)
    ratios |= voiced["ratios"] | {"memory_many_rows": memory["ratio"]}
    parity |= {"text_to_unit_equal": voiced["equal"], "memory_mb": memory["mb"]}
    finish("instructions", ratios, parity, "cpu", arguments.out)


# --- 1 rows to ids --------------------------------------------------------------------------------
def records(count: int, seed: int = 0) -> list[CrossModalRecord]:
    """Cross-modal records with units as LibriSpeech has them: about 11 to a word."""
    rng, made = np.random.default_rng(seed), []
    lengths = rng.integers(4, 40, count)
    texts = [" ".join(words) for words in _cut(sentences(seed, 4 * count), lengths)]
    for k, text in enumerate(texts):
        task = ("asr", "tts")[k % 2]
        units = rng.integers(0, UNITS, 11 * len(text.split()))
        description = choose_description(task, str(k), seed)
        made.append(CrossModalRecord(f"{task}-{k}", task, description, text, "", units))
    return made


def _cut(texts, lengths) -> list[list[str]]:
    words, cut = (word for text in texts for word in text.split()), []
    for length in lengths:
        cut.append([next(words) for _ in range(length)])
    return cut


def rows_to_ids(folder: Path, count: int, rounds: int) -> tuple[dict, dict]:
    path = folder / "tokenizer.model"
    path.write_bytes(train_tokenizer())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    vocabulary = LlamaVocabulary.from_file(path).expand(UNITS, "")
    names = (*(f"<{k}>" for k in range(UNITS)), *ADDED_MARKERS)
    added = {name: vocabulary.text_size + k for k, name in enumerate(names)}
    rows = records(count)

    def release(tokenize) -> list[list[int]]:
        made = []
        for record in rows:
            text = record_to_row(record, "release").text()
            made.append(tokenize(META_PREFIX + text))
            tokenize(META_PREFIX)  # its length says how much is masked
        return made

    def ours() -> list[list[int]]:
        made = []
        for record in rows:
            prompt, answer = vocabulary.encode_row(record_to_row(record, "release"))
            made.append(prompt + answer)
        return made

    arms = {
        "release": lambda: release(release_tokenizer(processor, added)),
        "release, compiled": lambda: release(release_tokenizer(processor, added, compiled=True)),
        "ours": ours,
    }
    seconds = measure(arms, rounds)
    wanted, found = arms["release"](), ours()
    ids = sum(map(len, wanted))
    print(f"rows to ids: {count} rows, {ids} ids")
    for name, spent in seconds.items():
        speed = f"{count / spent:10.0f} rows/s {ids / spent / 1e6:8.2f} M ids/s"
        print(f"  {name:20} {speed}   ratio {seconds['release'] / spent:6.2f}")
    different = sum(a != b for a, b in zip(wanted, found, strict=True))
    print(f"  rows with other ids: {different} of {count}")
    ratios = {"rows_to_ids": seconds["release"] / seconds["ours"]}
    return ratios | {
        "rows_to_ids_against_compiled": seconds["release, compiled"] / seconds["ours"]
    }, {"rows_with_other_ids": different}


# --- 2 text to unit -------------------------------------------------------------------------------
def voicing(folder: Path, count: int, rounds: int) -> dict:
    """Beam search of a model of the lab's size that has learned to spell: two units a letter."""
    texts = sorted(
        {" ".join(text.lower().rstrip(".?!").split()[:6]) for text in sentences(7, 4 * count)}
    )
    pairs = [(text, _spelled(text)) for text in texts]
    settings = TextToUnitSettings(
        optimization=Optimization(steps=400, learning_rate=3e-3, precision="no", save_every_s=1e9),
        beams=5,
    )
    options = TrainingOptions(seed=0)
    model: TextToUnit = train_text_to_unit(
        pairs, 60, settings, folder / "voicing", options, inventory_id="bench"
    )[0]
    chosen = texts[:: max(1, len(texts) // count)][:count]
    made: dict[str, list] = {}
    arms = {
        "library": lambda: made.update(library=[_by_library(model, text) for text in chosen]),
        "one by one": lambda: made.update(one=[model.generate([text])[0] for text in chosen]),
        "batched": lambda: made.update(batched=model.generate(chosen, batch_size=32)),
    }
    seconds = measure(arms, rounds)
    equal = sum(
        a.tolist() == b.tolist() == c.tolist()
        for a, b, c in zip(made["one"], made["batched"], made["library"], strict=True)
    )
    print(f"text to unit, beams 5, {len(chosen)} texts")
    for name, spent in seconds.items():
        print(f"  {name:20} {spent:8.2f} s   ratio {seconds['library'] / spent:6.2f}")
    print(f"  equal hypotheses: {equal} of {len(chosen)}")
    ratios = {
        "text_to_unit_batched": seconds["library"] / seconds["batched"],
        "text_to_unit_batched_against_ours": seconds["one by one"] / seconds["batched"],
    }
    return {"ratios": ratios, "equal": f"{equal} of {len(chosen)}"}


@torch.inference_mode()
def _by_library(model: TextToUnit, text: str) -> np.ndarray:
    """One text through the library's own search."""
    ids = torch.tensor([model.vocabulary.encode_text(text)])
    units = range(
        model.vocabulary.first_unit, model.vocabulary.first_unit + model.vocabulary.unit_count
    )
    others = [
        [k]
        for k in range(model.model.config.vocab_size)
        if k not in units and k != model.vocabulary.end
    ]
    output = model.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=model.longest,
        num_beams=5,
        do_sample=False,
        early_stopping=True,
        length_penalty=1.0,
        bad_words_ids=others,
    )
    return merge(model.vocabulary.units_in(output[0].tolist()))[0]


def _spelled(text: str) -> np.ndarray:
    letters = np.array([ord(c) - ord("a") for c in text if c.isalpha()])
    units = np.stack([letters, letters + 26], axis=1).ravel()
    return units[np.concatenate(([True], units[1:] != units[:-1]))]


# --- 3 memory -------------------------------------------------------------------------------------
def memory_of_building(folder: Path, many: int, few: int = 20_000) -> dict:
    found = {}
    for rows in (few, many):
        table = folder / f"table-{rows}"
        table.mkdir()
        for shard, start in enumerate(range(0, rows, 20_000)):
            count = min(20_000, rows - start)
            units = np.random.default_rng(shard).integers(0, UNITS, (count, 60)).tolist()
            blank = {
                "answer": "",
                "kind": "speech",
                "voice": "v",
                "split": "train",
                "durations": [1] * 60,
            }
            made = [
                blank
                | {"id": f"{start + k}", "text": f"sentence {start + k} of many", "units": units[k]}
                for k in range(count)
            ]
            write_units(table / f"units-{shard:05d}.parquet", made, Counts(), "bench")
        command = [sys.executable, "-c", MEMORY, str(table), str(folder / f"set-{rows}")]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).resolve().parents[1],
        )
        built, megabytes = map(int, done.stdout.split())
        if built != rows:
            raise SystemExit(f"{built} rows were built of {rows}")
        found[rows] = megabytes
        print(f"memory while a set of {rows} rows is built: {megabytes} MB")
    return {
        "ratio": found[many] / found[few],
        "mb": {str(rows): size for rows, size in found.items()},
    }


if __name__ == "__main__":
    main()
