"""Archives are fetched from a server of this machine: whole, in pieces, broken off, wrong, hostile;
never half unpacked."""

from __future__ import annotations

import hashlib
import http.server
import io
import re
import socket
import tarfile
from pathlib import Path

import pytest

from speechgpt_lib.corpora import download as room
from speechgpt_lib.corpora.catalogue import ARCHIVES, Archive
from speechgpt_lib.corpora.download import download, find_archive, unpack
from speechgpt_lib.errors import UserError
from tests.builders import serving


def tar_of(members: dict[str, bytes | tarfile.TarInfo], compressed: bool = True) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compressed else "w") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


# Not compressible: cut in half, both halves are long.
SOUND = b"".join(hashlib.sha256(str(k).encode()).digest() for k in range(20_000))
GOOD = tar_of(
    {"LibriSpeech/README.TXT": b"read me", "LibriSpeech/dev-clean/84/1/84-1-0000.flac": SOUND}
)


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; `breaks` holds for each coming connection after how many bytes it breaks
    off (None: it doesn't)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.breaks, self.asked, self.ranges, self.status = GOOD, [], [], True, 200

    def handle_error(self, *_):
        pass  # the client hung up, which is what some tests are about

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/dev-clean.tar.gz"

    def archive(self, md5: str | None = None) -> Archive:
        checksum = f"md5:{md5 or hashlib.md5(self.content).hexdigest()}"
        return Archive(
            "dev-clean", "librispeech", self.url, checksum, "LibriSpeech/dev-clean", 5.4, "tiny"
        )


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content, asked = self.server.content, self.headers.get("Range")
        self.server.asked.append(asked)
        if self.server.status != 200:
            return self.send_error(self.server.status)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.ranges else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        stop = self.server.breaks.pop(0) if self.server.breaks else None
        self.wfile.write(content[start:] if stop is None else content[start : start + stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(room, "CHUNK", 4096)
    monkeypatch.setattr(room, "WAIT_S", 0)
    with serving(Server()) as running:
        yield running


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


UNPACKED = ["LibriSpeech/README.TXT", "LibriSpeech/dev-clean/84/1/84-1-0000.flac"]


def test_an_archive_is_fetched_checked_and_unpacked(server, tmp_path):
    told = []
    folder = download(server.archive(), tmp_path, progress=lambda *seen: told.append(seen))
    assert folder == tmp_path / "LibriSpeech/dev-clean"
    assert (folder / "84/1/84-1-0000.flac").read_bytes() == SOUND
    assert everything(tmp_path) == UNPACKED
    assert told[0] == (0, len(GOOD)) and told[-1] == (len(GOOD), len(GOOD))
    assert download(server.archive(), tmp_path) == folder and len(server.asked) == 1, (
        "what is there is not fetched again"
    )


def test_the_archive_can_be_kept_and_is_enough(server, tmp_path):
    download(server.archive(), tmp_path / "a", keep=True)
    assert everything(tmp_path / "a") == [*UNPACKED, "dev-clean.tar.gz"]
    (tmp_path / "b").mkdir()
    (tmp_path / "a/dev-clean.tar.gz").rename(
        tmp_path / "b/dev-clean.tar.gz"
    )  # brought from elsewhere
    download(server.archive(), tmp_path / "b")
    assert len(server.asked) == 1 and everything(tmp_path / "b") == UNPACKED


def test_a_connection_that_breaks_off_is_taken_up_where_it_broke(server, tmp_path):
    server.breaks = [
        98_304,
        200_704,
        0,
    ]  # whole chunks: what the library holds of a broken one is lost
    lines = []
    download(server.archive(), tmp_path, say=lines.append)
    assert server.asked == [None, "bytes=98304-", "bytes=299008-", "bytes=299008-"]
    assert "after 98304 bytes, going on" in lines[0] and everything(tmp_path) == UNPACKED


def test_after_a_stop_the_next_call_asks_for_the_rest_only(server, tmp_path):
    def stop(done, total):
        if done > 300_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server.archive(), tmp_path, progress=stop)
    (part,) = everything(tmp_path)
    have = (tmp_path / part).stat().st_size
    assert part == ".dev-clean.tar.gz.part" and 250_000 < have < len(GOOD)
    download(server.archive(), tmp_path)
    assert server.asked == [None, f"bytes={have}-"] and everything(tmp_path) == UNPACKED


def test_a_part_that_is_whole_or_too_long(server, tmp_path):
    (tmp_path / ".dev-clean.tar.gz.part").write_bytes(GOOD)
    download(server.archive(), tmp_path)
    assert server.asked == [f"bytes={len(GOOD)}-"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/.dev-clean.tar.gz.part").write_bytes(GOOD + b"more")
    download(server.archive(), tmp_path / "b")
    assert (
        server.asked[1:] == [f"bytes={len(GOOD) + 4}-", None]
        and everything(tmp_path / "b") == UNPACKED
    )


def test_a_server_that_cannot_resume_sends_all_of_it_again(server, tmp_path):
    server.ranges, server.breaks = False, [98_304]
    download(server.archive(), tmp_path)
    assert server.asked == [None, "bytes=98304-"] and everything(tmp_path) == UNPACKED


def test_a_server_that_keeps_breaking_off_is_given_up_and_the_bytes_kept(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr(room, "ATTEMPTS", 3)
    server.breaks = [98_304] + [0] * 9
    with pytest.raises(
        UserError, match="broke off 3 times .*98304 bytes are kept: the same command goes on there"
    ):
        download(server.archive(), tmp_path)
    assert len(server.asked) == 4
    server.breaks = []
    download(server.archive(), tmp_path)
    assert server.asked[-1] == "bytes=98304-"


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    wrong = "0" * 32
    with pytest.raises(
        UserError,
        match=f"came with MD5 {hashlib.md5(GOOD).hexdigest()}, its publisher says {wrong}",
    ):
        download(server.archive(wrong), tmp_path)
    assert everything(tmp_path) == []
    download(server.archive(), tmp_path)
    assert server.asked == [None, None]


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "404 Not Found .*was the archive moved"), (503, "503 Service Unavailable")],
)
def test_errors_of_the_server(server, tmp_path, status, words):
    server.status = status
    with pytest.raises(UserError, match=words):
        download(server.archive(), tmp_path)
    assert everything(tmp_path) == []


def test_without_a_network_it_says_so_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens here
        archive = Archive(
            "a",
            "librispeech",
            f"http://127.0.0.1:{free.getsockname()[1]}/a.tar.gz",
            "0" * 32,
            "a",
            1,
            "1 MB",
        )
        with pytest.raises(
            UserError,
            match=r"^no connection to 127.0.0.1 \(Connection refused\): .*internet; .*put it into",
        ):
            download(archive, tmp_path)


def test_a_name_that_cannot_be_looked_up_is_no_network_either(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(socket, "getaddrinfo", fails)
    archive = Archive(
        "a", "librispeech", "http://nowhere.invalid/a.tar.gz", "0" * 32, "a", 1, "1 MB"
    )
    with pytest.raises(
        UserError,
        match=r"^no connection to nowhere.invalid \(Temporary failure .*the same command again$",
    ) as error:
        download(archive, tmp_path)
    assert "\n" not in str(error.value) and "object at" not in str(error.value)


def test_a_disk_too_small_is_told_before_anything_is_written(server, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "SPACE_LEFT", 1 << 60)
    with pytest.raises(UserError, match="GB free, the download needs"):
        download(server.archive(), tmp_path)
    assert everything(tmp_path) == []


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("old_python", [False, True])
@pytest.mark.parametrize(
    "members",
    [
        {"a/ok": b"fine", "../escaped": b"bad"},
        {"a/ok": b"fine", "a/../../escaped": b"bad"},
        {"a/ok": b"fine", "a/link": link("a/link", "../../escaped")},
        {"a/ok": b"fine", "a/pipe": link("a/pipe", "", tarfile.FIFOTYPE)},
    ],
)
def test_hostile_archives_write_nothing(tmp_path, members, old_python, monkeypatch):
    if old_python:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "a.tar").write_bytes(tar_of(members, compressed=False))
    with pytest.raises(UserError, match="can't be unpacked.*nothing was changed"):
        unpack(tmp_path / "a.tar", tmp_path / "out", "a")
    assert everything(tmp_path) == ["a.tar"]


def test_archives_that_are_damaged_or_hold_something_else(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "cut.tar.gz").write_bytes(GOOD[: len(GOOD) // 2])
    (tmp_path / "page.tar.gz").write_text("<html>")
    (tmp_path / "other.tar.gz").write_bytes(GOOD)
    for name, words in (("cut", "can't be unpacked"), ("page", "can't be unpacked")):
        with pytest.raises(UserError, match=words):
            unpack(tmp_path / f"{name}.tar.gz", out, "LibriSpeech/dev-clean")
    with pytest.raises(UserError, match="holds LibriSpeech; expected small: is it another archive"):
        unpack(tmp_path / "other.tar.gz", out, "small")
    assert everything(out) == [] and not list(out.iterdir())


def test_a_second_subset_joins_the_first(tmp_path):
    for name in ("dev-clean", "test-clean"):
        (tmp_path / f"{name}.tar.gz").write_bytes(
            tar_of({"LibriSpeech/README.TXT": b"x", f"LibriSpeech/{name}/1/2/a.flac": b"x"})
        )
        unpack(tmp_path / f"{name}.tar.gz", tmp_path, f"LibriSpeech/{name}")
    assert sorted(path.name for path in (tmp_path / "LibriSpeech").iterdir()) == [
        "README.TXT",
        "dev-clean",
        "test-clean",
    ]


def test_every_archive_has_its_sum_and_unknown_names_are_told():
    assert all(
        re.fullmatch("md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", archive.checksum)
        and archive.url.startswith("https://")
        for archive in ARCHIVES.values()
    )
    assert len({archive.checksum for archive in ARCHIVES.values()}) == len(ARCHIVES) == 11
    assert find_archive("dev-clean").url.endswith("/dev-clean.tar.gz")
    with pytest.raises(
        UserError,
        match="librispeech comes in several archives, choose one: dev-clean, .*train-other-500$",
    ):
        find_archive("librispeech")
    with pytest.raises(
        UserError,
        match="unknown archive 'dev-dirty': choose dev-clean.*libri-light-large; steps are printed",
    ):
        find_archive("dev-dirty")
    with pytest.raises(UserError, match="GigaSpeech can't be fetched without an agreement"):
        find_archive("gigaspeech")
