"""Each corpus' own layout becomes the same segments, whatever order the file system lists it in,
without holding it in memory."""

from __future__ import annotations

import itertools
import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_lib.corpora.readers import (
    common_voice,
    gigaspeech,
    join_spans,
    libri_light,
    librispeech,
    lj_speech,
    plain_text,
    vctk,
)
from speechgpt_lib.corpora.tables import Skipped, Utterance, check_segment
from speechgpt_lib.errors import UserError
from tests.corpora import layouts
from tests.corpora.layouts import giga_segment, recorded

READERS = {
    "librispeech": librispeech,
    "common_voice": common_voice,
    "gigaspeech": gigaspeech,
    "libri_light": libri_light,
}


def good_rows(reader, *arguments, **options):
    """The rows of a reader that give an utterance."""
    rows = reader(*arguments, **options)
    return (row for row in rows if isinstance(row, Utterance))


def build(name: str, root):
    """A small corpus of two splits."""
    if name == "librispeech":
        return layouts.librispeech(root)
    if name == "common_voice":
        return layouts.common_voice(root, {"train": ["One.", "Two."], "test": ["Three."]})
    if name == "gigaspeech":
        one = [
            giga_segment("A_S0", 0.5, 1.5, "HELLO <COMMA> YOU <PERIOD>", "XL", "XS"),
            giga_segment("A_S1", 2, 3, "GO", "XL"),
        ]
        return layouts.gigaspeech(
            root, {"A": one, "B": [giga_segment("B_S0", 0, 2, "WHY <QUESTIONMARK>", "DEV")]}
        )
    return layouts.libri_light(
        root,
        {
            "small/100/a_book/01_x": [[0.5, 2.0], [2.5, 3.0]],
            "medium/9/b_book/01_y": [[0.0, 1.0], [4.0, 5.0]],
        },
    )


# --- LibriSpeech ---
def test_librispeech_utterances_come_with_their_lines(tmp_path):
    layouts.librispeech(tmp_path)
    first, second, third = good_rows(librispeech, tmp_path)
    path = "dev-clean/84/121123/84-121123-0000.flac"
    assert first == recorded("84-121123-0000", path, "GO", "84", "dev-clean")
    assert (second.text, third.text, third.split) == ("DO YOU", "HE BEGAN", "test-clean")
    assert list(good_rows(librispeech, tmp_path, "test-clean")) == [third]
    assert [s.id for s in good_rows(librispeech, tmp_path, ["test-clean", "dev-clean"])] == [
        first.id,
        second.id,
        third.id,
    ]


def test_librispeech_as_the_archives_unpack_it(tmp_path):
    layouts.librispeech(tmp_path / "LibriSpeech")
    assert [s.path for s in good_rows(librispeech, tmp_path, "test-clean")] == [
        "LibriSpeech/test-clean/61/70968/61-70968-0000.flac"
    ]
    assert check_segment(tmp_path, next(good_rows(librispeech, tmp_path))).end == pytest.approx(0.3)


def test_librispeech_lines_without_sound_and_sound_without_lines(tmp_path):
    layouts.librispeech(tmp_path, {"dev-clean/84/121123": ["GO", "DO", "SO"]})
    folder = tmp_path / "dev-clean/84/121123"
    (folder / "84-121123-0001.flac").unlink()
    (folder / "._84-121123-0000.flac").write_bytes(b"macOS leaves these")
    (folder / "84-121123.trans.txt").write_bytes(
        b"84-121123-0000 GO\n84-121123-0001 DO\n84-121123-0007\n\n84-121123-0008 \xff\n"
    )
    found = list(librispeech(tmp_path))
    assert [(s.id, s.text) for s in found if isinstance(s, Utterance)] == [
        ("84-121123-0000", "GO"),
        ("84-121123-0001", "DO"),  # its check will say that the file is missing
        ("84-121123-0002", ""),
    ]
    assert [(s.id, s.reason) for s in found if isinstance(s, Skipped)] == [
        ("84-121123-0007", "bad_row"),
        ("line 5", "bad_row"),
    ]


# --- Common Voice ---
def test_common_voice_quotes_mean_nothing(tmp_path):
    sentences = ['"He said so.', 'A "full" one.', "L'été, ça va ?", '""Doubled"" by an export.']
    layouts.common_voice(tmp_path, {"train": sentences, "test": ["Last."]})
    found = list(good_rows(common_voice, tmp_path))
    assert [s.text for s in found] == [*sentences, "Last."]
    assert found[1] == recorded(
        "common_voice_en_1", "clips/common_voice_en_1.mp3", 'A "full" one.', "voice1", "train"
    )


@pytest.mark.parametrize(
    "columns",
    [
        layouts.COLUMNS,
        # until release 6, and until 12
        "client_id path sentence up_votes down_votes age gender accent".split(),
        "client_id path sentence up_votes down_votes age gender accents locale segment".split(),
        layouts.COLUMNS[::-1],
    ],
)
def test_common_voice_columns_go_by_name(tmp_path, columns):
    layouts.common_voice(tmp_path / "de", {"validated": ["Guten Tag."]}, columns, "de")
    (found,) = good_rows(common_voice, tmp_path / "de", "validated")
    assert (found.text, found.voice, found.language) == (
        "Guten Tag.",
        "voice0",
        "de" if "locale" in columns else "",
    )
    (found,) = good_rows(
        common_voice, tmp_path, "validated"
    )  # from the folder above, the folder's name serves
    assert (found.path, found.language) == ("de/clips/common_voice_de_0.mp3", "de")


def test_common_voice_languages_and_splits(tmp_path):
    for language in ("fr", "de"):
        layouts.common_voice(
            tmp_path / language,
            {"train": ["A."], "dev": ["B."], "validated": ["C."], "other": []},
            language=language,
        )
        (tmp_path / language / "clip_durations.tsv").write_text("clip\tduration[ms]\n")
    assert [(s.language, s.split) for s in good_rows(common_voice, tmp_path)] == list(
        itertools.product(("de", "fr"), ("train", "dev"))
    )
    assert [s.language for s in good_rows(common_voice, tmp_path, "validated", "fr")] == ["fr"]
    with pytest.raises(UserError, match="already contains train"):
        next(good_rows(common_voice, tmp_path, ["train", "validated"]))
    with pytest.raises(
        UserError, match="no split clip_durations.*there are train, dev, other, validated"
    ):
        next(good_rows(common_voice, tmp_path, "clip_durations"))


def test_common_voice_lines_that_cannot_be_understood_are_told(tmp_path):
    layouts.common_voice(tmp_path, {"train": ["Good."]})
    with open(tmp_path / "train.tsv", "ab") as tsv:
        tsv.write(b"v\tclip.mp3\tx\tA tab\tinside" + b"\t" * 10 + b"\n")
        tsv.write(
            b"v\t\tx\tNo path\n"
            + b"v\tclip.mp3\tx\t\xff\n"
            + b"\n"
            + b"v\tshort\tx\tFew fields and no ending\r\n"
        )
    found = list(common_voice(tmp_path))
    assert [(s.id, s.reason) for s in found if isinstance(s, Skipped)] == [
        ("clip.mp3", "bad_row"),
        ("line 4", "bad_row"),
        ("line 5", "bad_row"),
    ]
    assert [(s.text, s.path) for s in found if isinstance(s, Utterance)][1] == (
        "Few fields and no ending",
        "clips/short.mp3",
    )
    (tmp_path / "train.tsv").write_text("clip\tduration\n")
    with pytest.raises(UserError, match="no columns path and sentence, but clip, duration"):
        next(good_rows(common_voice, tmp_path, "train"))


# --- GigaSpeech ---
def test_gigaspeech_segments_subsets_and_garbage(tmp_path):
    segments = [
        giga_segment("A_S0", 0.5, 1.5, "HELLO <COMMA> YOU <PERIOD>", "XL", "L", "M"),
        giga_segment("A_S1", 1.5, 2.0, "<MUSIC>", "XL"),
        giga_segment("A_S2", 3.0, 2.0, "BACKWARDS", "XL"),
        giga_segment("A_S3", 3, 4, "REALLY <QUESTIONMARK> YES <EXCLAMATIONPOINT>", "XL"),
    ]
    layouts.gigaspeech(
        tmp_path, {"A": segments, "B": [giga_segment("B_S0", 0.0, 1.0, "TO TEST", "TEST")]}
    )
    found = list(gigaspeech(tmp_path))
    path = "audio/podcast/P0001/A.opus"
    assert found[0] == recorded("A_S0", path, "HELLO, YOU.", "", "XL", start=0.5, end=1.5)
    assert [(s.id, s.reason) for s in found if isinstance(s, Skipped)] == [
        ("A_S1", "not_speech"),
        ("A_S2", "bad_row"),
    ]
    assert [(s.text, s.split) for s in good_rows(gigaspeech, tmp_path)][1:] == [
        ("REALLY? YES!", "XL"),
        ("TO TEST", "TEST"),
    ]
    assert [(s.id, s.split) for s in good_rows(gigaspeech, tmp_path, "{M}")] == [("A_S0", "M")]
    assert [s.id for s in good_rows(gigaspeech, tmp_path, ["test", "XS"])] == ["B_S0"]
    with pytest.raises(UserError, match="no split XXL.*there are XL, L, M, S, XS, DEV, TEST"):
        next(good_rows(gigaspeech, tmp_path, "XXL"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "WELL, I NEVER! DID YOU?"),
        ({"lower": True}, "well, i never! did you?"),
        ({"punctuation": False}, "WELL I NEVER DID YOU"),
    ],
)
def test_gigaspeech_punctuation(options, expected):
    assert (
        plain_text("WELL <COMMA> I NEVER <EXCLAMATIONPOINT> DID YOU <QUESTIONMARK>", **options)
        == expected
    )


def test_gigaspeech_list_is_read_as_a_stream(tmp_path):
    """The first recordings come although the end of the list is broken; where it breaks is an error
    in words."""
    many = {
        f"A{k:03d}": [giga_segment(f"A{k:03d}_S0", 0, 1, "WORDS " * 200, "XL")] for k in range(300)
    }
    layouts.gigaspeech(tmp_path, {"A000": many["A000"]})
    whole = json.loads((tmp_path / "GigaSpeech.json").read_text())
    whole["audios"] = [
        {"path": f"{name}.opus", "segments": segments} for name, segments in many.items()
    ]
    text = json.dumps(whole)
    (tmp_path / "GigaSpeech.json").write_text(text[: len(text) - 1000])
    stream = good_rows(gigaspeech, tmp_path)
    assert next(stream).id == "A000_S0"
    with pytest.raises(UserError, match="breaks off or is not JSON"):
        list(stream)


# --- Libri-Light ---
def test_libri_light_utterances_are_cut_where_nobody_speaks(tmp_path):
    layouts.libri_light(tmp_path, {"small/100/a_book/01_x": [[0.5, 2.0], [2.5, 3.0], [5.5, 5.9]]})
    first, second = good_rows(libri_light, tmp_path)
    name = "small/100/a_book/01_x"
    path = f"{name}.flac"
    assert first == recorded(f"{name}/00000", path, "", "100", "small", start=0.5, end=3.0)
    assert (second.id, second.start, second.end) == (f"{name}/00001", 5.5, 5.9)
    assert [(s.start, s.end) for s in good_rows(libri_light, tmp_path, pause_s=9)] == [(0.5, 5.9)]
    assert [
        (s.start, s.end) for s in good_rows(libri_light, tmp_path, pause_s=9, maximum_s=2.5)
    ] == [
        (0.5, 3.0),
        (5.5, 5.9),
    ]
    assert [(s.id, s.start, s.end) for s in good_rows(libri_light, tmp_path, whole_files=True)] == [
        (name, 0.0, None)
    ]


@given(
    gaps=st.lists(st.tuples(st.floats(0, 8), st.floats(0.01, 70)), max_size=20),
    maximum_s=st.floats(1, 30),
    pause_s=st.floats(0, 5),
)
def test_joined_spans_keep_order_and_limit_and_lose_no_speech(gaps, maximum_s, pause_s):
    spans, now = [], 0.0
    for gap, length in gaps:
        spans.append((now + gap, now + gap + length))
        now = spans[-1][1]
    joined = join_spans(spans, maximum_s, pause_s)
    assert all(start < end <= start + maximum_s + 1e-6 for start, end in joined)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(joined))
    inside = sum(max(0.0, min(e, end) - max(s, start)) for s, e in spans for start, end in joined)
    assert inside == pytest.approx(sum(e - s for s, e in spans), abs=1e-6)
    silence = sum(e - s for s, e in joined) - inside
    assert (
        silence
        <= sum(
            max(0.0, b[0] - a[1]) for a, b in itertools.pairwise(spans) if b[0] - a[1] <= pause_s
        )
        + 1e-6
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "bad_row"),
        ("{", "bad_row"),
        ('{"speaker": "1"}', "bad_row"),
        ('{"voice_activity": [[2, 1]]}', "bad_row"),
    ]
    + [
        ('{"voice_activity": [[0, 2], [1, 3]]}', "bad_row"),
        ('{"voice_activity": []}', "not_speech"),
    ],
)
def test_libri_light_files_without_usable_activity_are_told(tmp_path, content, reason):
    layouts.libri_light(tmp_path, {"small/100/a/01": [[0, 1]], "small/100/a/02": [[0, 1]]})
    (tmp_path / "small/100/a/01.json").unlink() if content is None else (
        tmp_path / "small/100/a/01.json"
    ).write_text(content)
    told, good = libri_light(tmp_path)
    assert (told.id, told.reason, good.id) == ("small/100/a/01", reason, "small/100/a/02/00000")
    assert len(list(good_rows(libri_light, tmp_path, whole_files=True))) == 2


# --- all of them ---
@pytest.mark.parametrize("name", READERS)
def test_every_segment_names_a_stretch_that_can_be_read(tmp_path, name):
    build(name, tmp_path)
    found = list(good_rows(READERS[name], tmp_path))
    assert len(found) >= 3 and len({s.id for s in found}) == len(found)
    for segment in found:
        assert (
            "\\" not in segment.path
            and check_segment(tmp_path, segment, decoded=True).seconds > 0.25
        )


@pytest.mark.parametrize("name", READERS)
def test_order_does_not_depend_on_the_file_system(tmp_path, name, monkeypatch):
    build(name, tmp_path)
    before = list(READERS[name](tmp_path))

    genuine = os.scandir
    monkeypatch.setattr(
        os,
        "scandir",
        lambda path: sorted(genuine(path), key=lambda entry: entry.name, reverse=True),
    )
    assert list(READERS[name](tmp_path)) == before


def test_a_reader_has_read_only_what_it_gave(tmp_path, monkeypatch):
    """The lists of chapters that were not asked for yet could be deleted meanwhile."""
    layouts.librispeech(tmp_path, {f"dev-clean/{speaker}/1": ["GO"] for speaker in (10, 20, 30)})
    stream = good_rows(librispeech, tmp_path)
    assert next(stream).voice == "10"
    shutil.rmtree(tmp_path / "dev-clean/30/1")
    assert [s.voice for s in stream] == ["20"]
    layouts.common_voice(tmp_path / "cv", {"train": ["One."] * 3})
    stream = good_rows(common_voice, tmp_path / "cv", "train")
    next(stream)
    (tmp_path / "cv" / "train.tsv").write_text("")  # what isn't in the read buffer yet is gone
    assert len(list(stream)) <= 2


@pytest.mark.parametrize(("asked", "there"), list(itertools.permutations(READERS, 2)))
def test_the_folder_of_another_corpus_is_recognised(tmp_path, asked, there):
    build(there, tmp_path)
    with pytest.raises(UserError, match=f"found .*; expected .*read it as {there}$"):
        next(READERS[asked](tmp_path))


@pytest.mark.parametrize("name", READERS)
def test_the_folder_above_or_below_is_pointed_to(tmp_path, name):
    build(name, tmp_path / "in" / "it")
    (tmp_path / "in" / "it" / "deeper").mkdir()
    above = (
        [] if name == "common_voice" else [tmp_path / "in"]
    )  # Common Voice may be given with all its languages
    for wrong in [*above, tmp_path / "in" / "it" / "deeper"]:
        with pytest.raises(UserError, match=f"{tmp_path}/in/it looks like .*: give that folder$"):
            next(READERS[name](wrong))
    with pytest.raises(UserError, match="no folder at"):
        next(READERS[name](tmp_path / "nowhere"))


# --- the reference material ---
@pytest.mark.parametrize(
    ("name", "folder", "utterances", "skipped"),
    [
        ("librispeech", "LibriSpeech", 52, 0),
        ("common_voice", "CommonVoice/cv-corpus-17.0-2024-03-15", 13, 0),
        ("gigaspeech", "GigaSpeech", 6, 1),
        ("libri_light", "LibriLight", 20, 0),
    ],
)
def test_reference_speech_is_read_whole(reference, name, folder, utterances, skipped):
    root = reference / "speech" / folder
    found = list(READERS[name](root))
    segments = [row for row in found if isinstance(row, Utterance)]
    assert (len(segments), len(found) - len(segments)) == (utterances, skipped)
    for segment in segments:
        checked = check_segment(root, segment)
        assert 0.5 < checked.seconds < 40 and checked.sample_rate in (16_000, 48_000)
        assert (segment.text == "") == (name == "libri_light")


# --- LJSpeech and VCTK, which vocoders are trained on ---
def test_lj_speech_gives_the_text_with_numbers_written_out(tmp_path):
    layouts.lj_speech(
        tmp_path, {"LJ001-0002": "in 4 houses", "LJ001-0001": "Printing, in the only sense"}
    )
    (tmp_path / "wavs" / "LJ001-0003.wav").write_bytes(
        (tmp_path / "wavs" / "LJ001-0001.wav").read_bytes()
    )
    with open(tmp_path / "metadata.csv", "ab") as file:
        file.write(b"LJ001-0004||\r\nLJ001-0005|\xff|\xff\nLJ001-0006|only once\n")
    found = list(lj_speech(tmp_path))
    assert [row for row in found if isinstance(row, Skipped)] == [
        Skipped("metadata.csv", "LJ001-0004", "bad_row", "line 3 has no text"),
        Skipped("metadata.csv", "line 4", "bad_row", "not UTF-8"),
    ]
    segments = [row for row in found if isinstance(row, Utterance)]
    text = "Printing, in the only sense"
    assert segments[0] == recorded("LJ001-0001", "wavs/LJ001-0001.wav", text, "LJ", "train")
    assert [s.text for s in segments[1:]] == ["in four houses", "", "only once"]
    assert check_segment(tmp_path, segments[1]).end == pytest.approx(0.4, abs=1e-3)
    with pytest.raises(UserError, match="no split test"):
        list(lj_speech(tmp_path, "test"))


@pytest.mark.parametrize("old", [False, True])
def test_vctk_gives_one_microphone_and_speakers_in_order(tmp_path, old):
    layouts.vctk(
        tmp_path,
        {"p226/p226_001": "Please call Stella.", "p225/p225_002": "Ask her", "p315/p315_001": None},
        old,
    )
    first, second, third = vctk(tmp_path)
    path = "wav48/p225/p225_002.wav" if old else "wav48_silence_trimmed/p225/p225_002_mic1.flac"
    assert first == recorded("p225_002", path, "Ask her", "p225", "train")
    assert (second.text, second.voice, third.text) == ("Please call Stella.", "p226", "")
    assert check_segment(tmp_path, second).sample_rate == 48_000
    (tmp_path / "txt/p225/p225_002.txt").write_bytes(b"\xff\xfe")
    assert next(vctk(tmp_path)).reason == "bad_row"


# --- Text as editors save it ---
MARK = b"\xef\xbb\xbf"
LISTS = {
    librispeech: (layouts.librispeech, "dev-clean/84/121123/84-121123.trans.txt"),
    lj_speech: (lambda root: layouts.lj_speech(root, {"LJ001-0001": "In 4."}), "metadata.csv"),
    common_voice: (
        lambda root: layouts.common_voice(root, {"train": ["One.", "Two."]}),
        "train.tsv",
    ),
    vctk: (lambda root: layouts.vctk(root, {"p225/p225_002": "Ask her"}), "txt/p225/p225_002.txt"),
    gigaspeech: (
        lambda root: layouts.gigaspeech(root, {"POD1": [giga_segment("S0", 0, 1, "WELL", "XL")]}),
        "GigaSpeech.json",
    ),
    libri_light: (
        lambda root: layouts.libri_light(root, {"small/3/book/a": [[0, 3]]}),
        "small/3/book/a.json",
    ),
}


@pytest.mark.parametrize("reader", LISTS)
def test_a_byte_order_mark_costs_no_row_and_no_text(reader, tmp_path):
    lay_out, name = LISTS[reader]
    lay_out(tmp_path)
    before = list(reader(tmp_path))
    assert before and all(isinstance(row, Utterance) for row in before)
    text = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(MARK + text)
    assert list(reader(tmp_path)) == before


@pytest.mark.parametrize("reader", LISTS)
def test_lists_in_utf_16_are_told(reader, tmp_path):
    lay_out, name = LISTS[reader]
    lay_out(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes().decode().encode("utf-16"))
    if reader in (vctk, libri_light):  # one file of many
        assert [row.reason for row in reader(tmp_path)] == ["bad_row"]
    else:
        with pytest.raises(UserError, match="is not UTF-8 .*as UTF-16 does"):
            list(reader(tmp_path))


def test_a_marked_list_of_lj_speech_has_all_its_text(reference):
    if not (folder := reference / "faults/corpora/lj_bom").is_dir():
        pytest.skip(f"no {folder}")
    rows = list(lj_speech(folder))
    assert len(rows) == 4 and all(isinstance(row, Utterance) and row.text for row in rows)


# --- Lists that are not the usual ones ---
@pytest.mark.parametrize(
    "lists", [["validated", "other", "invalidated"], ["validated"], ["train-all", "other"]]
)
def test_a_delta_segment_names_its_lists(lists, tmp_path):
    layouts.common_voice(tmp_path, {name: [f"In {name}."] for name in lists})
    there = ", ".join(sorted(lists))
    with pytest.raises(UserError, match=f"are {there}, not train, dev, test: ask .*--split [a-z]"):
        list(common_voice(tmp_path))
    for name in lists:
        assert [row.text for row in common_voice(tmp_path, name)] == [f"In {name}."]


def test_a_folder_without_any_usable_list_says_so(tmp_path):
    layouts.common_voice(tmp_path, {"reported": ["x"]})
    with pytest.raises(UserError, match="are none, not train, dev, test"):
        list(common_voice(tmp_path))


def test_one_language_without_the_usual_lists_is_named(tmp_path):
    layouts.common_voice(tmp_path / "en", {"train": ["One."]})
    layouts.common_voice(tmp_path / "tr", {"validated": ["Bir."]}, language="tr")
    with pytest.raises(UserError, match="tr are validated"):
        list(common_voice(tmp_path))
    assert [row.text for row in common_voice(tmp_path, language="en")] == ["One."]
