"""`speechgpt corpora`: what a reader types, and what comes back."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from speechgpt_lib.cli import corpora as corpora_commands
from speechgpt_lib.cli.main import app
from speechgpt_lib.corpora.catalogue import ARCHIVES
from speechgpt_lib.corpora.tables import read_utterances
from speechgpt_lib.errors import UserError
from tests.corpora import layouts
from tests.corpora.layouts import giga_segment


def corpora(*arguments: object) -> str:
    """The standard output of a command that succeeds; its `UserError` otherwise."""
    result = CliRunner().invoke(app, ["corpora", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_list_names_corpora_licences_layouts_and_archives():
    text = corpora("list")
    for words in (
        "librispeech",
        "common_voice",
        "gigaspeech",
        "libri_light",
        "CC BY 4.0",
        "GigaSpeech.json",
        "train-other-500",
        "3.05 TB",
    ):
        assert words in text
    listed = json.loads(corpora("list", "--json"))
    assert {row["corpus"]: row["gated"] for row in listed["corpora"]} == {
        "librispeech": False,
        "common_voice": True,
        "gigaspeech": True,
        "libri_light": False,
        "lj_speech": False,
        "vctk": True,
    }
    assert [archive["name"] for archive in listed["archives"]] == list(ARCHIVES)


def test_prepare_writes_a_table_and_says_what_is_in_it(tmp_path):
    layouts.librispeech(tmp_path / "LibriSpeech")
    (tmp_path / "LibriSpeech/dev-clean/84/121123/84-121123-0001.flac").write_bytes(b"")
    text = corpora(
        "prepare",
        "librispeech",
        tmp_path / "LibriSpeech",
        "-o",
        tmp_path / "out",
        "--decode",
        "--workers",
        2,
    )
    assert (
        "dev-clean                    1 utterances" in text
        and "empty 1" in text
        and "wrote 2 utterances" in text
    )
    assert [s.id for s in read_utterances(tmp_path / "out")] == ["84-121123-0000", "61-70968-0000"]
    again = corpora(
        "prepare",
        "librispeech",
        tmp_path / "LibriSpeech",
        "-o",
        tmp_path / "out",
        "--decode",
        "--json",
    )
    assert json.loads(again)["quarantined"]["reasons"] == {"empty": 1}
    with pytest.raises(UserError, match="1 of 3 utterances .*--max-bad-share 0.34"):
        corpora(
            "prepare",
            "librispeech",
            tmp_path / "LibriSpeech",
            "-o",
            tmp_path / "strict",
            "--max-bad-share",
            0,
        )


def test_options_of_one_corpus_reach_its_reader_only(tmp_path):
    root = layouts.gigaspeech(
        tmp_path / "giga",
        {"A": [giga_segment("A_S0", 0, 1, "WELL <COMMA> YES <PERIOD>", "XL", "S")]},
    )
    corpora(
        "prepare",
        "gigaspeech",
        root,
        "-o",
        tmp_path / "out",
        "--lower",
        "--no-punctuation",
        "--split",
        "S",
        "--split",
        "DEV",
    )
    assert [(s.text, s.split) for s in read_utterances(tmp_path / "out")] == [("well yes", "S")]
    with pytest.raises(UserError, match="GigaSpeech has no option language"):
        corpora("prepare", "gigaspeech", root, "-o", tmp_path / "more", "--language", "en")
    root = layouts.libri_light(tmp_path / "light", {"small/1/b/x": [[0, 1], [4, 5]]})
    corpora("prepare", "libri_light", root, "-o", tmp_path / "whole", "--whole-files")
    assert [s.seconds for s in read_utterances(tmp_path / "whole")] == [6.0]


@pytest.mark.parametrize("name", ["gigaspeech", "common_voice"])
def test_the_steps_for_a_corpus_that_asks_for_an_agreement_are_printed(name):
    text = corpora("download", name)
    assert "By hand:\n1. " in text and f"speechgpt corpora prepare {name} DIR" in text
    assert json.loads(corpora("download", name, "--json"))["manual"] in text


def test_download_names_the_next_command(tmp_path, monkeypatch):
    (tmp_path / "LibriSpeech/dev-clean").mkdir(parents=True)  # fetched before
    text = corpora("download", "dev-clean", "-o", tmp_path)
    assert (
        f"next: speechgpt corpora prepare librispeech {tmp_path}/LibriSpeech -o TABLE "
        "--split dev-clean" in text
    )
    with corpora_commands.progress_bar("a.tar.gz") as progress:
        progress(1, None)
        progress(1, 2)


def test_errors_are_one_line_and_exit_code_1(tmp_path, speechgpt):
    layouts.librispeech(tmp_path)
    done = speechgpt("corpora", "prepare", "gigaspeech", tmp_path, "-o", tmp_path / "out")
    assert done.returncode == 1 and done.stdout == ""
    assert (
        done.stderr.startswith(f"error: {tmp_path} is not GigaSpeech")
        and done.stderr.count("\n") == 1
    )
