"""Minimal pairs in their published layouts, and what is wrong with a set that is not whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechgpt_lib.corpora.minimal_pairs import MinimalPair, read_pairs
from speechgpt_lib.errors import UserError

LEXICAL = """id,filename,voice,frequency,word,phones,length_phones,correct
1,aa,A,12.0,cat,K AE T,3,1
1,ab,A,12.0,cav,K AE V,3,0
1,ac,B,12.0,cat,K AE T,3,1
1,ad,B,12.0,cav,K AE V,3,0
2,ae,A,,zof,Z AA F,3,0
2,af,A,0,zob,Z AA B,3,1
3,ag,A,,kif,K IH F,3,0
3,ah,A,7,kit,K IH T,3,1
"""
SYNTACTIC = """id,filename,voice,type,subtype,transcription,correct
7,xa,A,agreement,subject_verb,dogs bark,1
7,xb,A,agreement,subject_verb,dogs barks,0
7,xc,A,npi,only,only a cat ever sleeps,1
7,xd,A,npi,only,even a cat ever sleeps,0
"""


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def gold(folder: Path, text: str) -> Path:
    touch(folder, *(f"{line.split(',')[1]}.wav" for line in text.splitlines()[1:]))
    (folder / "gold.csv").write_text(text)
    return folder


def test_words_of_zerospeech(tmp_path: Path) -> None:
    assert read_pairs(gold(tmp_path, LEXICAL)) == [
        MinimalPair("aa.wav", "ab.wav", "//1", "in vocabulary"),
        MinimalPair("ac.wav", "ad.wav", "//1", "in vocabulary"),
        MinimalPair("af.wav", "ae.wav", "//2", "out of vocabulary"),
        MinimalPair("ah.wav", "ag.wav", "//3", "in vocabulary"),  # a non-word has no frequency
    ]


def test_grammar_of_zerospeech_below_other_folders(tmp_path: Path) -> None:
    gold(tmp_path / "syntactic" / "dev", SYNTACTIC)
    first, second = read_pairs(tmp_path)
    assert (first.right, first.wrong) == ("syntactic/dev/xa.wav", "syntactic/dev/xb.wav")
    assert (first.part, second.part) == ("syntactic/dev/agreement", "syntactic/dev/npi")
    assert first.item != second.item  # the same id, but another type


def test_stories(tmp_path: Path) -> None:
    touch(tmp_path, "2_correct.wav", "2_incorrect.wav", "10_correct.wav", "10_incorrect.wav")
    touch(tmp_path, "README.md")
    pairs = read_pairs(tmp_path)
    assert [(p.right, p.item, p.part) for p in pairs] == [
        ("2_correct.wav", "2", ""),
        ("10_correct.wav", "10", ""),
    ]


def test_salmon(tmp_path: Path) -> None:
    touch(tmp_path / "gender_consistency", "sample_0_0.wav", "sample_0_1.wav")
    touch(tmp_path / "rir_consistency", *(f"sample_3_{k}.wav" for k in range(3)))
    pairs = read_pairs(tmp_path)
    assert [(p.right, p.wrong) for p in pairs] == [
        ("gender_consistency/sample_0_0.wav", "gender_consistency/sample_0_1.wav"),
        ("rir_consistency/sample_3_0.wav", "rir_consistency/sample_3_1.wav"),
        ("rir_consistency/sample_3_0.wav", "rir_consistency/sample_3_2.wav"),
    ]
    assert pairs[1].item == pairs[2].item  # counts once
    assert [p.part for p in pairs[:2]] == ["gender_consistency", "rir_consistency"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("1,ab,A,12.0,cav,K AE V,3,0\n", ""), "id 1, voice A has no wrong recording"),
        (("cat,K AE T,3,1\n1,ab", "cat,K AE T,3,2\n1,ab"), "line 2: correct is '2'"),
        (("id,filename", "id,name"), "line 2: no filename"),
        (("1,aa", "1,../aa"), "only files inside"),
        (("1,aa", "1,zz"), "1 of 8 recordings are missing, first zz.wav"),
        (("12.0,cat", "often,cat"), "is damaged or of another kind"),
    ],
)
def test_a_list_with_a_fault(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    gold(tmp_path, LEXICAL)
    (tmp_path / "gold.csv").write_text(LEXICAL.replace(*change, 1))
    with pytest.raises(UserError, match=message):
        read_pairs(tmp_path)


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    gold(tmp_path, LEXICAL)
    (tmp_path / "gold.csv").write_bytes(b"\xff\xfei\0d\0")
    with pytest.raises(UserError, match="UTF-16"):
        read_pairs(tmp_path)


@pytest.mark.parametrize("names", [["1_incorrect.wav"], ["1_correct.wav"], ["sample_1_1.wav"]])
def test_a_recording_without_its_partner(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=f"{names[0]} has no (right|wrong) recording"):
        read_pairs(tmp_path)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    touch(tmp_path, "0001.wav", "items.jsonl")
    with pytest.raises(UserError, match="no minimal pairs in"):
        read_pairs(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        read_pairs(tmp_path / "no")
