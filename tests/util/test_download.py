"""Downloads from a server that is slow, cuts off, stalls, has no ranges, changes its mind or serves something else."""

import errno
import http.client
import random
from pathlib import Path

import pytest

from tests.server import Page, Server
from util.download import download
from util.error import UserError

CONTENT = random.Random(0).randbytes(300_000)


def same(path: Path) -> None:
    if path.read_bytes() != CONTENT:
        raise UserError(f"{path}: wrong content")


def get(server: Server, path: Path, page: Page) -> None:
    server.pages["/file"] = page
    download(f"{server.url}/file", path, same, "some advice")
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing else is left


@pytest.mark.parametrize(
    ("page", "requests"),
    [
        (Page(CONTENT), 1),
        (Page(CONTENT, slow=0.05), 1),
        (Page(CONTENT, length=False), 1),
        (Page(CONTENT, ["cut"]), 2),
        (Page(CONTENT, ["cut"] * 6), 7),  # more cuts than attempts: every one brings something new
        (Page(CONTENT, ["stall"]), 2),
        (Page(CONTENT, ["busy", "busy"]), 3),
        (Page(CONTENT, ["cut"], ranges=False), 2),
        (Page(CONTENT, ["cut", "other range"]), 3),
    ],
    ids=["good", "slow", "no length", "cut", "cut often", "stall", "busy", "no ranges", "other range"],
)
def test_arrives_whole(server: Server, tmp_path: Path, page: Page, requests: int) -> None:
    get(server, tmp_path / "new" / "file.bin", page)
    assert len(server.requests) == requests


def test_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path / "file.bin", Page(CONTENT, ["cut"]))
    assert server.requests[1][1] == f"bytes={len(CONTENT) // 2}-"


def test_second_call_goes_on_after_the_first_gave_up(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    server.pages["/file"] = Page(CONTENT, ["cut", "busy", "busy", "busy", "busy"])
    with pytest.raises(UserError, match="the same command resumes from there"):
        download(f"{server.url}/file", path, same, "some advice")
    assert not path.exists()
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[: len(CONTENT) // 2]
    get(server, path, Page(CONTENT))
    assert server.requests[-1][1] == f"bytes={len(CONTENT) // 2}-"


def test_a_half_file_of_another_version_costs_one_clean_start(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"foreign")
    get(server, tmp_path / "file.bin", Page(CONTENT))
    assert [r[1] for r in server.requests] == ["bytes=7-", None]


@pytest.mark.parametrize(("part", "requests"), [(CONTENT, 1), (CONTENT + b"more", 2)], ids=["complete", "too long"])
def test_half_file_that_is_no_half(server: Server, tmp_path: Path, part: bytes, requests: int) -> None:
    (tmp_path / "file.bin.part").write_bytes(part)
    get(server, tmp_path / "file.bin", Page(CONTENT))
    assert len(server.requests) == requests


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (None, "answers 404 .*; some advice"),
        (Page(CONTENT, ["403"]), "answers 403 .*; some advice"),
        (Page(CONTENT, ["busy"] * 9), "answers 503 .*4 attempts"),
        (Page(b"<html>log in</html>"), "wrong content"),
        (Page(CONTENT[:-1] + b"x"), "wrong content"),
        (Page(CONTENT[:1000], length=False), "wrong content"),
        (Page(b""), "wrong content"),
    ],
    ids=["404", "403", "always busy", "another page", "one byte", "cut without length", "empty"],
)
def test_failure_leaves_nothing(server: Server, tmp_path: Path, page: Page | None, message: str) -> None:
    if page:
        server.pages["/file"] = page
    with pytest.raises(UserError, match=message):
        download(f"{server.url}/file", tmp_path / "file.bin", same, "some advice")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_goes_away_is_no_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.pages["/file"] = Page(CONTENT)
    read, errors = http.client.HTTPResponse.read, iter([OSError(errno.EHOSTUNREACH, "No route to host")])

    def broken(response: http.client.HTTPResponse, size: int = -1) -> bytes:
        for error in errors:
            raise error
        return read(response, size)

    monkeypatch.setattr(http.client.HTTPResponse, "read", broken)
    download(f"{server.url}/file", tmp_path / "file.bin", same, "some advice")  # tried again


def test_failure_keeps_an_earlier_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"earlier")
    server.pages["/file"] = Page(b"wrong")
    with pytest.raises(UserError):
        download(f"{server.url}/file", tmp_path / "file.bin", same, "some advice")
    assert (tmp_path / "file.bin").read_bytes() == b"earlier"


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "example", "http://127.0.0.1:1/file", "http://127.0.0.1:port/file", "http://a b/c"]
)
def test_unusable_address(server: Server, tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError) as caught:
        download(url, tmp_path / "file.bin", same, "some advice")
    assert url.split("/file")[0] in str(caught.value)


def test_unwritable_folder(server: Server, tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be written"):
        download(f"{server.url}/file", tmp_path / "folder" / "file.bin", same, "some advice")
