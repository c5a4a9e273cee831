"""Several processes that train one model: joining, agreement, and a clean end."""

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

# JAX's default of 100 seconds leaves processes that wait for a dead one without a message for over a minute.
_HEARTBEAT_TIMEOUT_SECONDS = 30

_SECONDS_FOR_LAST_WORDS = 1.0

_SIGNS_OF_A_LOST_PROCESS = ("gloo", "nccl", "coordination", "barrier", "heartbeat", "unavailable", "connection ")


def join_if_asked(
    distributed: bool, coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Join the other processes if flags ask for it; see :func:`join_processes`.

    Args:
      distributed: Whether JAX is to find the others by itself.
      coordinator_address: ``host:port`` of process 0, or None.
      num_processes: Number of processes, or None.
      process_id: Number of this process, or None.
    """
    address = (coordinator_address, num_processes, process_id)
    if distributed or any(value is not None for value in address):
        join_processes(*address)


def join_processes(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None, seconds: int = 300
) -> None:
    """Join the other processes of a run; call it before JAX looks for devices.

    Args:
      coordinator_address: ``host:port`` of process 0; None under Slurm, Open MPI or Kubernetes, where JAX finds all
        three arguments by itself.
      num_processes: Number of processes.
      process_id: Number of this process, from 0.
      seconds: Longest time to wait for the others.

    Raises:
      UserError: An argument is missing or out of range, or another process did not join in time.
    """
    values = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in values.items() if value is None]
    if 0 < len(missing) < len(values):
        raise UserError(f"--{missing[0]} is missing; pass all of {', '.join(f'--{name}' for name in values)}, or none.")
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
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_SECONDS,
        )
    except Exception as error:
        # JAX raises many types of exception; the first line says what is missing and where.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the processes of this run cannot find each other ({reason}); outside of Slurm, Open MPI and Kubernetes "
            "pass --coordinator_address=HOST:PORT of process 0, --num_processes and --process_id, and check that all "
            "hosts can reach the port and that all processes have been started."
        ) from error
    _DeathNotice()


class _DeathNotice:
    """A shell that prints a message if this process dies, as JAX aborts it silently when process 0 is lost.

    The shell reads from a pipe that closes with this process.
    """

    current: "_DeathNotice | None" = None

    def __init__(self) -> None:
        # JAX's own message stays; the stack of every thread says nothing about another process.
        faulthandler.disable()
        text = (
            f"error: process {jax.process_index()} of {jax.process_count()} has died. If it was not killed itself, "
            "another process has ended before it: see the output of that one. Start all of them again with the same "
            "commands: the run resumes from its last checkpoint."
        )
        command = ["sh", "-c", 'read -r farewell || echo "$0" >&2', text]
        # Ctrl-C goes to the whole session; the shell has to survive it.
        self._shell = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        _DeathNotice.current = self
        atexit.register(self.cancel)

    def cancel(self) -> None:
        """Let the process end without the message."""
        if not self._shell.stdin.closed:
            self._shell.communicate(b"farewell\n")


def is_distributed() -> bool:
    """Return whether this process has joined others."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main_process() -> bool:
    """Return whether this process writes files and console output: the only one, or number 0."""
    return not is_distributed() or jax.process_index() == 0


def assert_same_on_all_processes(name: str, value: object, remedy: str) -> None:
    """Wait for all processes, and raise in each of them unless they hold the same value.

    Args:
      name: Name of the value, for the message.
      value: Value of this process; its text is compared.
      remedy: Sentence that says what to do if the values differ.

    Raises:
      UserError: A process holds a different value from process 0.

    Example:
      >>> assert_same_on_all_processes("newest checkpoint", 60, "Use the same --workdir.")
    """
    if not is_distributed():
        return
    checksums = multihost_utils.process_allgather(np.uint32(zlib.crc32(str(value).encode())))
    if (others := np.flatnonzero(checksums != checksums[0])).size:
        raise UserError(f"process {others[0]} has a different {name} from process 0. {remedy}")


def true_in_all_processes(value: bool) -> bool:
    """Wait for all processes, and return whether a value is true in each of them.

    Args:
      value: Value of this process.

    Example:
      >>> true_in_all_processes(True)
      True
    """
    return bool(np.all(multihost_utils.process_allgather(np.bool_(value)))) if is_distributed() else value


@contextmanager
def main_process_first(name: str) -> Iterator[None]:
    """Hold all other processes at the beginning of a block until the main process has left it.

    Args:
      name: Name of the block, the same in all processes.
    """
    if is_distributed() and not is_main_process():
        multihost_utils.sync_global_devices(name)
    yield
    if is_distributed() and is_main_process():
        multihost_utils.sync_global_devices(name)


def is_lost_process(error: BaseException) -> bool:
    """Return whether an error is one that a process gets when another process has ended.

    Example:
      >>> is_lost_process(ValueError("Gloo all-reduce failed: Connection closed by peer"))
      False
    """
    text = str(error).lower()
    return is_distributed() and any(sign in text for sign in _SIGNS_OF_A_LOST_PROCESS)


def hard_exit(status: int) -> NoReturn:
    """End this process without waiting for the others, so that they notice.

    Args:
      status: Exit status.
    """
    if _DeathNotice.current is not None:
        _DeathNotice.current.cancel()
    sys.stdout.flush()
    sys.stderr.flush()
    if is_distributed() and is_main_process():
        # JAX aborts the others as soon as this process is gone; leave them time to print their own message.
        time.sleep(_SECONDS_FOR_LAST_WORDS)
    os._exit(status)


def _check(coordinator_address: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator_address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator_address must be HOST:PORT of process 0, got {coordinator_address!r}.")
    if num_processes < 1:
        raise UserError(f"--num_processes must be a positive integer, got {num_processes}.")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id must be an integer from 0 to {num_processes - 1}, different in each process, got "
            f"{process_id}."
        )
