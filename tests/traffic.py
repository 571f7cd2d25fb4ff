"""One process of test_traffic.py: notes what an optimiser step and an evaluation send, down to the transport's own events."""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import unimatch_v2
from engine import trainer as training
from tests.conftest import Tiny
from util.config import parse_command
from util.dist import processes
from util.signals import StopSignals

seen: dict[str, Any] = {}


def counted(name: str, function: Any, number: int) -> Any:
    """The function, noting how often its call `number` makes the transport do what: C++ reducers and Python calls alike."""
    calls: list[int] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) != number:  # reading a profile takes seconds, and DDP settles its buckets in its first two steps
            return function(*args, **kwargs)
        with profile(activities=[ProfilerActivity.CPU]) as events:
            result = function(*args, **kwargs)
        seen[name] = Counter(event.name for event in events.events() if event.name.startswith("gloo:"))
        return result

    return call


def main(data: str, out: str) -> None:
    evaluate = training.evaluate
    with processes("cpu") as world, StopSignals() as signals:
        for compression in ("none", "bf16"):
            folder = Path(out) / compression
            folder.mkdir(parents=True, exist_ok=True)
            world.wait()
            args = Tiny(Path(data)).args(folder, "shards=4", "batch_size=1", "epochs=1", f"grad_compression={compression}")
            run = training.Trainer(parse_command(args, None, True, unimatch_v2.METHOD.config), unimatch_v2.METHOD, world, signals)
            run.learner.update = counted(f"update {compression}", run.learner.update, 3)  # type: ignore[method-assign]
            training.evaluate = counted(f"evaluate {compression}", evaluate, 1)
            run.fit()
            grads = torch.cat([p.grad.flatten() for p in run.learner.student.parameters() if p.grad is not None])
            seen[f"rounded {compression}"] = bool(torch.equal(grads, grads.bfloat16().float()))
        if world.main:
            (Path(out) / "seen.json").write_text(json.dumps(seen))
        world.wait()
        os._exit(0)  # two wrapped models in one process: taking them down waits for each other


if __name__ == "__main__":
    main(*sys.argv[1:])
