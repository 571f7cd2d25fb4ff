"""Text embeddings of a data set's class names for `model: vlm`, with CLIP's text encoder (METHOD.md 1.8).

    python -m model.text --config configs/semivl/pascal.yaml
    python -m model.text --config configs/semivl/pascal.yaml --concepts dataset/concepts/pascal.yaml --out pretrained/concepts_pascal.pth

Each name is put into "a photo of a {}" and encoded by CLIP ViT-B/16, the one that model.pretrained clip_base belongs to. --concepts: a
YAML file of `class: [name, name, ...]` lines, or `class: name`; a class that it leaves out keeps its own name. The decoder reads the mean
of a class's names, SemiVL's guidance the nearest of them. Names, prompt and source are kept beside the embeddings.

The text encoder comes from open_clip or transformers, whichever is installed (pip install -r requirements-extra.txt). --from gives it
what you have: OpenAI's ViT-B-16.pt or another file of the whole model (open_clip), or a folder (transformers); or it names a .npy file of
embeddings, one row for each name, and no encoder is needed.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset.custom import spec_of
from dataset.spec import DatasetSpec
from model.backbone.clip import EMBED
from model.backbone.timm_model import load_torchvision
from model.foreign import unwrap
from model.text import Text, text_path
from model.weights import read
from util.cli import Parser
from util.config import load_config, parse_arguments, read_yaml
from util.error import UserError, reason, run
from util.extra import extra
from util.files import check_output, output

PROMPT = "a photo of a {}"
ARCHITECTURE = "ViT-B-16-quickgelu"  # as OpenAI trained it
HUGGING_FACE = "openai/clip-vit-base-patch16"
# where the published embeddings were made of other names than those of the data set
PUBLISHED_NAMES = {"pascal": {"dining table": "diningtable", "potted plant": "pottedplant", "tv/monitor": "tvmonitor"}}
Encode = Callable[[list[str]], Tensor]


def concepts_of(spec: DatasetSpec, path: str | None) -> list[list[str]]:
    """The names of each class, in id order: those of a concept file, else its own."""
    if path and not Path(path).is_file():
        raise UserError(f"--concepts: no such file: {path}; give a YAML file of `class: [name, name]` lines")
    published = PUBLISHED_NAMES.get(spec.name, {})
    given: dict[Any, Any] = read_yaml(path) if path else {}
    for name, names in given.items():
        if name not in spec.classes:
            raise UserError(f"{path}: found the class {name!r}, expected one of {', '.join(spec.classes)}; correct the file")
        if not (isinstance(names, str) or (isinstance(names, list) and names and all(isinstance(one, str) for one in names))):
            raise UserError(
                f"{path}: found {names!r} for {name!r}, expected a name or a list of names; YAML needs quotes around yes and no"
            )
    chosen = [given.get(name, published.get(name, name)) for name in spec.classes]
    return [[names] if isinstance(names, str) else names for names in chosen]


def find_encoder(source: str | None) -> tuple[Encode, str]:
    """CLIP's text encoder, and what it is. Raises UserError where no package has it or `source` is none."""
    folder = source is not None and Path(source).is_dir()
    found = "transformers" if folder or not importlib.util.find_spec("open_clip") else "open_clip"
    if found == "transformers" and not importlib.util.find_spec("transformers"):
        raise UserError(
            "open_clip: neither it nor transformers is installed, one of which CLIP's text encoder comes from; "
            "pip install open_clip_torch, or give ready embeddings with --from FILE.npy"
        )
    load_torchvision()
    package = extra(found)
    logging.disable()  # without a network the packages log each of a dozen tries; the error says what came of them
    try:
        encode = (_transformers if found == "transformers" else _open_clip)(package, source)
    except Exception as error:  # whatever a missing network or a wrong file leads to
        origin = source or "the weights, which it downloads"
        raise UserError(f"--from: {found} cannot load {origin} ({reason(error)}); give a file or folder that it can") from error
    finally:
        logging.disable(logging.NOTSET)
    return encode, f"{found} {package.__version__}: {source or (HUGGING_FACE if found == 'transformers' else f'{ARCHITECTURE}, openai')}"


def _open_clip(package: Any, source: str | None) -> Encode:
    model = package.create_model(ARCHITECTURE, pretrained=None if source else "openai").eval()
    if source:  # by our own reader, which takes OpenAI's archive and runs nothing that is in it
        state = unwrap(read(source))
        model.load_state_dict({name: state[name] for name in model.state_dict()})
    tokenize = package.get_tokenizer(ARCHITECTURE)
    return lambda texts: model.encode_text(tokenize(texts))


def _transformers(package: Any, source: str | None) -> Encode:
    model = package.CLIPTextModelWithProjection.from_pretrained(source or HUGGING_FACE).eval()
    tokenizer = package.CLIPTokenizer.from_pretrained(source or HUGGING_FACE)
    return lambda texts: model(**tokenizer(texts, padding=True, return_tensors="pt")).text_embeds


def read_rows(path: str, count: int) -> Tensor:
    """Ready embeddings, one for each name. Raises UserError where there are other ones."""
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--from: {path} cannot be read ({reason(error)}); expected a .npy file of embeddings") from error
    if not isinstance(rows, np.ndarray) or rows.shape != (count, EMBED) or rows.dtype.kind != "f":
        found = f"{rows.shape} of {rows.dtype}" if isinstance(rows, np.ndarray) else "no array"
        raise UserError(f"--from: {path}: found {found}, expected ({count}, {EMBED}) of floating-point numbers: one row for each name")
    return torch.from_numpy(rows.astype(np.float32))


def random_rows(names: list[str]) -> Tensor:
    """Vectors that depend on the names alone and mean nothing."""
    drawn = [np.random.default_rng(zlib.crc32(name.encode())).standard_normal(EMBED) for name in names]
    return torch.from_numpy(np.stack(drawn).astype(np.float32))


def embed(names: list[str], source: str | None, random: bool) -> tuple[Tensor, str]:
    """The embeddings of names (R, 512), and where they are from. Raises UserError."""
    if random:
        return random_rows(names), "random"
    if source is not None and source.endswith(".npy"):
        return read_rows(source, len(names)), source
    encode, about = find_encoder(source)
    with torch.inference_mode():
        rows = torch.cat([encode([PROMPT.format(name) for name in names[i : i + 64]]).float() for i in range(0, len(names), 64)])
    if rows.shape[1] != EMBED:
        raise UserError(f"--from: {source}: its embeddings have {rows.shape[1]} numbers, expected {EMBED} as those of CLIP ViT-B/16")
    return rows.clone(), about


def main(argv: list[str]) -> None:
    """Writes a file of text embeddings. Raises UserError; a file of before then stays."""
    parser = Parser(prog="model.text", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the config of the run, which names the data set")
    parser.add_argument("--concepts", metavar="FILE", help="names of the classes, or of what belongs to them (YAML)")
    parser.add_argument("--from", dest="source", metavar="FILE_OR_FOLDER", help="weights of the text encoder, or ready embeddings (.npy)")
    parser.add_argument("--random", action="store_true", help="vectors without a meaning, to try a run without CLIP")
    parser.add_argument("--out", metavar="FILE", help="default: `text` of the config, else pretrained/text_<dataset>.pth")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a config key; may be repeated")
    args = parse_arguments(parser, argv)
    cfg = load_config(args.config, args.set)
    spec = spec_of(cfg)
    out = Path(args.out) if args.out else text_path(cfg)
    check_output("--out", out)
    concepts = concepts_of(spec, args.concepts)
    names = [name for own in concepts for name in own]
    embeddings, source = embed(names, args.source, args.random)
    index = [k for k, own in enumerate(concepts) for _ in own]
    with output("--out", out):
        Text(list(spec.classes), names, index, embeddings, PROMPT, source).save(out)
    print(f"{out}: {len(names)} texts for the {spec.nclass} classes of {spec.name} ({source})")


if __name__ == "__main__":
    run(main)
