"""Fixtures that several folders of tests use."""

from collections.abc import Iterator

import pytest

from tests.server import Server, serve
from util import download


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server to download from; pauses and timeouts are short."""
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    with serve() as running:
        yield running
