"""Several processes that train one model: how they find each other, agree, and end together."""

import atexit
import faulthandler
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from vqjax.errors import UserError

# JAX's own 100 seconds would leave processes that wait for a dead one in the dark for longer than a minute.
_SECONDS_WITHOUT_HEARTBEAT = 30

_SECONDS_FOR_LAST_WORDS = 1.0

_SIGNS_OF_A_LOST_PROCESS = ("gloo", "nccl", "coordination", "barrier", "heartbeat", "unavailable", "connection ")


def join_processes(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None, seconds: int = 300
) -> None:
    """Joins the other processes of a run; before JAX looks for devices.

    Args:
      coordinator_address: ``host:port`` of process 0; None under Slurm, Open MPI or Kubernetes, which tell it.
      num_processes: How many there are; None likewise.
      process_id: From 0; None likewise.
      seconds: How long to wait for the others.

    Raises:
      UserError: An argument is missing or out of range, or the others did not come.
    """
    given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(f"--{missing[0]} is missing: give all of {', '.join(f'--{name}' for name in given)}, or none.")
    if not missing:
        _check(coordinator_address, num_processes, process_id)
        others = f"process {process_id} of {num_processes}, waiting for the others at {coordinator_address}"
        print(f"vqjax: {others}", file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=_SECONDS_WITHOUT_HEARTBEAT,
        )
    except Exception as error:
        # JAX raises many types; what it misses, and where, is in their first line.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the processes of this run do not find each other ({reason}). Outside of Slurm, Open MPI and Kubernetes "
            "give --coordinator_address=HOST:PORT of process 0, --num_processes and --process_id; check that the port "
            "can be reached from all hosts and that all processes have been started."
        ) from error
    _Obituary()


class _Obituary:
    """Has a shell say that this process has died, which JAX lets it do without a word of ours when process 0 dies.

    The shell waits at the other end of a pipe, which closes with this process.
    """

    current: "_Obituary | None" = None

    def __init__(self) -> None:
        # JAX's own message stays; the stack of every thread says nothing about another process.
        faulthandler.disable()
        text = (
            f"error: process {jax.process_index()} of {jax.process_count()} has died. If it was not killed itself, "
            "another process has ended before it: see what that one said. Start all of them again with the same "
            "commands: the run goes on from its last checkpoint."
        )
        command = ["sh", "-c", 'read -r farewell || echo "$0" >&2', text]
        # A session of its own: Ctrl-C is not meant for it.
        self._shell = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        _Obituary.current = self
        atexit.register(self.withdraw)

    def withdraw(self) -> None:
        """Lets the process end in silence."""
        if not self._shell.stdin.closed:
            self._shell.communicate(b"farewell\n")


def are_several() -> bool:
    """Whether this process has joined others."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes files and talks; the only one, or number 0."""
    return not are_several() or jax.process_index() == 0


def agree(what: str, value: object, remedy: str) -> None:
    """Waits for all processes, and makes sure that they have the same.

    Args:
      what: What has to be the same, for the message.
      value: What this process has; its text is compared.
      remedy: What to do where it is not the same.

    Raises:
      UserError: In every process, if one has something else than process 0.

    Example:
      >>> agree("newest checkpoint", 60, "Use the same --workdir.")
    """
    if not are_several():
        return
    checksums = multihost_utils.process_allgather(np.uint32(zlib.crc32(str(value).encode())))
    if (others := np.flatnonzero(checksums != checksums[0])).size:
        raise UserError(f"process {others[0]} has another {what} than process 0. {remedy}")


@contextmanager
def first_before_others(what: str) -> Iterator[None]:
    """Holds all other processes at the beginning of a block until process 0 has passed through it.

    Args:
      what: A name for what is done there.
    """
    if are_several() and not is_first():
        multihost_utils.sync_global_devices(what)
    yield
    if are_several() and is_first():
        multihost_utils.sync_global_devices(what)


def is_lost_process(error: BaseException) -> bool:
    """Whether an error is what a process gets when another one has ended.

    Example:
      >>> is_lost_process(ValueError("Gloo all-reduce failed: Connection closed by peer"))
      False
    """
    text = str(error).lower()
    return are_several() and any(sign in text for sign in _SIGNS_OF_A_LOST_PROCESS)


def leave_at_once(status: int) -> NoReturn:
    """Ends this process without waiting for the others, so that these notice.

    Args:
      status: Exit status.
    """
    if _Obituary.current is not None:
        _Obituary.current.withdraw()
    sys.stdout.flush()
    sys.stderr.flush()
    if are_several() and is_first():
        # JAX ends the others as soon as this one is gone, and they may have something to say.
        time.sleep(_SECONDS_FOR_LAST_WORDS)
    os._exit(status)


def _check(coordinator_address: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator_address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator_address={coordinator_address} is not allowed: use HOST:PORT of process 0.")
    if num_processes < 1:
        raise UserError(f"--num_processes={num_processes} is not allowed: use a whole number of at least 1.")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} is not allowed: use a whole number from 0 to {num_processes - 1}, another in "
            "each process."
        )
