"""One way to download a file: resumes, retries politely, and gives the file its name only after it has passed a check."""

import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from util.error import UserError, reason

ATTEMPTS = 4  # in a row without a new byte
TIMEOUT = 30.0  # seconds without an answer or a byte
PAUSE = 1.0  # seconds before the second attempt, doubled after each further one
_BUSY = {408, 429, 500, 502, 503, 504}  # the server may answer when asked again


class _InterruptedError(Exception):
    """The transfer stopped early and may be continued. `pause`: seconds for which the server asked to be left alone."""

    def __init__(self, message: str, pause: float = 0.0) -> None:
        super().__init__(message)
        self.pause = pause


def download(url: str, path: Path, check: Callable[[Path], Any], advice: str) -> None:
    """Downloads `url` to `path`. The bytes so far lie in `<path>.part`, from where a later call continues if the server can.

    check: reads the complete temporary file and raises UserError when it is not the one that is wanted, such as one of pieces of two
    versions; it is then deleted.
    advice: what the user can do where the server has not got the file or cannot be reached.
    Raises UserError; whatever happens, `path` is either absent, as it was before, or complete and checked.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--url: found {url!r}, expected an address that starts with http:// or https://")
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        resumed = _size(part) > 0
        _receive_all(url, part, advice)
        try:
            check(part)
        except UserError:
            part.unlink(missing_ok=True)
            if not resumed:
                raise
            # the half file may have been of another origin: that is no fault of this server, so one clean start
            return download(url, path, check, advice)
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)}); free space or choose another folder") from error


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _receive_all(url: str, part: Path, advice: str) -> None:
    """Receives until `part` is complete. Gives up after ATTEMPTS attempts in a row that brought nothing new."""
    failures, furthest = 0, _size(part)
    with tqdm(desc=part.name.removesuffix(".part"), unit="B", unit_scale=True, unit_divisor=1024, leave=False, disable=None) as bar:
        while True:
            try:
                return _receive(url, part, bar, advice)
            except _InterruptedError as stop:
                failures = 1 if _size(part) > furthest else failures + 1
                furthest = max(furthest, _size(part))
                if failures >= ATTEMPTS:
                    kept = f"; {_size(part)} bytes are kept, the same command resumes from there" if _size(part) else f"; {advice}"
                    raise UserError(f"{url}: {stop} ({ATTEMPTS} attempts in a row without progress){kept}") from stop
                time.sleep(max(stop.pause, PAUSE * 2 ** (failures - 1)))


def _receive(url: str, part: Path, bar: Any, advice: str) -> None:
    """One request: the rest of `part`, or all of it where the server does not resume."""
    headers = {"User-Agent": "unimatch-v2", "Accept-Encoding": "identity"}
    have = _size(part)
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
            _store(response, part, have, bar)
    except urllib.error.HTTPError as error:
        _answer(error, url, part, advice)
    except urllib.error.URLError as error:
        raise _InterruptedError(f"cannot be reached ({error.reason})") from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _InterruptedError(f"the transfer broke off ({reason(error)})") from error
    except ValueError as error:  # http.client.InvalidURL and a port that is no number
        raise UserError(f"--url: {url!r} is not an address ({error})") from error


def _store(response: Any, part: Path, have: int, bar: Any) -> None:
    """Appends a response to `part` (206 from where we are) or replaces it. Raises _InterruptedError when bytes are missing."""
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    resumed = response.status == 206 and start == str(have)
    if not resumed:
        part.unlink(missing_ok=True)
        if response.status == 206:
            raise _InterruptedError("the server sent another part of the file than was asked for")
    length = response.headers.get("Content-Length")
    bar.reset(total=None if length is None else int(length) + (have if resumed else 0))
    bar.update(have if resumed else 0)
    received = 0
    with open(part, "ab") as file:
        try:
            while chunk := _read(response):
                file.write(chunk)
                received += len(chunk)
                bar.update(len(chunk))
        finally:
            file.flush()
            os.fsync(file.fileno())
    if length is not None and received < int(length):
        raise _InterruptedError(f"cut off after {_size(part)} bytes, {int(length) - received} are missing")


def _read(response: Any) -> bytes:
    try:
        return response.read(1 << 16)
    except (http.client.HTTPException, OSError) as error:  # of the network: the disk's are raised where it is written to
        raise _InterruptedError(f"the transfer broke off ({reason(error)})") from error


def _answer(error: urllib.error.HTTPError, url: str, part: Path, advice: str) -> None:
    """What an HTTP status other than success means: nothing to do (complete), ask again, or give up."""
    if error.code == 416:  # asked to continue behind the end of the file
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if total == str(_size(part)):
            return
        part.unlink(missing_ok=True)
        raise _InterruptedError("the half file did not belong to this one") from error
    if error.code in _BUSY:
        wait = error.headers.get("Retry-After", "")
        raise _InterruptedError(
            f"the server answers {error.code} {error.reason}", min(float(wait), 60.0) if wait.isdigit() else 0.0
        ) from error
    raise UserError(f"{url}: the server answers {error.code} {error.reason}, expected the file; {advice}") from error
