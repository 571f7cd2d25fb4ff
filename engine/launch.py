"""Starts the worker processes of a run as torchrun does, and ends the way the first failed worker ended.

    python -m engine.launch --nproc_per_node=4 --master_addr=localhost --master_port=29500 METHOD.py ...

takes torchrun's options. What it adds: a busy port is told before anything starts, `--master_port=0` picks a free one, the exit
code is the failed worker's own, its cause is the last line, and a user's mistake stays the one line that the worker printed.
Several nodes meet at master_addr:master_port, which the one with --node_rank=0 opens; --max_restarts works on one and on several.
"""

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousTimeoutError

from engine.elastic import FINAL, JOIN, describe, first_failure, prepare, signal_name
from util.dist import cpu_count
from util.error import UserError, run
from util.signals import STOP_FILE, set_handler


def bind(port: int) -> int:
    """Listens on a port of all interfaces for a moment; 0 takes any free one. Returns its number. Raises OSError when it is taken."""
    if socket.has_dualstack_ipv6():
        server = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        server = socket.create_server(("", port))
    with server:
        return int(server.getsockname()[1])


def choose_port(port: int, nodes: int = 1, node_rank: int = 0) -> int:
    """The port on which the workers meet: `port` if it is free here, a free one for 0. Raises UserError."""
    if not 0 <= port <= 65535:
        raise UserError(f"port: found {port}, expected 1 to 65535, or 0 for any free one")
    if nodes > 1 and port == 0:
        raise UserError(f"port: found 0 with {nodes} nodes, which cannot agree on a free port; give the same number on each, e.g. 29500")
    if node_rank != 0:
        return port  # it is opened on the node of rank 0
    try:
        return bind(port)
    except OSError as error:
        raise UserError(f"port: {port} cannot be used ({os.strerror(error.errno or 0)}); {bind(0)} is free") from None


@contextmanager
def forwarded_signals() -> Iterator[None]:
    """Inside, the first signal asks the workers to save and stop; the next one ends them as torchrun does."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stop"

        def forward(number: int, frame: FrameType | None) -> None:
            if file.exists():
                raise SignalException(f"stopped by {signal_name(number)}", signal.Signals(number))
            whole = file.with_suffix(".new")
            whole.write_text(str(number))
            whole.rename(file)

        before = set_handler(forward)
        os.environ[STOP_FILE] = str(file)
        try:
            yield
        finally:
            del os.environ[STOP_FILE]
            for number, handler in before.items():
                signal.signal(number, handler)


def main(argv: list[str]) -> None:
    """Runs the workers until all end. Raises UserError before the start; a failed worker's exit code becomes this process's."""
    args = torchrun.parse_args(argv)
    if not (args.module or args.no_python or Path(args.training_script).is_file()):
        raise UserError(f"{args.training_script}: no such file; expected a method such as unimatch_v2.py")
    nodes = torchrun.parse_min_max_nnodes(args.nnodes)[1]
    if not (args.standalone or args.rdzv_endpoint):
        args.master_addr = args.master_addr or "localhost"
        args.master_port = choose_port((29500 if nodes > 1 else 0) if args.master_port is None else args.master_port, nodes, args.node_rank)
        prepare(args, nodes)
    # torchrun would give each of several workers one thread
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // torchrun.determine_local_world_size(args.nproc_per_node))))
    # torchrun's own reports of what the workers have already said; LOGLEVEL asks for them
    if "LOGLEVEL" not in os.environ:
        logging.disable(logging.ERROR)
    args.signals_to_handle = "SIGHUP,SIGQUIT"  # torchrun would kill workers that take more than 30 s to save
    try:
        with forwarded_signals():
            torchrun.run(args)
    except ChildFailedError as error:
        rank, failure = first_failure(error.failures)
        if failure.exitcode not in FINAL:  # of these the worker's one line says all
            elsewhere = " (where another node's worker ended first, the cause is there)" if nodes > 1 and failure.exitcode > 0 else ""
            end(describe(rank, failure) + elsewhere, failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
        sys.exit(failure.exitcode)
    except SignalException as error:
        end(f"stopped by {signal_name(int(error.sigval))}", 128 + int(error.sigval))
    except RendezvousTimeoutError:
        end(f"not all of {nodes} nodes came to {args.rdzv_endpoint} within {JOIN} s; start the same command on each of them", 1)
    except RendezvousError as error:
        end(f"the other nodes at {args.rdzv_endpoint} have ended or cannot be reached ({type(error).__name__}); the cause is there", 1)


def end(message: str, code: int) -> NoReturn:
    """Ends with the message as the last line."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    run(main)
