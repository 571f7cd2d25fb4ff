"""Records what a run was made with: versions, machine, command, and the state of the code."""

import difflib
import json
import platform
import re
import subprocess
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from util.dist import cpu_count
from util.error import UserError, reason
from util.files import ROOT, write_atomic

STARTS = "record.json"  # a list with an entry for each start of the run
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "pyyaml", "tensorboard")
_DIFF_LIMIT = 1_000_000  # characters of a diff that are kept


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    out = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out | ({"cuda": str(torch.version.cuda)} if torch.version.cuda else {})


def changed_versions(old: dict[str, str]) -> list[str]:
    """What has another version than in `old`, the `versions()` of an earlier start."""
    return [f"{name} was {old[name]}, is {version}" for name, version in versions().items() if old.get(name, version) != version]


def revision() -> dict[str, Any]:
    """Git revision of the code, and the diff to it where the tree is dirty; nothing where the code is not in a repository of its own."""
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top.strip()) != ROOT:
        return {}
    out: dict[str, Any] = {"revision": (_git("rev-parse", "HEAD") or "none").strip()}
    status, diff = _git("status", "--porcelain") or "", _git("diff", "HEAD") or ""
    unknown = _git("ls-files", "--others", "--exclude-standard", "-z", "*.py", "*.sh", "*.yaml") or ""
    diff += "".join(_added(name) for name in unknown.split("\0"))
    return out | ({"status": status.splitlines(), "diff": diff[:_DIFF_LIMIT]} if status else {})


def _added(name: str) -> str:
    """The diff that adds a file which git does not know, as a method of one's own is at first."""
    try:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, ValueError):
        return ""
    return "".join(difflib.unified_diff([], lines, "/dev/null", f"b/{name}"))


def machine(device: torch.device) -> dict[str, Any]:
    """What computes: the GPU, if any, the CPU, and how many cores of it this process may use."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"gpu": gpu, "cpu": names[0] if names else platform.machine(), "cores": cpu_count()}


def add_start(folder: Path, device: torch.device, processes: int) -> None:
    """Adds this start to the folder's STARTS. Raises UserError."""
    path = folder / STARTS
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
        starts = starts if isinstance(starts, list) else []
    except (OSError, ValueError):
        starts = []
    start = {"time": time.strftime("%Y-%m-%d %H:%M:%S%z"), "command": sys.argv, "processes": processes, "device": str(device)}
    starts.append(start | machine(device) | {"platform": platform.platform(), "versions": versions()} | revision())
    try:
        write_atomic(path, lambda file: file.write(json.dumps(starts, indent=1).encode()))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)}); make room or give another --save-path") from error
