"""What an experiment computes once and finds again when it goes on, elsewhere too: networks from which others start.

A run's folder knows the networks that it started from bit for bit. Those that were cut by sums over data differ in bits
where these are added up in another order, as on another number of cores; so the first ones are kept.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import chex
import jax
import numpy as np

import sparsejax as sj
from experiments import processes


def fingerprint(tree: chex.ArrayTree) -> str:
    """Returns a short hash of the leaves' contents."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def once(folder: Path, of: chex.ArrayTree, compute: Callable[[], chex.ArrayTree]) -> chex.ArrayTree:
    """Returns what a function makes of arrays, computed once for good; all processes call it alike.

    Args:
      folder: in which it is kept, on a disk of the first process.
      of: everything that the result depends on, arrays and numbers; with others the function is called again.
      compute: makes a tree of arrays, of dicts, lists and tuples.

    Returns:
      The tree, of NumPy arrays: what the first process has or had.

    Raises:
      ValueError: the file is damaged; delete it.
    """
    path = folder / f"{processes.from_first(lambda: fingerprint(of))}.safetensors"
    if not processes.from_first(path.exists):
        tree = processes.on_host(compute())
        processes.from_first(lambda: _save(path, tree))
    return processes.from_first(lambda: sj.storage.load(path).params)


def _save(path: Path, tree: chex.ArrayTree) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sj.storage.save(path, tree)
