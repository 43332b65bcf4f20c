"""Several processes that run one experiment: how they start, which of them writes, and how a value becomes global.

All run the same program on the same data. What is trained lives on the devices of all of them; everything else, each
computes for itself. Files are the first one's alone, so that the others need none of its disks; they hear from it what
it has read, and what went wrong. One process is the first of one, and all of this does nothing.
"""

import contextlib
import dataclasses
import os
import pickle
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import chex
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding, SingleDeviceSharding

CHUNK = 2**26
"""Bytes that are sent at once."""

PATIENCE = 30
"""Seconds that a process which ends waits for the others, which have failed or come to the end with it."""

Value = TypeVar("Value")
Tree = TypeVar("Tree", bound=chex.ArrayTree)


@dataclasses.dataclass(frozen=True)
class Processes:
    """Processes that run this together, each started with the same command; one alone if nothing is said."""

    distributed: bool = False
    """Several, as the cluster tells: the hosts of a TPU slice, the tasks of Slurm or Open MPI."""
    coordinator: str | None = None
    """Elsewhere: address and port of the first process, such as 10.0.0.1:1234."""
    processes: int | None = None
    """With `coordinator`: their number."""
    process: int | None = None
    """With `coordinator`: which of them this one is, from 0."""

    def __post_init__(self):
        """Raises `ValueError` for options that do not say who takes part."""
        given = (self.coordinator, self.processes, self.process)
        if None in given and given != (None, None, None):
            raise ValueError(
                f"coordinator={self.coordinator}, processes={self.processes}, process={self.process}: pass all three, "
                "or --distributed alone where a cluster tells them"
            )
        if self.coordinator is None:
            return
        if self.distributed:
            raise ValueError("distributed: a cluster tells where the coordinator is; pass one of the two")
        if not 0 <= self.process < self.processes:
            raise ValueError(f"process: got {self.process}, but {self.processes} processes are numbered from 0")


def start(asked: Processes) -> None:
    """Joins the other processes, once, if there are any; before that, nothing may use a device.

    Raises:
      ValueError: if there is no cluster that tells who takes part.
    """
    if jax.distributed.is_initialized() or not (asked.distributed or asked.coordinator):
        return
    who = asked.coordinator, asked.processes, asked.process
    try:
        jax.distributed.initialize(*who, shutdown_timeout_seconds=PATIENCE)
    except ValueError as error:
        raise ValueError(
            f"distributed: no cluster says who takes part ({error}); pass --coordinator, --processes and --process"
        ) from error
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which JAX would take note of and go on


def is_first() -> bool:
    """Returns whether this is the process that writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def one_writer(directory: Path) -> Iterator[Path]:
    """Gives the first process the directory, and the others one that vanishes; what those print vanishes too.

    It is left when all have come to its end.
    """
    with contextlib.ExitStack() as stack:
        if not is_first():
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        yield directory
        multihost_utils.sync_global_devices("the end of an experiment")


def from_first(call: Callable[[], Value]) -> Value:
    """Calls a function in the first process, and returns its result, or raises its error, in all.

    Args:
      call: what only the first process can do; its results can be pickled.
    """
    if jax.process_count() == 1:
        return call()
    value, error = None, None
    if is_first():
        try:
            value = call()
        except Exception as raised:  # whatever it is: the others wait for an answer
            error = raised
    answer = pickle.loads(_broadcast(pickle.dumps((value, error))))
    if not is_first():
        value, error = answer
    if error is not None:
        raise error
    return value


def tree_from_first(call: Callable[[Tree], Tree], template: Tree) -> Tree:
    """Calls a function that makes a tree of arrays in the first process, and returns the tree in all.

    Args:
      call: template, with shardings on devices of the process that calls it -> tree of arrays that have them.
      template: `jax.ShapeDtypeStruct`s with shardings.

    Returns:
      A tree of arrays with the template's shardings.
    """
    if jax.process_count() == 1:
        return call(template)
    here = SingleDeviceSharding(jax.local_devices()[0])
    own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), template)
    found = from_first(lambda: on_host(jax.tree.leaves(call(own))))
    leaves, structure = jax.tree.flatten(template)
    return structure.unflatten(spread(array, leaf.sharding) for array, leaf in zip(found, leaves, strict=True))


def check_alike(job: Value) -> None:
    """Raises `ValueError` in all processes if one has another job than the first, as text."""
    mine = repr(job)
    same = multihost_utils.process_allgather(np.array([from_first(lambda: mine) == mine]))
    others = np.flatnonzero(~same.ravel()).tolist()
    if others:
        raise ValueError(
            f"process {', '.join(map(str, others))}: got another job than process 0 ({mine} is that of process "
            f"{jax.process_index()}); start all processes with the same command"
        )


def spread(tree: Tree, sharding: Sharding) -> Tree:
    """Puts arrays that every process has whole on the devices of all of them.

    Args:
      tree: of arrays of the host or of this process's devices, the same in every process.
      sharding: over any devices.

    Returns:
      A tree of global arrays.
    """

    def place(leaf) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(place, tree)


def share(tree: Tree, sharding: Sharding) -> Tree:
    """Puts arrays of the first process on the devices of all, as `spread` does; the others' differ, if by rounding."""
    return spread(from_first(lambda: on_host(tree)), sharding)


def on_host(tree: Tree) -> Tree:
    """Returns a tree whose arrays each process has whole, as NumPy arrays."""
    return jax.tree.map(np.asarray, tree)


def reachable(tree: Tree) -> Tree:
    """Returns a tree whose arrays this process can compute with alone: those on other processes' devices from the host.

    Args:
      tree: of arrays that are replicated, or on this process's devices.
    """
    return jax.tree.map(lambda leaf: leaf if leaf.is_fully_addressable else np.asarray(leaf), tree)


def _broadcast(message: bytes) -> bytes:
    """Returns the first process's bytes, in pieces of few sizes, each of which is compiled once."""
    high, low = multihost_utils.broadcast_one_to_all(np.array(divmod(len(message), CHUNK), np.int32)).tolist()
    total, received = high * CHUNK + low, []
    for begin in range(0, total, CHUNK):
        length = min(CHUNK, total - begin)
        piece = np.zeros(1 << max(10, (length - 1).bit_length()), np.uint8)
        if is_first():
            piece[:length] = np.frombuffer(message, np.uint8, length, begin)
        received.append(multihost_utils.broadcast_one_to_all(piece)[:length].tobytes())
    return b"".join(received)
