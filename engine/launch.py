"""Starts the worker processes of a run with torchrun, and ends as the worker that failed first.

    python -m engine.launch --nproc_per_node=4 --master_addr=localhost --master_port=29500 METHOD.py ...

takes torchrun's options. It reports a busy port before anything starts; `--master_port=0` takes a free one. The exit code is the failed
worker's own and the cause is the last line. Workers that end because of an error of the user (exit code 2), or because they were asked to
stop, are not restarted. The launchers of several nodes agree through a store that the one with --node_rank=0 opens at
master_addr:master_port.
"""

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from argparse import Namespace
from datetime import timedelta
from pathlib import Path
from types import FrameType

from torch.distributed import DistError, PrefixStore, Store, TCPStore
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from util.dist import cpu_count
from util.error import UserError, reason, run
from util.signals import INTERRUPTED, REQUEUE, STOP_FILE, set_handler

FINAL = (2, REQUEUE, INTERRUPTED)  # exit codes of workers that are not restarted: an error of the user, a run that was asked to stop
JOIN = 600  # s that a node waits for the others


def bind(port: int) -> int:
    """Listens on a port of all interfaces for a moment; 0 takes any free one. Returns its number. Raises OSError when it is taken."""
    both = socket.has_dualstack_ipv6()
    with socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both) as server:
        return int(server.getsockname()[1])


def choose_port(port: int, nodes: int = 1, node_rank: int = 0) -> int:
    """The port on which the nodes meet: `port` if it is free on node 0, a free one for 0. Raises UserError."""
    if not 0 <= port <= 65535:
        raise UserError(f"port: found {port}, expected 1 to 65535, or 0 for any free one")
    if nodes > 1 and port == 0:
        raise UserError(f"port: found 0 with {nodes} nodes, which cannot agree on a free port; give the same number on each, e.g. 29500")
    if node_rank != 0:
        return port  # node 0 opens it
    try:
        return bind(port)
    except OSError as error:
        raise UserError(f"port: {port} cannot be used ({os.strerror(error.errno or 0)}); {bind(0)} is free") from None


def open_store(args: Namespace) -> Store:
    """The store that all launchers share; waits until node 0 has opened it. Raises UserError for an unknown name, DistError."""
    try:
        socket.getaddrinfo(args.master_addr, args.master_port)
    except socket.gaierror as error:
        found = f"{args.master_addr} is not known here ({error.strerror})"
        raise UserError(f"MASTER_ADDR: {found}; give the name or address of node 0") from None
    host = args.node_rank == 0
    return TCPStore(args.master_addr, args.master_port, is_master=host, timeout=timedelta(seconds=JOIN), wait_for_workers=False)


def pass_on_signals(file: Path) -> None:
    """From now on, the first signal asks the workers to save and stop, through the file; the next one ends them."""

    def handle(number: int, frame: FrameType | None) -> None:
        if file.exists():
            raise SignalException("stopped", signal.Signals(number))
        whole = file.with_suffix(".new")
        whole.write_text(str(number))
        whole.rename(file)

    set_handler(handle)
    os.environ[STOP_FILE] = str(file)


def gather(store: Store, nodes: int, node_rank: int, seconds: float) -> bool:
    """Waits until all nodes have called this with the store, but not longer than `seconds`. Returns whether they have. Raises UserError."""
    if store.add(f"node {node_rank}", 1) > 1:
        raise UserError(f"NODE_RANK: found {node_rank}, which another launcher of this run has; each node has its own")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if store.check([f"node {rank}" for rank in range(nodes)]):
            return True
        time.sleep(0.1)
    return False


def first_failure(error: ChildFailedError) -> tuple[str, int]:
    """The failure that the others follow from, in words and as an exit code.

    It is the earliest one; within one second, a signal rather than an exception. SIGTERM comes last: torchrun ends the others with it.
    """
    rank, failure = min(
        error.failures.items(), key=lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].timestamp, item[1].exitcode > 0)
    )
    if failure.exitcode < 0:
        return f"rank {rank} was ended by {failure.signal_name()}", 128 - failure.exitcode
    cause = f": {failure.message}" if Path(failure.error_file).is_file() else ""
    return f"rank {rank} ended with exit code {failure.exitcode}{cause}", failure.exitcode


def run_workers(args: Namespace, nodes: int, store: Store) -> tuple[str, int]:
    """Starts the workers of this node when all nodes have come, and waits until they have ended.

    Returns the first failure on any node, in words and as an exit code. The words are empty where a worker of this node has printed them,
    and after success.
    """
    code = 0
    if not store.check(["failure"]):  # else this launcher was started later than others, and joins their next attempt
        if not gather(store, nodes, args.node_rank, JOIN):
            raise TimeoutError
        if args.node_rank == 0:
            store.set("port", str(bind(0)))  # the workers of an attempt before may not have left theirs
        args.master_port = int(store.get("port"))
        try:
            torchrun.run(args)
            return "", 0
        except ChildFailedError as error:
            text, code = first_failure(error)
            store.compare_set("failure", "", json.dumps([text, code]))
    first_text, first_code = json.loads(store.get("failure"))
    return "" if first_code in FINAL and first_code == code else first_text, first_code


def launch(args: Namespace, nodes: int, folder: Path) -> tuple[str, int]:
    """Runs the workers, restarts them after a failure, and returns how they have ended, as run_workers does."""
    address, restarts = f"{args.master_addr}:{args.master_port}", args.max_restarts
    args.max_restarts = 0  # torchrun would restart workers whatever they ended for
    args.signals_to_handle = "SIGHUP,SIGQUIT"  # at others it would kill workers that take more than 30 s to save
    args.log_dir = args.log_dir or str(folder)
    try:
        store = open_store(args)
        pass_on_signals(folder / "stop")
        for restart in range(restarts + 1):
            text, code = run_workers(args, nodes, PrefixStore(str(restart), store))
            if code in (0, *FINAL) or restart == restarts:
                break
            print(f"{text}; restart {restart + 1} of {restarts}", file=sys.stderr, flush=True)
        if code != 0:  # the store ends with node 0, and the others need it to learn what has failed
            gather(PrefixStore("end", store), nodes, args.node_rank, 10 if args.node_rank == 0 else 0)
        return text, code
    except SignalException as error:
        return f"stopped by {error.sigval.name}", 128 + error.sigval
    except TimeoutError:
        return f"not all of {nodes} nodes came to {address} within {JOIN} s; start the same command on each of them", 1
    except DistError as error:
        return f"node 0 at {address} has ended or cannot be reached ({reason(error)}); its output says why", 1


def main(argv: list[str]) -> None:
    """Ends as the workers have ended. Raises UserError before they start."""
    args = torchrun.parse_args(argv)
    if not (args.module or args.no_python or Path(args.training_script).is_file()):
        raise UserError(f"{args.training_script}: no such file; expected a method such as unimatch_v2.py")
    nodes = torchrun.parse_min_max_nnodes(args.nnodes)[1]
    if not 0 <= args.node_rank < nodes:
        raise UserError(f"NODE_RANK: found {args.node_rank}, expected 0 to {nodes - 1} for NNODES={nodes}; each node has its own")
    port = (29500 if nodes > 1 else 0) if args.master_port is None else args.master_port
    args.master_port = choose_port(port, nodes, args.node_rank)
    # torchrun would give each of several workers one thread
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // torchrun.determine_local_world_size(args.nproc_per_node))))
    # torchrun's own reports of what the workers have said; LOGLEVEL asks for them
    if "LOGLEVEL" not in os.environ:
        logging.disable(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        text, code = launch(args, nodes, Path(folder))
    if text:
        print(f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    run(main)
