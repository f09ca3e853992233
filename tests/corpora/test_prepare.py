"""A corpus becomes a table, a quarantine and a summary: the same files however often the work was
interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechgpt_lib.corpora import prepare as room
from speechgpt_lib.corpora import tables
from speechgpt_lib.corpora.prepare import prepare
from speechgpt_lib.corpora.readers import librispeech
from speechgpt_lib.corpora.tables import (
    read_quarantine,
    read_utterances,
    table_shards,
    write_segments,
)
from speechgpt_lib.errors import UserError
from tests.corpora import layouts
from tests.corpora.layouts import giga_segment
from tests.corpora.sounds import cut, tone, write_sound


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Eleven good utterances in three chapters."""
    chapters = {
        "dev-clean/84/1": ["ONE"] * 4,
        "dev-clean/9/7": ["TWO"] * 5,
        "test-clean/61/70968": ["THREE"] * 2,
    }
    return layouts.librispeech(tmp_path_factory.mktemp("corpus"), chapters)


@pytest.fixture
def spoilt(corpus, tmp_path) -> Path:
    """The same with one utterance of every kind of fault, in order of name."""
    root = tmp_path / "spoilt"
    shutil.copytree(corpus, root)
    a, b, c, d = (root / f"dev-clean/84/1/84-1-000{k}.flac" for k in range(4))
    e, f, g, h, _ = (root / f"dev-clean/9/7/9-7-000{k}.flac" for k in range(5))
    a.unlink()
    b.write_bytes(b"")
    c.write_text("<html>")
    cut(d)
    write_sound(e, tone(0.02))
    write_sound(f, tone(3.0))
    write_sound(g, np.zeros(16_000, np.float32))
    soundfile.write(h, np.full(16_000, np.nan), 16_000, format="WAV", subtype="FLOAT")
    with open(root / "test-clean/61/70968/61-70968.trans.txt", "a") as lines:
        lines.write("61-70968-0009\n")
    return root


CHEAP = ["missing", "empty", "not_audio", "truncated", "too_short", "too_long"]


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def test_the_table_holds_the_readers_rows_with_what_the_files_say(corpus, tmp_path):
    summary = prepare("librispeech", corpus, tmp_path / "out", shard_size=4)
    found = list(read_utterances(tmp_path / "out"))
    assert [s.id for s in found] == [s.id for s in librispeech(corpus)]
    assert {(s.start, s.end, s.sample_rate) for s in found} == {(0.0, 0.3, 16_000)}
    assert all(len(s.read()) == 4800 for s in found)
    assert {(s.kind, s.answer, s.voice) for s in found} == {
        ("speech", "", voice) for voice in ("84", "9", "61")
    }
    assert [
        len(list(read_utterances(tmp_path / "out", shards=[shard])))
        for shard in table_shards(tmp_path / "out")
    ] == [4, 4, 3]
    assert (
        summary["utterances"],
        summary["hours"],
        summary["shards"],
        summary["without_text"],
    ) == (11, round(3.3 / 3600, 4), 3, 0)
    assert {name: counts["utterances"] for name, counts in summary["splits"].items()} == {
        "dev-clean": 9,
        "test-clean": 2,
    }
    assert summary["quarantined"] == {"utterances": 0, "share": 0.0, "reasons": {}}
    assert sorted(hashes(tmp_path / "out")) == [
        "quarantine.parquet",
        "settings.json",
        "summary.json",
        *(f"utterances-0000{k}.parquet" for k in range(3)),
    ]


@pytest.mark.parametrize("decode", [False, True])
def test_bad_files_go_to_quarantine_each_with_its_reason(spoilt, tmp_path, decode):
    summary = prepare(
        "librispeech",
        spoilt,
        tmp_path / "out",
        decode=decode,
        max_bad_share=0.9,
        longest_s=2.0,
        shard_size=3,
    )
    expected = [*CHEAP, *["silent", "not_finite"] * decode, "bad_row"]
    bad = list(read_quarantine(tmp_path / "out/quarantine.parquet"))
    assert [row.reason for row in bad] == expected
    assert [row.id for row in bad[:5]] == [
        "84-1-0000",
        "84-1-0001",
        "84-1-0002",
        "84-1-0003",
        "9-7-0000",
    ]
    assert all(str(tmp_path) not in row.path + row.detail and row.detail for row in bad)
    assert summary["quarantined"]["reasons"] == {reason: 1 for reason in sorted(expected)}
    assert (
        summary["utterances"] == len(list(read_utterances(tmp_path / "out"))) == 12 - len(expected)
    )


def test_more_than_the_share_is_an_error_that_says_how_to_go_on(spoilt, tmp_path):
    (spoilt / "dev-clean/9/7/9-7-0004.flac").unlink()
    with pytest.raises(UserError) as error:
        prepare("librispeech", spoilt, tmp_path / "out", longest_s=2.0)
    assert "8 of 12 utterances" in str(error.value) and "66.7%, the limit is 5.0%" in str(
        error.value
    )
    assert "missing (2), for example dev-clean/84/1/84-1-0000.flac" in str(
        error.value
    ) and "--max-bad-share 0.67" in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "out/summary.json").exists()
    assert len(list(read_quarantine(tmp_path / "out/quarantine.parquet"))) == 8
    with pytest.raises(UserError, match="only 1 shards and no summary.json"):
        next(read_utterances(tmp_path / "out"))
    assert (
        prepare("librispeech", spoilt, tmp_path / "out", longest_s=2.0, max_bad_share=0.67)[
            "utterances"
        ]
        == 4
    )


def test_one_bad_file_of_a_tiny_set_is_forgiven_unless_the_limit_is_0_or_it_is_the_only_one(
    tmp_path,
):
    root = layouts.librispeech(tmp_path / "tiny")
    (root / "dev-clean/84/121123/84-121123-0000.flac").unlink()
    assert prepare("librispeech", root, tmp_path / "out")["quarantined"] == {
        "utterances": 1,
        "share": 0.333333,
        "reasons": {"missing": 1},
    }
    with pytest.raises(UserError, match="1 of 3 utterances"):
        prepare("librispeech", root, tmp_path / "strict", max_bad_share=0)
    (root / "test-clean/61/70968/61-70968-0000.flac").unlink()
    with pytest.raises(UserError, match="1 of 1 utterances.*quarantine.parquet$"):
        prepare("librispeech", root, tmp_path / "only", split="test-clean")


def test_a_corpus_without_its_audio_is_given_up_early(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "GIVE_UP", 6)
    root = layouts.librispeech(
        tmp_path / "lists", {f"dev-clean/84/{k}": ["ONE"] * 3 for k in range(4)}
    )
    for path in root.rglob("*.flac"):
        path.unlink()
    with pytest.raises(UserError, match="6 of 6 utterances"):
        prepare("librispeech", root, tmp_path / "out", shard_size=3, max_bad_share=1.0)


@pytest.mark.parametrize("moment", range(9))
def test_interrupted_at_any_write_it_goes_on_to_the_same_files(
    spoilt, tmp_path, monkeypatch, moment
):
    settings = {"max_bad_share": 0.9, "longest_s": 2.0, "shard_size": 4}
    prepare("librispeech", spoilt, tmp_path / "whole", **settings)
    left = [moment]
    looked_at = []

    def dying(genuine):
        def write(*arguments):
            if left[0] == 0:
                left[0] -= 1
                raise KeyboardInterrupt
            left[0] -= 1
            return genuine(*arguments)

        return write

    with monkeypatch.context() as patch:
        patch.setattr(tables, "write_segments", dying(tables.write_segments))
        patch.setattr(room, "write_json", dying(room.write_json))
        patch.setattr(tables, "write_quarantine", dying(tables.write_quarantine))
        with pytest.raises(KeyboardInterrupt):
            prepare("librispeech", spoilt, tmp_path / "killed", **settings)
    finished = len(list((tmp_path / "killed/parts").glob("*.json")))
    genuine = tables.check_segment
    monkeypatch.setattr(tables, "check_segment", lambda *a: looked_at.append(a) or genuine(*a))
    prepare("librispeech", spoilt, tmp_path / "killed", workers=3, **settings)
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    assert len(looked_at) <= 11 - 4 * finished + (
        finished == 3
    )  # what was finished is not looked at again


def test_a_killed_process_leaves_work_that_another_one_ends(corpus, tmp_path):
    """No exception handler runs: what is on disk is what the next process finds."""
    prepare("librispeech", corpus, tmp_path / "whole", shard_size=2)
    program = (
        "import os, sys\nfrom speechgpt_lib.corpora import prepare as room, tables\n"
        "genuine = tables.write_segments\n"
        "def dying(path, rows, root):\n"
        "    rows = (r if r.id != '9-7-0001' else os.kill(os.getpid(), 9) for r in rows)\n"
        "    genuine(path, rows, root)\n"
        "tables.write_segments = dying\n"
        "room.prepare('librispeech', sys.argv[1], sys.argv[2], shard_size=2)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, corpus, tmp_path / "killed"],
        cwd=Path(room.__file__).parents[2],
    )
    assert killed.returncode == -9
    left = sorted(path.name for path in (tmp_path / "killed").glob("*.parquet"))
    assert left == ["utterances-00000.parquet", "utterances-00001.parquet"] and list(
        (tmp_path / "killed").glob(".utterances-*")
    )
    prepare("librispeech", corpus, tmp_path / "killed", shard_size=2)
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")


def test_a_list_that_changed_meanwhile_is_read_again(corpus, tmp_path):
    root = tmp_path / "growing"
    shutil.copytree(corpus, root)

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("librispeech", root, tmp_path / "out", shard_size=4, say=stop)
    layouts.librispeech(root, {"dev-clean/10/5": ["NEW"]})
    prepare("librispeech", root, tmp_path / "out", shard_size=4)
    assert [s.id for s in read_utterances(tmp_path / "out")] == [s.id for s in librispeech(root)]


def test_finished_work_is_kept_and_other_settings_are_refused(corpus, tmp_path):
    first = prepare("librispeech", corpus, tmp_path / "out", split=["dev-clean"])
    lines = []
    assert (
        prepare("librispeech", corpus, tmp_path / "out", split=("dev-clean",), say=lines.append)
        == first
    )
    assert lines == [f"{tmp_path / 'out'} is prepared already; --force does it again"]
    with pytest.raises(
        UserError, match=r"was prepared with split \['dev-clean'\], not \['test-clean'\]: .*--force"
    ):
        prepare("librispeech", corpus, tmp_path / "out", split=["test-clean"])
    assert (
        prepare("librispeech", corpus, tmp_path / "out", split=["test-clean"], force=True)[
            "utterances"
        ]
        == 2
    )
    assert [s.split for s in read_utterances(tmp_path / "out")] == ["test-clean"] * 2


def test_noise_is_counted_but_no_fault_and_options_reach_the_reader(tmp_path):
    segments = [
        giga_segment(f"A_S{k}", k, k + 1, "WELL <PERIOD>" if k % 2 else "<NOISE>", "XL")
        for k in range(4)
    ]
    layouts.gigaspeech(tmp_path / "giga", {"A": segments})
    summary = prepare(
        "gigaspeech", tmp_path / "giga", tmp_path / "out", lower=True, max_bad_share=0
    )
    assert (summary["skipped"], summary["quarantined"]["utterances"]) == ({"not_speech": 2}, 0)
    assert [s.text for s in read_utterances(tmp_path / "out")] == ["well."] * 2
    with pytest.raises(
        UserError, match="GigaSpeech has no option whole_files: there are lower, punctuation"
    ):
        prepare("gigaspeech", tmp_path / "giga", tmp_path / "more", whole_files=True)


def test_wrong_folders_leave_nothing_behind(corpus, tmp_path):
    with pytest.raises(UserError, match="read it as librispeech"):
        prepare("gigaspeech", corpus, tmp_path / "out")
    with pytest.raises(
        UserError,
        match="unknown corpus 'timit': choose librispeech, common_voice, gigaspeech, libri_light",
    ):
        prepare("timit", corpus, tmp_path / "out")
    (tmp_path / "empty" / "clips").mkdir(parents=True)
    layouts.common_voice(tmp_path / "empty", {"train": []})
    with pytest.raises(UserError, match="no utterance of Common Voice"):
        prepare("common_voice", tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_shards_and_missing_tables_are_told_in_one_line(corpus, tmp_path):
    prepare("librispeech", corpus, tmp_path / "out")
    cut(tmp_path / "out/utterances-00000.parquet")
    with pytest.raises(
        UserError, match="utterances-00000.parquet is damaged or half-written.*prepare`, again"
    ):
        next(read_utterances(tmp_path / "out"))
    shutil.copy(tmp_path / "out/quarantine.parquet", tmp_path / "out/utterances-00000.parquet")
    with pytest.raises(
        UserError, match="has the columns path, id, reason, detail; expected id, text"
    ):
        next(read_utterances(tmp_path / "out"))
    for read in (read_utterances, read_quarantine):
        with pytest.raises(UserError, match="speechgpt corpora prepare"):
            next(read(tmp_path / "none"))


def test_the_table_is_read_as_a_stream(tmp_path, monkeypatch):
    """A shard of many row groups gives its first rows before the rest is decoded."""
    rows = (layouts.recorded(f"{k:06d}", "a.flac", "", "s", "x", end=1.0) for k in range(10_000))
    write_segments(tmp_path / "utterances-00000.parquet", rows, tmp_path)
    file = tables.pyarrow.parquet.ParquetFile(tmp_path / "utterances-00000.parquet")
    assert file.metadata.num_row_groups == 3
    stream = read_utterances(tmp_path)
    assert next(stream).id == "000000"
    made = []
    genuine = tables.Utterance
    monkeypatch.setattr(tables, "Utterance", lambda **row: made.append(row) or genuine(**row))
    assert [next(stream).id for _ in range(3)] == ["000001", "000002", "000003"] and len(made) == 3
    assert sum(1 for _ in stream) == 9996


@pytest.mark.parametrize(
    ("name", "folder", "utterances", "hours"),
    [
        ("librispeech", "LibriSpeech", 52, 0.1125),
        ("common_voice", "CommonVoice/cv-corpus-17.0-2024-03-15", 13, 0.0143),
        ("gigaspeech", "GigaSpeech", 6, 0.0099),
        ("libri_light", "LibriLight", 20, 0.0705),
    ],
)
def test_reference_speech_is_all_good(reference, tmp_path, name, folder, utterances, hours):
    summary = prepare(name, reference / "speech" / folder, tmp_path, decode=True, max_bad_share=0)
    assert (summary["utterances"], summary["hours"]) == (utterances, hours)


SECRET = b"RIFF secret"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A good recording and a file of secrets, beside the corpora of the test."""
    (tmp_path / "secret.wav").write_bytes(SECRET)
    return write_sound(tmp_path / "outside.wav", tone(0.5))


def _prepared(corpus: str, root: Path, out: Path, **more) -> tuple[list, list]:
    """Ids of good rows, and the quarantine."""
    prepare(corpus, root, out, max_bad_share=1.0, **more)
    return [u.id for u in read_utterances(out)], list(read_quarantine(out / "quarantine.parquet"))


@pytest.mark.parametrize("name", ["{}/outside.wav", "../outside.wav", "audio/../../outside.wav"])
def test_gigaspeech_reads_nothing_outside(name: str, tmp_path: Path, outside: Path) -> None:
    root = layouts.gigaspeech(tmp_path / "giga", {"A": [giga_segment("A_1", 0, 1, "YES", "XL")]})
    listed = json.loads((root / "GigaSpeech.json").read_text())
    for path in (name.format(tmp_path), name.format(tmp_path).replace("outside", "secret")):
        segments = [giga_segment(path, 0, 0.4, "NO", "XL")]
        listed["audios"].append({"path": path, "segments": segments})
    (root / "GigaSpeech.json").write_text(json.dumps(listed))
    good, bad = _prepared("gigaspeech", root, tmp_path / "out")
    assert good == ["A_1"] and [row.reason for row in bad] == ["outside"] * 2
    assert "secret'" not in str(bad) and "RIFF" not in str(bad)


@pytest.mark.parametrize("id", ["../../outside", "../lj/../../outside", "x/../../../outside"])
def test_lj_speech_reads_nothing_outside(id: str, tmp_path: Path, outside: Path) -> None:
    root = layouts.lj_speech(tmp_path / "lj", {"LJ1": "yes"})
    with open(root / "metadata.csv", "a") as lines:
        lines.write(f"{id}|no|no\n{id.replace('outside', 'secret')}|no|no\n")
    good, bad = _prepared("lj_speech", root, tmp_path / "out")
    assert good == ["LJ1"] and [row.reason for row in bad] == ["outside"] * 2
    assert "RIFF" not in str(bad)


@pytest.mark.parametrize("id", ["../../../../outside", "/outside", "..", "x\0y"])
def test_librispeech_reads_nothing_outside(id: str, tmp_path: Path) -> None:
    root = layouts.librispeech(tmp_path / "libri", {"dev-clean/84/1": ["YES"]})
    write_sound(tmp_path / "outside.flac", tone(0.5))
    with open(root / "dev-clean/84/1/84-1.trans.txt", "a") as lines:
        lines.write(f"{id} NO\n")
    good, bad = _prepared("librispeech", root, tmp_path / "out")
    assert good == ["84-1-0000"] and bad[0].reason in ("outside", "missing")


def test_of_a_link_that_leads_outside_nothing_is_quoted(tmp_path: Path, outside: Path) -> None:
    root = layouts.lj_speech(tmp_path / "lj", {"LJ1": "yes", "LJ2": "no"})
    (root / "wavs" / "LJ2.wav").unlink()
    (root / "wavs" / "LJ2.wav").symlink_to(tmp_path / "secret.wav")
    _, bad = _prepared("lj_speech", root, tmp_path / "out")
    assert bad[0].reason == "outside" and "RIFF" not in str(bad)


@pytest.mark.parametrize(
    "spans",
    ["[[0, 1e15]]", "[[0, 1e400]]", "[[0, NaN]]", "[[NaN, 1]]", "[[0, Infinity]]", "[[0]]", "[0]"]
    + ["null", '"x"', "[[1, 0]]", "[[0, " + "9" * 5000 + "]]", "[" * 100_000, "[[0, null]]"],
    ids=lambda text: text[:20],
)
def test_voice_activity_that_can_not_be_is_a_bad_row(spans: str, tmp_path: Path) -> None:
    books = {"small/1/b/a": [[0, 1]], "small/1/b/z": [[0, 1]]}
    root = layouts.libri_light(tmp_path / "light", books, seconds=2.0)
    (root / "small/1/b/z.json").write_text(f'{{"voice_activity": {spans}}}')
    good, bad = _prepared("libri_light", root, tmp_path / "out")
    assert good == ["small/1/b/a/00000"] and bad[0].reason == "bad_row"
    assert len(bad[0].detail) <= 300


@pytest.mark.parametrize(
    ("start", "end"),
    [("NaN", "1"), ("0", "NaN"), ("0", "1e300"), ("-1e300", "1"), ("0", "Infinity"), ("0", '"1"')]
    + [("0", "1e400"), ("null", "1"), ("-1", "1"), ("1", "0"), ("0", "{}"), ("[]", "1")],
)
def test_segment_times_that_can_not_be_are_no_good_row(start, end, tmp_path: Path) -> None:
    segments = [giga_segment("A_1", 0, 1, "YES", "XL"), giga_segment("A_2", 7, 8, "NO", "XL")]
    root = layouts.gigaspeech(tmp_path / "giga", {"A": segments})
    text = (root / "GigaSpeech.json").read_text()
    text = text.replace(
        '"begin_time": 7, "end_time": 8', f'"begin_time": {start}, "end_time": {end}'
    )
    (root / "GigaSpeech.json").write_text(text)
    try:
        good, bad = _prepared("gigaspeech", root, tmp_path / "out")
    except UserError as error:  # JSON has no NaN
        assert "GigaSpeech.json" in str(error)
    else:
        assert good == ["A_1"] and len(bad) == 1


@pytest.mark.parametrize(
    "part", ["null", "3", '"x"', "[1]", '{"segments": 3}', '{"segments": [3]}']
)
def test_a_list_with_another_structure_is_one_error(part: str, tmp_path: Path) -> None:
    root = layouts.gigaspeech(tmp_path / "giga", {"A": [giga_segment("A_1", 0, 1, "YES", "XL")]})
    path = root / "GigaSpeech.json"
    path.write_text(path.read_text().replace('"audios": [', f'"audios": [{part}, '))
    with pytest.raises(UserError, match=r"GigaSpeech.json"):
        prepare("gigaspeech", root, tmp_path / "out")


def test_a_pipe_or_a_line_without_end_is_no_list(tmp_path: Path) -> None:
    root = layouts.librispeech(tmp_path / "libri", {"dev-clean/84/1": ["YES"]})
    list_ = root / "dev-clean/84/1/84-1.trans.txt"
    list_.write_text("x" * 3_000_000)
    with pytest.raises(UserError, match="line 1 is longer than 1 MB"):
        prepare("librispeech", root, tmp_path / "out")
    list_.unlink()
    os.mkfifo(list_)
    with pytest.raises(UserError, match="is a pipe or device"):
        prepare("librispeech", root, tmp_path / "out")


def test_a_first_line_of_any_length_is_not_quoted_whole(tmp_path: Path) -> None:
    root = layouts.common_voice(tmp_path / "cv", {"train": ["yes"]})
    (root / "train.tsv").write_text("x" * 900_000 + "\ty\n")
    with pytest.raises(UserError, match="is it a list of Common Voice") as found:
        prepare("common_voice", root, tmp_path / "out")
    assert len(str(found.value)) <= 1000


@pytest.mark.parametrize("name", [b"84-121123-caf\xe9", b"84-121123-\xff\xfe", b"84-121123-\x80"])
def test_names_that_are_no_utf8_go_to_quarantine(tmp_path, name):
    corpus = layouts.librispeech(tmp_path / "libri")
    folder = corpus / "dev-clean/84/121123"
    os.link(folder / "84-121123-0000.flac", os.fsencode(folder) + b"/" + name + b".flac")
    summary = prepare("librispeech", corpus, tmp_path / "out", max_bad_share=0.9)
    assert summary["quarantined"]["reasons"] == {"bad_row": 1}
    (row,) = read_quarantine(tmp_path / "out/quarantine.parquet")
    assert (
        "not UTF-8" in row.detail
        and row.id == os.fsdecode(name).encode("utf-8", "backslashreplace").decode()
    )


def test_a_folder_that_is_no_utf8_goes_to_quarantine(tmp_path):
    layouts.vctk(tmp_path / "vctk", {"p225/p225_002": "Ask her", "p226/p226_001": "Call Stella"})
    folder = os.fsencode(tmp_path / "vctk/wav48_silence_trimmed/p22")
    os.rename(folder + b"6", folder + b"\xe9")
    summary = prepare("vctk", tmp_path / "vctk", tmp_path / "out", max_bad_share=0.9)
    assert (summary["utterances"], summary["quarantined"]["reasons"]) == (1, {"bad_row": 1})
