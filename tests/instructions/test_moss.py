"""MOSS' dialogues are read in every form they come in; those that can be spoken are kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions.chain import Dialogue
from speechgpt_lib.instructions.interchange import LONGEST_LINE
from speechgpt_lib.instructions.moss import DEPTH, Report, count_words, read_moss, select

RAINBOW = [
    ("How is a rainbow formed?", "By sunlight and rain."),
    ("And a cloud?", "By rising air."),
]


def plain_text(pairs, end: str = "<eoa>") -> str:
    return " ".join(f"[Human]: {question}<eoh> [MOSS]: {answer}{end}" for question, answer in pairs)


def moss_002(pairs, **more) -> dict:
    return {
        "prefix": "MOSS is an AI assistant.",
        "num_turns": len(pairs),
        "plain_text": plain_text(pairs),
    } | more


def moss_003(pairs, **more) -> dict:
    turns = {
        f"turn_{number}": {
            "Human": f"<|Human|>: {question}<eoh>\n",
            "Inner Thoughts": "None",
            "MOSS": f"<|MOSS|>: {answer}<eom>\n",
        }
        for number, (question, answer) in enumerate(pairs, 1)
    }
    return {
        "meta_instruction": "You are MOSS.",
        "chat": dict(sorted(turns.items())),
    } | more  # by name: turn_10 before turn_2


def on_lines(pairs) -> str:
    return "\n\n".join(
        f"[Human]: {question}<eoh>\n\n[MOSS]: {answer}<ea>" for question, answer in pairs
    )


FORMS = {
    "list": lambda dialogues, record: json.dumps([record(pairs) for pairs in dialogues]),
    "list over lines": lambda dialogues, record: json.dumps(
        [record(pairs) for pairs in dialogues], indent=2, ensure_ascii=False
    ),
    "lines": lambda dialogues, record: "".join(
        json.dumps(record(pairs), ensure_ascii=False) + "\n" for pairs in dialogues
    ),
    "objects": lambda dialogues, record: "\n".join(
        json.dumps(record(pairs), indent=1) for pairs in dialogues
    ),
    "text": lambda dialogues, record: "\n\n".join(map(on_lines, dialogues)),
    "text on a line": lambda dialogues, record: "\n".join(map(plain_text, dialogues)),
}


def read(
    path: Path, content: str | bytes | None = None, report: Report | None = None
) -> list[Dialogue]:
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_moss(path, report or Report()))


def said(samples) -> list[tuple[str, str]]:
    return [(sample.instruction, sample.response) for sample in samples]


def faults(report: Report) -> dict[str, list[str]]:
    """The places of each reason, without folder and detail."""
    return {
        reason: [place.rpartition("/")[2].split(": ")[0] for place in places]
        for reason, places in report.places.items()
    }


# every form
def test_the_slides_own_example(reference: Path, tmp_path: Path) -> None:
    slides = next((reference / "seed").glob("*.txt")).read_text(encoding="utf-8")
    example = slides.partition("Moss dataset 예시")[2].partition("\n# ")[0]
    report = Report()
    first, second = read(tmp_path / "slide.txt", example, report)
    assert first.instruction == "How is a rainbow formed?"
    assert first.response.startswith(
        "A rainbow is created when sunlight"
    ) and first.response.endswith("we see a rainbow.")
    assert second.response.endswith("light is bounced off a surface.")
    assert second.source == f"{tmp_path / 'slide.txt'}:7" and not report.dropped
    assert list(select([first, second], report=report)) == []  # 48 and 50 words
    assert report.dropped == {"response too long": 2}


@pytest.mark.parametrize("record", [moss_002, moss_003])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
def test_forms(form: str, record, ending: str, mark: bytes, tmp_path: Path) -> None:
    content = FORMS[form]([RAINBOW, RAINBOW[:1]], record).replace("\n", ending).encode()
    report = Report()
    samples = read(tmp_path / "moss.json", mark + content, report)
    assert said(samples) == [*RAINBOW, RAINBOW[0]]
    assert len({sample.id for sample in samples}) == 3 and not report.dropped
    assert (report.records, report.pairs) == (1 if "text" in form else 2, 3)


@pytest.mark.parametrize("end", ["<eoa>", "<ea>", "<eom>"])
def test_end_markers_and_white_space(end: str, tmp_path: Path) -> None:
    text = f"\n [Human] : How\n\tdo  I\u3000ask?\r\n<eoh>\n\n[MOSS]: Like\nthis. {end}\n"
    for content in (text, json.dumps({"plain_text": text})):
        assert said(read(tmp_path / "moss", content)) == [("How do I ask?", "Like this.")]


def test_ids_and_sources(tmp_path: Path) -> None:
    path = tmp_path / "moss.json"
    ids = [7, "en-4", 7, None, "7", 3, True, "#2", "en-4", 10**9, -5.5, "a b", 10**9]
    records = [moss_002(RAINBOW[:1], id=identity) for identity in ids] + [
        moss_003(RAINBOW, conversation_id="12")
    ]
    samples = read(path, json.dumps(records))
    expected = (
        "7-1 en-4-1 #3-1 #4-1 #5-1 3-1 #7-1 #8-1 #9-1 1000000000-1 #11-1 #12-1 #13-1 12-1 12-2"
    )
    assert [sample.id for sample in samples] == expected.split()
    assert [sample.source for sample in samples][-2:] == [f"{path}:record 14"] * 2


def test_turns_of_a_chat_come_in_order_of_their_numbers(tmp_path: Path) -> None:
    pairs = [(f"question {number}", f"answer {number}") for number in range(1, 13)]
    samples = read(tmp_path / "moss.json", json.dumps(moss_003(pairs, conversation_id=5)))
    assert said(samples) == pairs
    assert [sample.id for sample in samples] == [f"5-{number}" for number in range(1, 13)]


def test_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "zh").mkdir()
    (tmp_path / "zh" / "honesty.jsonl").write_text(
        json.dumps(moss_002([("你好", "你好！")], id=1)), encoding="utf-8"
    )
    (tmp_path / "b.json").write_text(json.dumps([moss_002(RAINBOW[1:], id=1)]))
    (tmp_path / "a.txt").write_text("Two turns.\n\n" + on_lines(RAINBOW))
    (tmp_path / "README.md").write_text("MOSS")
    report = Report()
    samples = read(tmp_path, report=report)
    assert [sample.id for sample in samples] == [
        "a.txt/#1-2",
        "a.txt/#1-3",
        "b.json/1-1",
        "zh/honesty.jsonl/1-1",
    ]
    assert faults(report) == {"text outside a turn": ["a.txt:1"]} and report.records == 3


TEXTS = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), min_size=1)
    .map(lambda text: " ".join(text.split()))
    .filter(lambda text: text and not re.search(r"<e|\]\s*:|>\s*:", text))
)


@given(
    st.lists(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), min_size=1, max_size=3),
    st.sampled_from([moss_002, moss_003]),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_dialogues_read_back_equal_in_every_form(tmp_path: Path, dialogues, record) -> None:
    for write in FORMS.values():
        report = Report()
        samples = read(tmp_path / "moss", write(dialogues, record), report)
        assert said(samples) == [pair for pairs in dialogues for pair in pairs]
        assert len({sample.id for sample in samples}) == len(samples) and not report.dropped


# bad input
BAD_TURNS = {
    "[Human]: a<eoh>": "no answer",
    "[Human]: a": "no answer",
    "[Human]: a<eoh> [MOSS]: b": "missing end marker",
    "[Human]: a [MOSS]: b<eoa>": "missing end marker",
    "[MOSS]: b<eoa>": "turns out of order",
    "[Human]: a<eoh> [MOSS]: b<eoa> [MOSS]: c<eoa>": "turns out of order",
    "[Human]: a<eoh> [MOSS]: b<eoa> c<eoa>": "turns out of order",
    "[Human]: a<eoa> [MOSS]: b<eoh>": "turns out of order",
    "[Human]: a<eoh> x [MOSS]: b<eoa>": "text outside a turn",
    "[Human]: a<eoh> [MOSS]: b<eoa> x": "text outside a turn",
    "[Human]: <eoh> [MOSS]: b<eoa>": "empty turn",
    "[Human]: a<eoh> [MOSS]: \n<eoa>": "empty turn",
    "[Human]: a<eoh> [MOSS]: \ufffd<eoa>": "broken UTF-8",
}


@pytest.mark.parametrize("bad", BAD_TURNS)
def test_a_bad_turn_costs_only_itself(bad: str, tmp_path: Path) -> None:
    turn = {
        "text": f"\n{bad}\n{on_lines(RAINBOW)}",
        "lines": "\n" + json.dumps({"plain_text": f"{bad} {plain_text(RAINBOW)}"}),
    }
    for content in turn.values():
        report = Report()
        assert said(read(tmp_path / "moss", content, report)) == RAINBOW
        assert faults(report) == {BAD_TURNS[bad]: ["moss:2"]} and report.pairs == 3


def test_bad_turns_of_a_chat(tmp_path: Path) -> None:
    good = moss_003(RAINBOW)["chat"]
    one = good["turn_1"]
    chat = good | {
        "turn_3": None,
        "turn_4": {"Human": one["Human"]},
        "turn_5": {"Human": 1, "MOSS": 2},
        "turn_x": one,
        "more": one,
    }
    chat |= {
        "turn_6": one | {"MOSS": "<|MOSS|>: no end\n"},
        "turn_7": one | {"Human": "no speaker<eoh>"},
        "turn_8": one,
    }
    report = Report()
    samples = read(tmp_path / "m.json", json.dumps([{"chat": chat}]), report)
    assert [sample.id for sample in samples] == ["#1-1", "#1-2", "#1-8"]
    place = "m.json:record 1"
    expected = {
        "no text in a turn": [place] * 3,
        "missing end marker": [place],
        "turns out of order": [place],
    }
    assert faults(report) == expected


BAD_RECORDS = [
    ("17", "not an object"),
    ("null", "not an object"),
    ("[[]]", "not an object"),
    ("{}", "no text"),
    ('{"plain_text": ""}', "no text"),
    ('{"plain_text": ["a"], "chat": []}', "no text"),
    ('{"chat": {}}', "no text"),
    ('{"chat": {"turn_0": 1, "turn_": 2}}', "no text"),
]


@pytest.mark.parametrize("form", ["lines", "list"])
def test_bad_records_cost_only_themselves(form: str, tmp_path: Path) -> None:
    good = json.dumps(moss_002(RAINBOW))
    records = [good] + [part for record, _ in BAD_RECORDS for part in (record, good)]
    report = Report()
    samples = read(
        tmp_path / "m", "\n".join(records) if form == "lines" else f"[{','.join(records)}]", report
    )
    assert len(samples) == 2 * (len(BAD_RECORDS) + 1)
    places: dict[str, list[str]] = {}
    for number, (_, reason) in enumerate(BAD_RECORDS, 1):
        places.setdefault(reason, []).append(
            f"m:{2 * number}" if form == "lines" else f"m:record {2 * number}"
        )
    assert faults(report) == places


@pytest.mark.parametrize(
    "bad",
    [
        '{"plain_text": "a',
        "{'a': 1}",
        '{"a": NaN,}',
        "text",
        '{"a":' * 100_000,
        '{"a": ' + "9" * 5000 + "}",
    ],
)
def test_a_line_that_is_not_json_costs_only_itself(bad: str, tmp_path: Path) -> None:
    good = json.dumps(moss_002(RAINBOW))
    report = Report()
    assert len(read(tmp_path / "m", f"{good}\n{bad}\n\n{good}", report)) == 4
    assert faults(report) == {"broken JSON": ["m:2"]} and report.records == 3


@pytest.mark.parametrize(
    "bad",
    [
        "",
        ", ",
        ', {"plain_text": "[Human',
        ", text]",
        "] more",
        ", " + "[" * 1_000_000,
        ', {"a":' + "9" * 5000 + "}]",
    ],
)
def test_what_stands_before_a_fault_in_a_list_is_kept(bad: str, tmp_path: Path) -> None:
    report = Report()
    good = json.dumps(moss_002(RAINBOW))
    assert len(read(tmp_path / "m", f"[{good}, {good}{bad}", report)) == 4
    assert faults(report) == {"broken JSON": ["m:record 3"]} and report.records == 3


def test_nesting_has_a_limit(tmp_path: Path) -> None:
    deep = [
        moss_002(RAINBOW, extra=json.loads("[" * depth + "]" * depth))
        for depth in (DEPTH - 2, DEPTH - 1)
    ]
    report = Report()
    assert len(read(tmp_path / "m", json.dumps(deep), report)) == 2
    assert report.places == {
        "broken JSON": [f"{tmp_path / 'm'}:record 2: brackets nested more than {DEPTH} deep"]
    }


@pytest.mark.parametrize("form", FORMS)
def test_broken_bytes_cost_one_turn(form: str, tmp_path: Path) -> None:
    content = (
        FORMS[form]([RAINBOW, RAINBOW], moss_002)
        .encode()
        .replace(b"sunlight", b"sun\xff\xfelight", 1)
    )
    report = Report()
    assert said(read(tmp_path / "m", content, report)) == [RAINBOW[1], *RAINBOW]
    place = "m:1" if form in ("lines", "text", "text on a line") else "m:record 1"
    assert faults(report) == {"broken UTF-8": [place]}


def test_half_a_surrogate_pair(tmp_path: Path) -> None:
    report = Report()
    content = json.dumps(moss_002(RAINBOW)).replace("sunlight", "\\ud83d light") + "\n"
    assert said(read(tmp_path / "m", content * 2, report)) == [RAINBOW[1]] * 2
    assert faults(report) == {"broken UTF-8": ["m:1", "m:2"]}


def test_absurdly_long_lines_and_records(tmp_path: Path) -> None:
    good, long = json.dumps(moss_002(RAINBOW)), "x" * (LONGEST_LINE + (1 << 17))
    contents = {
        "lines": (f"{good}\n{long}\n{good}", 4, {"too long": ["m:2"]}),
        "list": (f'[{good}, "{long}", {good}]', 2, {"too long": ["m:record 2"]}),
        "text": (
            f"{on_lines(RAINBOW)}\n{long}\n{on_lines(RAINBOW)}",
            4,
            {"piece too long": ["m:8"]},
        ),
        "many lines": (
            "[Human]: a\n" + ("b " * 5000 + "\n") * (LONGEST_LINE // 9000) + on_lines(RAINBOW),
            2,
            None,
        ),
    }
    for content, samples, expected in contents.values():
        report = Report()
        assert len(read(tmp_path / "m", content, report)) == samples
        assert expected is None or faults(report) == expected
    assert report.dropped["piece too long"] == 1


@pytest.mark.parametrize(
    "content",
    [
        "",
        " \n",
        "A story.\nThe end.",
        "<html>",
        "{\\rtf1 a}",
        "[see below]",
        b"\x89PNG\0\0",
        "[".encode("utf-16"),
    ],
)
def test_a_file_in_none_of_the_forms(content: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"moss\.json is no MOSS data: it .*, "
        r"expected a JSON list, JSON lines, or text with \[Human\]",
    ):
        read(tmp_path / "moss.json", content)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no MOSS data at .*absent.*download"):
        read(tmp_path / "absent")
    (tmp_path / "README.md").write_text("[Human]: a<eoh>")
    with pytest.raises(UserError, match=r"has no files named \*\.json"):
        read(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["list", "lines"])
def test_memory_stays_flat(form: str, tmp_path: Path) -> None:
    path, blocks = tmp_path / "moss.json", 100
    block = [
        json.dumps(moss_002([(f"question {number}", "a word " * 20)], id=number))
        for number in range(1000)
    ]
    with open(path, "w") as file:
        for number in range(blocks):
            file.write(
                ("[" if form == "list" and not number else "")
                + ("," if form == "list" and number else "")
            )
            file.write((",\n" if form == "list" else "\n").join(block) + "\n")
        file.write("]" if form == "list" else "")
    report, process, measured = Report(), psutil.Process(), []
    for number, _ in enumerate(select(read_moss(path, report), maximum_words=50, report=report)):
        assert number < 1000, "only the first block is new"
        if number == 500:
            measured.append(process.memory_info().rss)
    measured.append(process.memory_info().rss)
    assert report.records == blocks * 1000 and report.dropped == {"duplicate": (blocks - 1) * 1000}
    assert path.stat().st_size > 20e6 and measured[1] - measured[0] < 8e6


# words and choice
@pytest.mark.parametrize(
    "text, words",
    [
        ("", 0),
        ("How is a rainbow formed?", 5),
        ("it's well-known – yes", 4),
        ("你好，世界。", 4),
        ("用Python写，好", 4),
        ("Tokyo (東京) is big", 5),
        ("ありがとう", 5),
        ("안녕 세상", 4),
        ("コーヒー・カップ", 7),
        ("naïve Füße", 2),
    ],
)
def test_words(text: str, words: int) -> None:
    assert count_words(text) == words


@given(st.text(st.characters(max_codepoint=0x10FF)))
def test_without_eastern_characters_words_are_what_stands_between_blanks(text: str) -> None:
    assert count_words(text) == len(text.split())


def chosen(
    *pairs: tuple[str, str], **settings
) -> tuple[list[tuple[str, str]], dict[str, int], Report]:
    report = Report()
    dialogues = [
        Dialogue(str(number), *pair, source=f"m:{number}") for number, pair in enumerate(pairs, 1)
    ]
    return said(select(dialogues, report=report, **settings)), dict(report.dropped), report


def test_length_counts_the_response_only() -> None:
    fits, long = ("a " * 100, "word " * 35), ("a", "word " * 36)
    assert chosen(fits, long)[:2] == ([fits], {"response too long": 1})
    assert chosen(fits, long, maximum_words=40)[0] == [fits, long]
    with pytest.raises(UserError, match="choose 1 or more"):
        chosen(fits, maximum_words=0)


@pytest.mark.parametrize(
    "marker",
    [
        "[Human]",
        "[SpeechGPT]",
        "<eoh>",
        "<eos>",
        "<eoa>",
        "<ea>",
        "[tq]",
        "[ta]",
        "[ua]",
        "<sosp>",
        "<eosp>",
        "<12>",
    ],
)
def test_our_markers_are_refused(marker: str) -> None:
    assert chosen((f"what is {marker}?", "a"), ("a", f"{marker} b"))[:2] == (
        [],
        {"marker in text": 2},
    )


def test_speakable() -> None:
    fine = [
        ("what is <b> or [1]?", "see https://example.org/a?b=1"),
        ("2 + 2?", "4"),
        ("你好", "好"),
    ]
    bad = [("?", "a"), ("a", "…"), ("code?", "``` x = 1 ```"), ("why ```x```?", "so")]
    bad.append(("a", "😀"))
    kept, dropped, report = chosen(*fine, *bad)
    assert kept == fine and dropped == {"not speakable": 5}
    assert report.places["not speakable"][1:3] == ["m:5: no letter or digit", "m:6: code"]


def test_duplicates_but_for_case() -> None:
    kept, dropped, report = chosen(
        ("Why?", "So."), ("why?", "SO."), ("Why?", "Because."), ("Why? So.", "So.")
    )
    assert (
        len(kept) == 3 and dropped == {"duplicate": 1} and report.places == {"duplicate": ["m:2"]}
    )


def test_classroom_filter_is_asked_only_if_given() -> None:
    pairs = (
        ("How do I win at poker?", "Practise."),
        ("Tell me a tale.", "He was murdered."),
        ("Hello", "Hi"),
    )
    assert len(chosen(*pairs)[0]) == 3
    kept, dropped, report = chosen(*pairs, classroom=True)
    assert kept == [("Hello", "Hi")] and dropped == {"unsafe for classrooms": 2}
    assert report.places["unsafe for classrooms"][0] == "m:1: drugs, alcohol and gambling: poker"


def test_funnel_and_places(tmp_path: Path) -> None:
    pairs = [*RAINBOW, ("long", "word " * 36), ("a <12>", "b"), RAINBOW[0]]
    lines = [json.dumps(moss_002(pairs)), "{", json.dumps({"plain_text": "[Human]: a<eoh>"})] + [
        "3"
    ] * 30
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    report = Report()
    assert said(select(read_moss(tmp_path / "m.jsonl", report), report=report)) == RAINBOW
    assert [tuple(row.values()) for row in report.funnel()] == [
        ("records", 0, 33),
        ("broken JSON", 1, 32),
        ("not an object", 30, 2),
        ("turn pairs", 0, 6),
        ("no answer", 1, 5),
        ("well-formed pairs", 0, 5),
        ("response too long", 1, 4),
        ("marker in text", 1, 3),
        ("duplicate", 1, 2),
        ("kept", 0, 2),
    ]
    assert report.funnel()[0].keys() == {"step", "dropped", "left"}
    assert len(report.places["not an object"]) == 20


def test_lists_of_instructions(tmp_path: Path) -> None:
    """Dolly's and Alpaca's records are one turn each; those about a text beside are left out."""
    records = [
        {"instruction": "Who was first?", "context": "", "response": "Ada.", "category": "open_qa"},
        {"instruction": "Sum it up.", "context": "A long text.", "response": "Short."},
        {"instruction": "Name a fruit.", "input": "", "output": "An apple."},
        {"instruction": "Say [Human]: hello", "response": "No."},
        {"instruction": "Nothing?"},
    ]
    path, report = tmp_path / "dolly.jsonl", Report()
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = list(read_moss(path, report))
    assert [(d.id, d.instruction, d.response) for d in found] == [
        ("#1-1", "Who was first?", "Ada."),
        ("#3-1", "Name a fruit.", "An apple."),
    ]
    assert report.dropped["about another text"] == 1
    assert report.dropped["no text in a turn"] == 1 and sum(report.dropped.values()) == 3
