"""Descriptions are asked of a server that follows a script of mishaps, and of a real one."""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import http.server
import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from speechgpt_lib.errors import UserError
from speechgpt_lib.instructions import chat_server, description_writer
from speechgpt_lib.instructions.chat_server import ChatServer, read_answer
from speechgpt_lib.instructions.description_writer import PROMPTS, load_prompt, write_descriptions
from speechgpt_lib.instructions.descriptions import read_descriptions

KEY = "sk-proj-0123456789abcdefGHIJKL"


def require(*packages: str) -> None:
    if absent := [name for name in packages if importlib.util.find_spec(name) is None]:
        reason = f"{', '.join(absent)} isn't installed: pip install 'speechgpt_lib[descriptions]'"
        if "descriptions" in os.environ.get("SPEECHGPT_REQUIRE", ""):
            pytest.fail(reason)
        pytest.skip(reason)


@dataclass
class Reply:
    """What the scripted server does with one request."""

    status: int = 200
    body: str = ""
    headers: dict = field(default_factory=dict)
    hangs: bool = False  # no answer until the test is over
    breaks: bool = False  # the connection ends in the middle of the body


def chat(content: str | None, end: str = "stop", **changes) -> Reply:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content},
        "finish_reason": end,
    }
    return Reply(
        body=json.dumps(
            {"choices": [choice], "usage": {"prompt_tokens": 200, "completion_tokens": 30}}
            | changes
        )
    )


def error(status: int, message: str = "no", **headers: str) -> Reply:
    return Reply(
        status,
        json.dumps({"error": {"message": message}}),
        {name.replace("_", "-"): value for name, value in headers.items()},
    )


def some(start: int, stop: int) -> list[str]:
    return [f"Write down what speaker {k} says." for k in range(start, stop)]


def listed(lines: list[str]) -> Reply:
    return chat("\n".join(f"{k}. {line}" for k, line in enumerate(lines, 1)))


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, script: list[Reply]):
        super().__init__(("127.0.0.1", 0), Talk)
        self.script, self.asked, self.keys, self.over = list(script), [], [], threading.Event()

    def handle_error(self, *_):
        pass  # the client hung up, which is what some tests are about

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Talk(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.keys.append(self.headers["Authorization"])
        reply = (
            self.server.script.pop(0)
            if self.server.script and self.path == "/v1/chat/completions"
            else error(418, "not in the script")
        )
        if reply.hangs:
            self.server.over.wait()
            return
        body = reply.body.encode()
        self.send_response(reply.status)
        for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if reply.breaks else body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(*script: Reply) -> Iterator[Server]:
    with Server(script) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


class Writer:
    """Calls `write_descriptions` without waiting; notes what it says and would have slept."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch):
        self.patch = patch
        self.out, self.lines, self.pauses = folder / "asr.txt", [], []
        self.progress, self.facts = folder / "asr.txt.progress.json", folder / "asr.txt.json"

    def __call__(self, server: Server | None, task: str = "asr", **changes) -> dict:
        of_server = {"say": self.lines.append, "sleep": self.pauses.append}
        names = {field.name for field in dataclasses.fields(ChatServer)}
        of_server |= {name: changes.pop(name) for name in names & changes.keys()}
        of_server = {"model": "tiny", "base_url": server and server.url} | of_server
        return write_descriptions(
            task, self.out, ChatServer(**of_server), **({"count": 3} | changes)
        )

    def limit(self, requests: int = 20, attempts: int = 4) -> None:
        self.patch.setattr(description_writer, "MOST_REQUESTS", requests)
        self.patch.setattr(chat_server, "ATTEMPTS", attempts)

    def kept(self) -> dict:
        return json.loads(self.progress.read_text())


@pytest.fixture
def write(tmp_path, monkeypatch) -> Writer:
    require("openai")
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    return Writer(tmp_path, monkeypatch)


def squeeze(text: str) -> str:
    return " ".join(text.split())


def test_the_papers_prompts_word_by_word(reference):
    (slides,) = (reference / "seed").glob("*.txt")
    section = slides.read_text(encoding="utf-8").split("A Prompts to Generate Task Description")[1]
    _, asr, tts = re.split(r"#### \*\*(?:ASR|TTS):\*\*", section)[:3]
    assert squeeze(load_prompt("asr")) == squeeze(asr)
    assert squeeze(load_prompt("tts_seed")) == squeeze(tts.split("\n# ")[0])


def test_the_corrected_prompt_and_counts():
    seed, ours = load_prompt("tts_seed").splitlines(), load_prompt("tts").splitlines()
    assert [k for k, (a, b) in enumerate(zip(seed, ours, strict=True)) if a != b] == [0, 4]
    assert "recogniz" in seed[0] and "recogniz" in seed[4] and "recogniz" not in "".join(ours)
    for name in PROMPTS:
        assert load_prompt(name).count("100") == 2
        assert load_prompt(name, 7) == load_prompt(name).replace("100", "7")
    with pytest.raises(UserError, match="unknown prompt 'st': expected one of asr, tts, tts_seed"):
        load_prompt("st")


def test_one_answer_that_has_all(write):
    with serve(listed(some(0, 3))) as server:
        facts = write(server, temperature=0.5, price_in=10, price_out=100)
    (request,) = server.asked
    assert request == {
        "model": "tiny",
        "temperature": 0.5,
        "messages": [{"role": "user", "content": load_prompt("asr", 3)}],
    }
    assert server.keys == ["Bearer none"]
    assert write.out.read_text() == "".join(
        f"{line}\n" for line in some(0, 3)
    ) and read_descriptions(write.out) == tuple(some(0, 3))
    assert write.lines == [
        "request 1: 3 new, 0 refused, 3 of 3 in all; 200 + 30 tokens, cost 0.0050"
    ]
    assert json.loads(write.facts.read_text()) == facts
    wanted = {
        "task": "asr",
        "model": "tiny",
        "prompt": "asr",
        "count": 3,
        "requests": 1,
        "refused": {},
        "cost": 0.005,
        "prompt_tokens": 200,
    }
    assert (
        wanted.items() <= facts.items()
        and not write.progress.exists()
        and len(list(write.out.parent.iterdir())) == 2
    )


def test_it_is_asked_again_for_what_is_missing_and_told_what_it_has(write):
    answers = [
        listed(some(0, 2) + ["Write <it> down now.", "Short."]),
        listed(some(1, 4)),
        listed(some(4, 9)),
    ]
    with serve(*answers) as server:
        facts = write(server, count=5)
    assert read_descriptions(write.out) == tuple(some(0, 5))
    assert [len(request["messages"]) for request in server.asked] == [1, 3, 3]
    first, have, more = server.asked[2]["messages"]
    assert [first["role"], have["role"], more["role"]] == ["user", "assistant", "user"]
    assert have["content"].splitlines() == [f"{k}. {line}" for k, line in enumerate(some(0, 4), 1)]
    assert more["content"].startswith("List 1 more, numbered from 5.")
    assert facts["requests"] == 3 and facts["completion_tokens"] == 90 and facts["cost"] is None
    assert facts["refused"] == {
        "< > [ ] { } or 'This is input:'": 1,
        "fewer than 3 words": 1,
        "repeated": 1,
    }
    assert write.lines[1] == "request 2: 2 new, 1 refused, 4 of 5 in all; 400 + 60 tokens"


def test_the_last_line_of_an_answer_that_was_cut_off_is_left_out(write):
    with serve(
        chat("1. Write this down.\n2. Could you transcri", end="length"), listed(some(0, 2))
    ) as server:
        write(server)
    assert read_descriptions(write.out) == ("Write this down.", *some(0, 2))


@pytest.mark.parametrize(
    "useless",
    [
        Reply(body="{not json"),
        Reply(body="<html>hello</html>", headers={"Content-Type": "text/html"}),
        Reply(body="[1, 2]"),
        Reply(body='{"choices": []}'),
        Reply(body='{"choices": [null], "usage": null}'),
        Reply(body='{"choices": [{"message": null}], "usage": {"prompt_tokens": "many"}}'),
        chat(None),
        chat(""),
        chat("I'm sorry, but I can't do that."),
        chat("\ud800 \ud800 \ud800 \ud800"),
    ],
)
def test_an_answer_of_no_use_is_asked_for_again(write, useless):
    with serve(useless, listed(some(0, 3))) as server:
        facts = write(server)
    assert (
        facts["requests"] == 2
        and not write.pauses
        and read_descriptions(write.out) == tuple(some(0, 3))
    )


def test_three_answers_without_anything_new_are_enough(write):
    with serve(listed(some(0, 2)), chat(""), listed(some(0, 2)), chat("No way.")) as server:
        with pytest.raises(
            UserError,
            match=r"^tiny: 3 answers running brought nothing new; 2 of 4 descr"
            r".*asr.txt.progress.json: the same",
        ):
            write(server, count=4)
        assert write.kept()["accepted"] == some(0, 2) and write.kept()["useless_answers"] == 1
    assert len(server.asked) == 4 and not write.out.exists()


def test_no_more_requests_than_allowed(write):
    with serve(*(listed(some(k, k + 1)) for k in range(5))) as server:
        with pytest.raises(
            UserError, match="2 requests were not enough; 2 of 5 descriptions are kept"
        ):
            write.limit(requests=2)
            write(server, count=5)
        assert len(server.asked) == 2
        write.limit(requests=3)
        facts = write(server, count=5)  # the same command goes on, and may ask as often again
    assert (
        facts["requests"] == 5
        and facts["prompt_tokens"] == 1000
        and read_descriptions(write.out) == tuple(some(0, 5))
    )


@pytest.mark.parametrize(
    ("trouble", "pause", "words"),
    [
        (Reply(hangs=True), 1, "no answer in 0.3 seconds"),
        (error(429, "slow down", Retry_After="7"), 7, "it answers 429: slow down"),
        (error(429, "slow down", Retry_After="3600"), 60, "it answers 429: slow down"),
        (error(429, "slow down", Retry_After="soon"), 1, "it answers 429: slow down"),
        (error(500, "out of memory"), 1, "it answers 500: out of memory"),
        (
            Reply(503, "<html>busy</html>", {"Content-Type": "text/html"}),
            1,
            "it answers 503: <html>busy</html>",
        ),
        (Reply(body=listed(some(0, 3)).body, breaks=True), 1, "no connection"),
    ],
)
def test_what_fails_in_passing_is_tried_again(write, trouble, pause, words):
    with serve(trouble, listed(some(0, 3))) as server:
        facts = write(server, timeout=0.3)
    assert (
        write.pauses == [pause]
        and words in write.lines[0]
        and write.lines[0].endswith(f"asking again in {pause} s")
    )
    assert facts["requests"] == 1 and len(server.asked) == 2


def test_a_date_to_wait_for(write):
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    with serve(error(429, Retry_After=later), listed(some(0, 3))) as server:
        write(server)
    assert 20 < write.pauses[0] <= 30


def test_pauses_grow_and_end(write):
    words = r"^http://127.0.0.1:\d+/v1: it answers 500: out of memory, 4 times running$"
    with serve(*[error(500, "out of memory")] * 4) as server, pytest.raises(UserError, match=words):
        write(server)
    assert write.pauses == [1, 2, 4] and len(server.asked) == 4
    assert not list(write.out.parent.iterdir()), (
        "nothing was paid for, nothing is kept, no model is bound"
    )


def test_a_server_that_dies_in_the_middle_costs_nothing(write):
    with serve(listed(some(0, 2))) as server:

        def say(line):
            write.lines.append(line)
            if line.startswith("request 1"):
                server.shutdown()
                server.server_close()

        with pytest.raises(
            UserError,
            match=r"no connection \(.*refused\), 2 times running; "
            r"2 of 5 descriptions are kept in .*progress.json",
        ):
            write.limit(attempts=2)
            write(server, count=5, say=say)
    state = write.kept()
    assert state["accepted"] == some(0, 2) and state["requests"] == 1 and not write.out.exists()
    with serve(listed(some(2, 5))) as server:
        facts = write(server, count=5)
    assert len(server.asked) == 1 and "List 3 more" in server.asked[0]["messages"][2]["content"]
    assert (
        facts["requests"] == 2
        and facts["prompt_tokens"] == 400
        and read_descriptions(write.out) == tuple(some(0, 5))
    )
    assert (
        f"{write.progress} has 2 of 5: going on there" in write.lines
        and not write.progress.exists()
    )


def test_a_stop_by_hand_keeps_what_is_there(write):
    def stop(_):
        raise KeyboardInterrupt

    with serve(listed(some(0, 2)), listed(some(2, 3))) as server:
        with pytest.raises(KeyboardInterrupt):
            write(server, say=stop)
        write(server)
    assert len(server.asked) == 2 and read_descriptions(write.out) == tuple(some(0, 3))


def test_a_stop_before_the_first_answer_binds_to_no_model(write):
    def stop(_):
        raise KeyboardInterrupt

    with serve(error(500), listed(some(0, 3))) as server:
        with pytest.raises(KeyboardInterrupt):
            write(server, model="huge", say=stop)
        assert write.kept()["model"] == "huge"
        assert write(server)["model"] == "tiny"


def test_progress_and_results_of_another_model_are_not_mixed(write):
    with serve(listed(some(0, 2)), listed(some(2, 3))) as server:
        with pytest.raises(UserError, match="1 requests were not enough"):
            write.limit(requests=1)
            write(server)
        before = write.progress.read_bytes()
        with pytest.raises(
            UserError,
            match="progress.json was begun with model tiny, now huge: "
            "delete it, or choose another --out",
        ):
            write(server, model="huge")
        with pytest.raises(
            UserError,
            match="was begun with task asr, now tts; prompt asr, now tts; prompt_sha256 "
            ".*delete it",
        ):
            write(server, task="tts")
        assert write.progress.read_bytes() == before
        write(server)
        with pytest.raises(
            UserError,
            match="asr.txt was made with model tiny, asked for huge: "
            "choose another --out, or delete it",
        ):
            write(server, model="huge")
        with pytest.raises(UserError, match="asr.txt was made with count 3, asked for 4"):
            write(server, count=4)
        assert len(server.asked) == 2


def test_what_is_there_is_not_asked_for_again_and_nothing_of_others_is_overwritten(write):
    with serve(listed(some(0, 3))) as server:
        facts = write(server)
        write.progress.write_text("{}")  # stopped between the last two steps
        assert (
            write(server) == facts
            and write.lines[-1] == f"{write.out} is there already: 3 descriptions by tiny"
        )
        assert len(server.asked) == 1 and not write.progress.exists()
    write.out.write_text("My own.\n")
    with pytest.raises(UserError, match="asr.txt was changed since it was written"):
        write(server)
    write.facts.unlink()
    with pytest.raises(
        UserError, match="asr.txt is there, but not .*asr.txt.json that would say what it is"
    ):
        write(server)
    assert write.out.read_text() == "My own.\n"


@pytest.mark.parametrize("content", ["[]", '{"requests": 1}', "{"])
def test_a_damaged_progress_file_is_not_guessed_at(write, content):
    write.progress.write_text(content)
    with serve() as server, pytest.raises(UserError, match=r"progress.json is not .*delete it"):
        write(server)
    assert write.progress.read_text() == content and not server.asked


def test_a_place_that_cannot_be_written_is_noticed_before_anything_is_paid(write, tmp_path):
    (tmp_path / "file").write_text("")
    with serve(listed(some(0, 3))) as server, pytest.raises((UserError, OSError)):
        write_descriptions(
            "asr", tmp_path / "file/asr.txt", ChatServer("tiny", server.url), count=3
        )
    assert not server.asked


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (
            error(401, f"Incorrect API key provided: {KEY}"),
            "refuses the key (401): is OPENAI_API_KEY the right one",
        ),
        (error(403, f"{KEY} may not"), "(403: [key] may not): may it use 'tiny'?"),
        (
            error(404, "no such model"),
            "has no model 'tiny', or is not a base URL (no such model): "
            "check --model and --base-url",
        ),
        (Reply(404, '{"detail": "Not Found"}'), "or is not a base URL (Not Found)"),
        (error(400, f"temperature must be 1, {KEY}"), "answers 400: temperature must be 1, [key]"),
        (Reply(422, "", {"Content-Type": "text/plain"}), "answers 422: Unprocessable"),
    ],
)
def test_what_asking_again_would_not_help_is_said_at_once(write, reply, words):
    with serve(reply) as server:
        with pytest.raises(UserError) as caught:
            write(server, api_key=KEY)
        assert (
            words in str(caught.value)
            and KEY not in str(caught.value)
            and "\n" not in str(caught.value)
        )
    assert len(server.asked) == 1 and not write.pauses and not list(write.out.parent.iterdir())


@pytest.mark.parametrize(
    "key", [KEY, "secret"], ids=["long", "short"]
)  # the id stands in the names of folders
def test_the_key_is_nowhere(write, monkeypatch, caplog, capfd, key):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", f" {key}\n")
    echo = f"your key {key}, Bearer {key}, {key[:20]}..."
    useless = Reply(503, echo, {"Content-Type": "text/plain"})
    echoes = (
        [f"Write down {KEY} now, please.", f"Write down {KEY[:12]} now, please."]
        if key == KEY
        else []
    )  # a word is no echo
    answer = listed(some(0, 2) + echoes)
    told = []
    with serve(
        error(429, echo), useless, error(500, "x" * 290 + key), answer, error(400, echo)
    ) as server:
        write.out = write.out.parent / "deep/asr.txt"
        with pytest.raises(UserError) as caught:
            write(server, say=lambda line: (print(line), told.append(line)))
    assert server.keys == [f"Bearer {key}"] * 5, "only the server is told it"
    assert (
        len(told) == 4
        and "your key [key], Bearer [key], [key]..." in told[0]
        and "400: your key [key]" in str(caught.value)
    )
    files = {path.name: path.read_text() for path in write.out.parent.rglob("*") if path.is_file()}
    assert list(files) == ["asr.txt.progress.json"]
    assert [line for line, _ in json.loads(*files.values())["refused"]] == [
        "Write down [key] now, please."
    ] * len(echoes)
    captured = capfd.readouterr()
    everything = [
        *told,
        str(caught.value),
        repr(caught.value.args),
        *files.values(),
        caplog.text,
        captured.out,
        captured.err,
    ]
    assert "request 1" in captured.out and "asking again" in captured.out
    assert not [text for text in everything if key in text or key[:12] in text]


def test_the_environment_says_where_and_who(write, monkeypatch):
    with serve(listed(some(0, 3))) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        write(None)
    assert server.keys == [f"Bearer {KEY}"] and write.out.is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no server to ask: set OPENAI_API_KEY for OpenAI's own, or --base-url"),
        (
            {"base_url": "localhost:8000"},
            "the base URL is 'localhost:8000': expected one such as http://localhost:8000/v1",
        ),
        ({"api_key": "schlüssel-123456"}, "the key has characters in it that no key has"),
        ({"api_key": "sk-one sk-two"}, "the key has characters in it that no key has"),
        ({"task": "st"}, "unknown task 'st': expected one of asr, tts"),
        ({"prompt": "st"}, "unknown prompt 'st'"),
        ({"prompt": "tts_seed"}, "prompt 'tts_seed' is for tts, not for asr"),
        ({"count": 0}, "count is 0: expected 1 or more"),
        ({"price_in": 1.0}, "one price is given"),
    ],
)
def test_settings_that_cannot_be(write, options, words):
    with pytest.raises(UserError) as caught:
        write(None, **options)
    assert (
        words in str(caught.value)
        and "sk-" not in str(caught.value)
        and not list(write.out.parent.iterdir())
    )


def test_without_the_package_its_name_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(
        UserError,
        match=r"package openai, which isn't here: pip install 'speechgpt_lib\[descriptions\]'",
    ):
        write_descriptions("asr", tmp_path / "a.txt", ChatServer("tiny", "http://127.0.0.1:9/v1"))


def test_an_answer_is_read_with_what_it_cost_even_if_it_says_nothing():
    assert (
        read_answer(chat(None).body).prompt_tokens == 200
        and read_answer(chat(None).body).text == ""
    )
    assert read_answer(chat("x", end="length").body).cut and not read_answer(chat("x").body).cut


def save_noise(folder: Path) -> None:
    """A language model with random weights and no letters: it can write no description."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    characters = [
        "<s>",
        "</s>",
        *"0123456789.,?!-",
        "Ġ",
        "Ċ",
    ]  # the last two: a space and a line's end
    tokenizer = Tokenizer(models.BPE(vocab={c: k for k, c in enumerate(characters)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    text = "{{ m.content if m.content is string else m.content[0].text }}"
    template = "{% for m in messages %}{{ m.role }}: " + text + "\n{% endfor %}"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(characters),
            max_position_embeddings=4096,
            bos_token_id=0,
            eos_token_id=1,
            **sizes,
        )
    )
    model.generation_config = GenerationConfig(do_sample=True, bos_token_id=0, eos_token_id=1)
    model.save_pretrained(folder)


@contextlib.contextmanager
def transformers_serve(model: Path) -> Iterator[tuple[str, list[str]]]:
    """`transformers serve` with `model`, on a free port: its base URL and what it prints."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", "0", "--device", "cpu", "--default-seed", "0"]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def stop(how: int = signal.SIGTERM) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)

    too_late = threading.Timer(
        300, stop, [signal.SIGKILL]
    )  # then its output ends, and the test fails with it
    too_late.start()
    printed = []
    reader = threading.Thread(target=lambda: printed.extend(process.stdout))
    try:
        address = None
        for line in process.stdout:
            printed.append(line)
            if address := re.search(r"running on (http://\S+)", line):
                break
        assert address, "transformers serve did not start:\n" + "".join(printed)
        reader.start()
        yield f"{address[1]}/v1", printed
    finally:
        stop()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            stop(signal.SIGKILL)
            process.wait()
        too_late.cancel()
        if reader.ident:
            reader.join()
        process.stdout.close()


@pytest.mark.slow
def test_a_real_server_with_a_model_that_writes_noise(write, tmp_path):
    require("openai", "fastapi", "uvicorn")
    save_noise(tmp_path / "model")
    words = "3 answers running brought nothing new; 0 of 5 descriptions are kept in .*progress.json"
    with (
        transformers_serve(tmp_path / "model") as (url, printed),
        pytest.raises(UserError, match=words),
    ):
        write(None, base_url=url, model=str(tmp_path / "model"), count=5, timeout=120)
    state = write.kept()
    assert (
        state["requests"] == 3
        and state["accepted"] == []
        and not write.out.exists()
        and not write.pauses
    )
    assert state["prompt_tokens"] > 3 * 50 and state["completion_tokens"] > 0
    assert len(write.lines) == 3 and write.lines[2].startswith("request 3: ")
    assert "".join(printed).count('"POST /v1/chat/completions HTTP/1.1" 200 OK') == 3, "".join(
        printed
    )
