"""Several nodes and restarts: how torchrun's agents meet, and which workers they start again."""

import os
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import Mapping

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.launcher import api as launcher

from util.error import UserError
from util.signals import INTERRUPTED, REQUEUE

FINAL = (2, REQUEUE, INTERRUPTED)  # exit codes of workers that are not started again: a user's mistake, a run that was asked to stop
JOIN = 600  # s that a node waits for the others, as torchrun does


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def describe(rank: int, failure: ProcessFailure) -> str:
    """How a worker ended, in one line: its signal, or its exit code and the exception that it left in torchrun's error file."""
    if failure.exitcode < 0:
        return f"rank {rank} was ended by {signal_name(-failure.exitcode)}"
    text = f"rank {rank} ended with exit code {failure.exitcode}"
    return f"{text}: {failure.message}" if failure.error_file_data["message"] == failure.message else text


def first_failure(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The failure that the others follow from, with its rank: the earliest; within one second, a signal rather than an exception.

    SIGTERM comes last: torchrun ends the other workers with it.
    """
    return min(failures.items(), key=lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].timestamp, item[1].exitcode > 0))


class Agent(LocalElasticAgent):
    """Starts failed workers again as torchrun's agent does, but none that ended for good, and says why it does."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state != WorkerState.FAILED or self._remaining_restarts == 0:
            return result
        if any(failure.exitcode in FINAL for failure in result.failures.values()):
            self._remaining_restarts = 0
        else:
            most = worker_group.spec.max_restarts
            cause = describe(*first_failure(result.failures))
            print(f"{cause}; restart {most - self._remaining_restarts + 1} of {most}", file=sys.stderr, flush=True)
        return result


def own_address(master: str, port: int, node_rank: int) -> str:
    """The address under which the other nodes reach this one: node 0's is the one they were given."""
    if node_rank == 0:
        return master
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(master, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing: the system only chooses the interface
            return str(probe.getsockname()[0])
    except OSError as error:
        raise UserError(f"MASTER_ADDR: {master} is not known here ({error.strerror}); give the name or address of node 0") from None


def prepare(args: Namespace, nodes: int) -> None:
    """Completes torchrun's options, in place: the nodes meet at master_addr:master_port, at first and after each restart."""
    if not 0 <= args.node_rank < nodes:
        raise UserError(f"NODE_RANK: found {args.node_rank}, expected 0 to {nodes - 1} for NNODES={nodes}; each node has its own")
    # with `static`, restarted workers find the addresses of those before them; so they do in a store that is kept (PyTorch 2.11 to 2.13)
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    args.rdzv_backend = "c10d"
    args.rdzv_endpoint = f"{args.master_addr}:{args.master_port}"
    args.rdzv_id = "unimatch"
    args.rdzv_conf = f"is_host={int(args.node_rank == 0)},read_timeout={JOIN},join_timeout={JOIN}"
    args.local_addr = args.local_addr or own_address(args.master_addr, args.master_port, args.node_rank)
    launcher.LocalElasticAgent = Agent  # type: ignore[misc] # torchrun has no option for it
