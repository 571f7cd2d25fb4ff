"""Public encoder weights: `python -m model.pretrained dinov2_small | dinov2_base | dinov2_large | dinov2_giant` (METHOD.md 1.1).

Downloads the DINOv2 checkpoint to pretrained/<name>.pth, or takes it with --from, loads it strictly into the encoder, and records
size, SHA-256 and origin in pretrained/<name>.json. The weights are Meta's, under the Apache License 2.0.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

from model.spec import ENCODERS, get_encoder
from model.weights import default_path, load_encoder
from util.cli import Parser
from util.download import download
from util.error import UserError, run
from util.files import sha256, write_atomic

PUBLIC = "https://dl.fbaipublicfiles.com/dinov2"
LICENSE = "Apache-2.0"


def address(name: str, base: str) -> str:
    """Where the weights of an encoder are below `base`. Raises UserError for an encoder without public weights."""
    file = get_encoder(name).file
    if not file:
        public = ", ".join(spec.name for spec in ENCODERS.values() if spec.file)
        raise UserError(f"{name}: no weights of it were published, expected one of {public}; train it from random weights")
    return f"{base.rstrip('/')}/{file.removesuffix('_pretrain.pth')}/{file}"


def check(path: Path, name: str, origin: str) -> None:
    """Raises UserError unless `path`, which came from `origin`, loads strictly into the encoder and no byte of it is damaged."""
    try:
        load_encoder(get_encoder(name).build(), name, path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), origin)) from error


def record(path: Path, name: str, origin: str) -> dict[str, str | int]:
    """Writes what the file at `path` is to the JSON file beside it, and returns it."""
    facts: dict[str, str | int] = {
        "name": name, "origin": origin, "license": LICENSE, "size": path.stat().st_size, "sha256": sha256(path),
    }  # fmt: skip
    write_atomic(path.with_suffix(".json"), lambda file: file.write((json.dumps(facts, indent=2) + "\n").encode()))
    return facts


def there(path: Path) -> bool:
    """Whether the file is here as recorded. Raises UserError where it has changed since."""
    note = path.with_suffix(".json")
    if not path.is_file() or not note.is_file():
        return False
    try:
        known = json.loads(note.read_text())["sha256"]
    except (ValueError, KeyError, TypeError):
        return False  # an unreadable note is written again
    if (found := sha256(path)) != known:
        raise UserError(f"{path}: found SHA-256 {found[:12]}..., {note} has {str(known)[:12]}...; delete both and run this again")
    return True


def take(source: Path, path: Path, name: str) -> None:
    """Checks a file that the user has and copies it to `path`."""
    if not source.is_file():
        raise UserError(f"--from: no such file: {source}; give the .pth file that was downloaded")
    check(source, name, str(source))
    if path.exists() and os.path.samefile(source, path):
        return
    try:
        with open(source, "rb") as content:
            write_atomic(path, lambda file: shutil.copyfileobj(content, file, 1 << 20))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); free space or choose another disk") from error


def main(argv: list[str]) -> None:
    """Fetches the weights of one encoder. Raises UserError; pretrained/<name>.pth is then absent, or as it was before."""
    parser = Parser(prog="model.pretrained", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=", ".join(spec.name for spec in ENCODERS.values() if spec.file))
    parser.add_argument("--from", dest="source", metavar="FILE", help="take this file instead of downloading")
    parser.add_argument("--url", default=PUBLIC, metavar="BASE", help="address that has the folders dinov2_vits14 and so on (%(default)s)")
    args = parser.parse_args(argv)
    url, path = address(args.name, args.url), default_path(args.name)
    if args.source is not None:
        take(Path(args.source), path, args.name)
        facts = record(path, args.name, str(args.source))
    elif there(path):
        print(f"{path}: is there and unchanged")
        return
    else:
        if path.exists():  # put here by hand: worth a check, not a download
            check(path, args.name, str(path))
        else:
            download(url, path, lambda part: check(part, args.name, url), "correct --url, or give a file that you have with --from FILE")
        facts = record(path, args.name, url)
    print(f"{path}: {facts['size']} bytes, SHA-256 {facts['sha256']}; loads strictly; license {LICENSE} (weights by Meta)")


if __name__ == "__main__":
    run(main)
