"""The released JSONL, out and in byte for byte; every bad line with number and reason."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions import interchange, sets
from speechgpt_lib.instructions.interchange import check_jsonl, export_jsonl, import_jsonl
from speechgpt_lib.instructions.sets import check_set
from speechgpt_lib.instructions.templates import META_PREFIX, chain_row, cross_modal_row
from tests.instructions.tables import INVENTORY, UNIT_COUNT, dialogues, unit_rows, write_table
from tests.instructions.test_chain import build as build_chain
from tests.instructions.test_cross_modal import Pairing
from tests.instructions.test_cross_modal import build as build_cross_modal

TEXTS = (
    "a dog",
    "naïve – 犬 “quoted”",
    'back\\slash and "quotes"',
    "tab\tand\u2028line",
    "it's 3/4",
    "emoji 🐕",
)


def released_lines(count: int = 60, seed: int = 0) -> list[tuple[str, str]]:
    """(prefix, plain_text) as the release has them."""
    rng, rows = random.Random(seed), []
    for k in range(count):
        units = np.array([rng.randrange(UNIT_COUNT) for _ in range(rng.randrange(1, 30))])
        row = cross_modal_row(
            rng.choice(("asr", "tts")), f"Do it {k}, please.", rng.choice(TEXTS), units, "release"
        )
        rows.append((META_PREFIX, row.text(" ")))
    return rows


def write_jsonl(
    path: Path,
    rows: list[tuple[str, str]],
    end: str = "\n",
    last: bool = True,
    order: int = 1,
    **options,
) -> Path:
    lines = [
        json.dumps(dict([("prefix", p), ("plain_text", t)][::order]), **options) for p, t in rows
    ]
    path.write_bytes((end.join(lines) + (end if last else "")).encode())
    return path


def cross_modal_set(folder: Path, count: int = 300) -> Path:
    build_cross_modal(
        write_table(folder / "t", unit_rows(count)), folder / "set", Pairing(held_out_share=0.1)
    )
    return folder / "set"


@pytest.mark.parametrize("templates", ["paper", "release"])
def test_build_export_import_gives_the_same_table(tmp_path: Path, templates: str) -> None:
    folder = cross_modal_set(tmp_path)
    built = sets.read_summary(folder)
    done = export_jsonl(folder, tmp_path / "x.jsonl", templates)
    assert done["rows"] == built["statistics"]["rows"]
    back = import_jsonl(
        tmp_path / "x.jsonl", tmp_path / "back", INVENTORY, UNIT_COUNT, shard_rows=70
    )
    assert back["table_hash"] == built["table_hash"] and back["statistics"] == built["statistics"]
    assert back["quarantined"] == {} and back["shards"].split()[0] == back["shards"].split()[2]
    assert check_set(tmp_path / "back") == []
    export_jsonl(tmp_path / "back", tmp_path / "y.jsonl")
    assert (tmp_path / "y.jsonl").read_bytes() == (tmp_path / "x.jsonl").read_bytes()


def test_chains_too(tmp_path: Path) -> None:
    built = build_chain(dialogues(80), tmp_path / "set")
    export_jsonl(tmp_path / "set", tmp_path / "x.jsonl")
    back = import_jsonl(tmp_path / "x.jsonl", tmp_path / "back", INVENTORY, UNIT_COUNT)
    assert back["table_hash"] == built["table_hash"]
    assert (
        export_jsonl(tmp_path / "back", tmp_path / "y.jsonl")["sha256"]
        == export_jsonl(tmp_path / "set", tmp_path / "z.jsonl")["sha256"]
    )
    with pytest.raises(UserError, match="speech_text.*--templates paper"):
        export_jsonl(tmp_path / "set", tmp_path / "r.jsonl", "release")
    assert not (tmp_path / "r.jsonl").exists()
    only = build_chain(dialogues(30), tmp_path / "only", shares={"speech_speech": 1.0})
    export_jsonl(tmp_path / "only", tmp_path / "r.jsonl", "release")
    assert (
        import_jsonl(tmp_path / "r.jsonl", tmp_path / "back2", INVENTORY, UNIT_COUNT)["table_hash"]
        == only["table_hash"]
    )
    first = json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])
    assert (
        list(first) == ["prefix", "plain_text"]
        and first["prefix"] == META_PREFIX
        and first["plain_text"].endswith("<eoa>.")
    )


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("separators", [(",", ":"), None])
@pytest.mark.parametrize(("end", "last"), [("\n", True), ("\n", False), ("\r\n", True)])
@pytest.mark.parametrize("order", [1, -1])
def test_a_released_file_comes_back_byte_for_byte(
    tmp_path: Path, ascii_only, separators, end, last, order
) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl",
        released_lines(),
        end,
        last,
        order,
        ensure_ascii=ascii_only,
        separators=separators,
    )
    summary = import_jsonl(path, tmp_path / "set", INVENTORY, UNIT_COUNT, shard_rows=25)
    assert summary["quarantined"] == {} and summary["statistics"]["rows"] == 60
    export_jsonl(tmp_path / "set", tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_bytes() == path.read_bytes()
    assert all(row.verbatim is None for row in sets.read_set(tmp_path / "set")), (
        "the way of writing was recognised"
    )


def test_lines_written_in_other_ways_are_kept_as_they_are(tmp_path: Path) -> None:
    rows = released_lines(12)
    lines = [json.dumps({"prefix": p, "plain_text": t}, ensure_ascii=False) for p, t in rows]
    lines[3] = json.dumps(
        {"prefix": rows[3][0], "plain_text": rows[3][1]}, indent=None, separators=(" , ", " :  ")
    )
    lines[5] = json.dumps({"prefix": "", "plain_text": rows[5][1], "more": [1]})
    lines[7] = json.dumps(
        {"prefix": rows[7][0], "plain_text": rows[7][1].rstrip(" ")}, ensure_ascii=False
    )
    lines[9] += "\r"
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8", newline="")
    import_jsonl(tmp_path / "a.jsonl", tmp_path / "set", INVENTORY, UNIT_COUNT)
    kept = [k for k, row in enumerate(sets.read_set(tmp_path / "set")) if row.verbatim is not None]
    assert kept == [3, 5, 7, 9]
    export_jsonl(tmp_path / "set", tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()


BAD = {
    3: (b"", "empty line"),
    5: (b"{", "not JSON"),
    8: (b"[1]", "not an object"),
    9: (b'{"prefix": ""}', "missing key"),
    11: (b'{"prefix": "", "plain_text": 5}', "not text"),
    13: (b'{"prefix": "", "plain_text": "\xff"}', "broken UTF-8"),
    14: (b'{"prefix": "", "plain_text": "\\ud800"}', "broken UTF-8"),
    16: (b"[" * 100_000, "not JSON"),
    17: (b'{"prefix": "", "plain_text": ' + b"9" * 5000 + b"}", "not JSON"),
    18: (b'{"prefix": "<eoh>", "plain_text": ""}', "marker in prefix"),
    19: (b'{"prefix": "", "plain_text": "hello"}', "template"),
    20: (
        json.dumps(
            {"prefix": "", "plain_text": released_lines(1)[0][1].replace("<eosp>", "")}
        ).encode(),
        "unbalanced units",
    ),
    21: (
        json.dumps(
            {"prefix": "", "plain_text": released_lines(1)[0][1].replace("<sosp>", "<sosp><20>")}
        ).encode(),
        "unit out of range",
    ),
    22: (b"x" * 3000, "line too long"),
}


def hostile_file(path: Path) -> Path:
    good = iter(json.dumps({"prefix": p, "plain_text": t}).encode() for p, t in released_lines(30))
    path.write_bytes(
        b"\n".join(BAD[k][0] if k in BAD else next(good) for k in range(1, 31)) + b"\n"
    )
    return path


@pytest.fixture
def short_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line may be longer than 2,500 bytes, but for the deep and the long number."""
    real = interchange.read_lines
    monkeypatch.setattr(interchange, "read_lines", lambda path: (cut(line) for line in real(path)))

    def cut(line):
        return (
            interchange.Line(line.number, None)
            if line.data and line.data.startswith(b"xx")
            else line
        )


def test_every_bad_line_is_reported_with_number_and_reason(tmp_path: Path, short_lines) -> None:
    found = {}
    checked = check_jsonl(
        hostile_file(tmp_path / "a.jsonl"),
        UNIT_COUNT,
        lambda line, error: found.update({line.number: error.reason}),
    )
    assert found == {number: reason for number, (_, reason) in BAD.items()}
    assert (checked.lines, checked.good, checked.bad) == (30, 30 - len(BAD), len(BAD))
    summary = import_jsonl(tmp_path / "a.jsonl", tmp_path / "set", INVENTORY, UNIT_COUNT)
    rows = pyarrow.parquet.read_table(tmp_path / "set" / "quarantine-00000.parquet").to_pylist()
    assert {int(r["place"].split()[1]): r["reason"] for r in rows} == found
    assert summary["statistics"]["rows"] == 30 - len(BAD)


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, released_lines(2))
    with open(path, "ab") as file:
        file.write(b"[" * 100_000 + b"\n" + b"z" * 70_000)
    lines = list(interchange.read_lines(path, longest=50_000))
    assert [line.number for line in lines] == [1, 2, 3, 4]
    assert [line.data is None for line in lines] == [False, False, True, True]


def test_a_set_of_both_kinds_is_sorted_out(tmp_path: Path) -> None:
    chain = chain_row("speech_speech", "why", "so", np.array([1]), np.array([2]), "release").text(
        "."
    )
    path = write_jsonl(tmp_path / "a.jsonl", [*released_lines(3), (META_PREFIX, chain)])
    summary = import_jsonl(path, tmp_path / "set", INVENTORY, UNIT_COUNT)
    assert summary["quarantined"] == {"another kind": 1} and summary["statistics"]["rows"] == 3


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "none.jsonl").write_text("hello\nworld\n")
    with pytest.raises(UserError, match="no file"):
        check_jsonl(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="empty"):
        check_jsonl(tmp_path / "empty.jsonl")
    for name in ("empty", "none"):
        with pytest.raises(UserError, match="no well-formed row"):
            import_jsonl(tmp_path / f"{name}.jsonl", tmp_path / "set", INVENTORY, UNIT_COUNT)
    path = write_jsonl(tmp_path / "a.jsonl", released_lines(3))
    import_jsonl(path, tmp_path / "set", INVENTORY, UNIT_COUNT)
    write_jsonl(path, released_lines(4, seed=1))
    with pytest.raises(UserError, match="made from other rows"):
        import_jsonl(path, tmp_path / "set", INVENTORY, UNIT_COUNT)
    with pytest.raises(UserError, match="paper, release"):
        export_jsonl(tmp_path / "set", tmp_path / "x.jsonl", "mine")


def test_a_set_that_was_changed_is_noticed(tmp_path: Path) -> None:
    folder = cross_modal_set(tmp_path)
    assert check_set(folder) == []
    path = folder / "rows-00000.parquet"
    table = pyarrow.parquet.read_table(path)
    rows = table.to_pylist()
    rows[4]["text"] = "another sentence"
    rows[5]["units"] = [1, 50]
    rows[6]["id"] = rows[7]["id"]
    rows[8]["text"] = next(sets.read_set(folder, part="held_out")).text
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, table.schema), path)
    problems = "\n".join(check_set(folder))
    for wanted in (
        "another table hash",
        "row 5: unit 50, but the inventory has 0 to 19",
        "row 7: id",
        "row 8: its sentence is held out",
    ):
        assert wanted in problems, wanted
    with pytest.raises(UserError, match="inventory"):
        check_set(folder, "other")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of 400 MB is checked by a process that holds little more than its libraries."""
    line = write_jsonl(tmp_path / "one.jsonl", released_lines(1)).read_bytes()
    piece = write_jsonl(tmp_path / "piece.jsonl", released_lines(2000)).read_bytes()
    path = tmp_path / "big.jsonl"
    with open(path, "wb") as file:
        file.writelines([piece] * 30)
        file.write(b"y" * 300_000_000 + b"\n" + line)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from speechgpt_lib.instructions.interchange import check_jsonl\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "found = check_jsonl(Path(sys.argv[1]), 20)\n"
        "print(found.good, dict(found.reasons), peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    good, grown = done.stdout.split()[0], int(done.stdout.split()[-1])
    assert good == "60001" and "'line too long': 1" in done.stdout
    assert grown < 120_000, f"memory grew by {grown} kB"


def test_a_byte_order_mark_costs_no_row_and_comes_out_again(tmp_path: Path) -> None:
    lines = write_jsonl(tmp_path / "plain.jsonl", released_lines(5)).read_bytes()
    mark = b"\xef\xbb\xbf"
    more = write_jsonl(tmp_path / "more.jsonl", released_lines(5, seed=1)).read_bytes()
    for number, content in enumerate((mark + lines, lines + mark + more)):  # also two files joined
        path, folder = tmp_path / f"{number}.jsonl", tmp_path / f"set{number}"
        path.write_bytes(content)
        checked = check_jsonl(path, UNIT_COUNT)
        assert (checked.good, checked.bad) == (content.count(b"\n"), 0)
        import_jsonl(path, folder, INVENTORY, UNIT_COUNT)
        export_jsonl(folder, tmp_path / "out.jsonl")
        assert (tmp_path / "out.jsonl").read_bytes() == content
    (tmp_path / "wide.jsonl").write_bytes(lines.decode().encode("utf-16"))
    with pytest.raises(UserError, match="wide.jsonl is not UTF-8"):
        check_jsonl(tmp_path / "wide.jsonl", UNIT_COUNT)
