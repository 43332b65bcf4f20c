"""Trees in files: parameters, masks and small networks, compact, without pickle, and whole or not there at all.

A file is one of safetensors. A leaf is in it as it is, `dense/NAME`, or without its zeros: `mask/NAME`, a bit for each
entry of its mask, and `values/NAME`, the entries that the mask keeps in row-major order; NAME as in
`sparsejax.tree.named`. The text `sparsejax` of its header is a checksum and a manifest in JSON: the tree, shapes,
dtypes, the checksums of all arrays, the versions of the format and the library, and what the caller adds.

Everything is done by NumPy on the host, nothing is compiled.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsejax import _files, _manifest, _packing, _structures, masks, tree
from sparsejax._files import expect
from sparsejax._manifest import PADDING, Manifest
from sparsejax._types import Mask, Params

__all__ = ["Stored", "load", "save"]


class Stored(NamedTuple):
    """A tree that was loaded: `params`, and the `mask`, the `kept` units and the `meta` saved with it, or `None`.

    Arrays are NumPy's and writable, whatever they were; numbers are Python's if they were; PRNG keys are JAX's.

    >>> Stored({"kernel": np.ones((2, 3))}, mask=None, kept=None, meta={"method": "magnitude"}).meta["method"]
    'magnitude'
    """

    params: Params
    mask: Mask | None
    kept: Mapping[str, np.ndarray] | None
    meta: dict[str, Any] | None


def save(
    path: str | os.PathLike,
    params: Params,
    mask: Mask | None = None,
    meta: Mapping[str, Any] | None = None,
    kept: Mapping[str, Any] | None = None,
) -> None:
    """Saves a tree of parameters in one file, without the zeros that were pruned.

    With a mask, `sparsejax.masks.apply(mask, params)` is saved, and the mask at its own shape: a leaf takes a bit for
    each entry of its mask and the values that it keeps. Without a mask, every leaf is searched for zeros: where that
    is smaller by 256 bytes or more, it takes a bit for each of its entries and the values whose bits are not those of
    +0, so that -0.0 and NaN come back as they were.

    The file is written under another name in the same folder, `.NAME.*.partial`, and takes its place when it is whole
    and on disk. Whatever happens before, what was there is unchanged. A killed process leaves such a part behind (with
    some versions of safetensors also one called `.tmp*`), which nothing reads and nothing stumbles over.

    Args:
      path: the file to make or to replace.
      params: the tree: arrays of NumPy or JAX, on any devices of this process, of bool, integer, float or complex
        dtypes from 2 bits to 128; typed PRNG keys; Python numbers. Of dicts with keys all str or all int, OrderedDicts,
        lists, tuples, None, and NamedTuples and other nodes as `load` says.
      mask: see `sparsejax.masks`; the mask of PRNG keys is `True`.
      meta: what else to remember, such as the method and its settings: a dict that JSON can hold. As JSON has it, a
        tuple comes back as a list, and a key as a str.
      kept: `{group: bool (size,)}`, the units of a network that `sparsejax.shrink` made smaller.

    Raises:
      ValueError: `mask` is not a mask for `params`; a leaf has no value (inside `jit`), lies on devices of other
        processes, or has another dtype; a key, `meta` or `kept` is not as above.
      FileNotFoundError: there is no folder for the file.
      OSError: it cannot be written.

    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "net.safetensors")
    >>> save(path, {"kernel": np.eye(100)}, meta={"sparsity": 0.99})
    >>> os.path.getsize(path) < 4_000, load(path).params["kernel"].sum().item(), load(path).meta
    (True, 100.0, {'sparsity': 0.99})
    """
    node, leaves = _structures.describe(jax.tree.structure(params)), tree.named(params)
    if mask is not None:
        masks.check(mask, params)
    if not isinstance(kept, Mapping | None):
        raise ValueError(f"kept={kept!r:.200} must be {{group: bool (size,)}}, as it was for sparsejax.shrink")
    given = dict.fromkeys(leaves) if mask is None else tree.named(mask)
    entries, arrays = [], {}
    for name, leaf in leaves.items():
        entry, parts = _packing.pack(name, leaf, given[name])
        entries.append(entry)
        arrays |= parts
    units = {name: _alive(name, alive) for name, alive in (kept or {}).items()}
    arrays |= {f"kept/{name}": _packing.to_bits(alive) for name, alive in units.items()}
    sizes = None if kept is None else {name: alive.size for name, alive in units.items()}
    if missing := _manifest.missing_bytes(entries, sizes, sum(array.nbytes for array in arrays.values())):
        arrays[PADDING] = np.zeros(missing, np.uint8)
    checksums = {name: _files.checksum(array) for name, array in arrays.items()}
    manifest = Manifest(node, tuple(entries), mask is not None, sizes, meta, checksums)
    _files.write(path, arrays, _manifest.dump(manifest))


def load(path: str | os.PathLike, like: Any = None) -> Stored:
    """Loads what `save` saved, bit for bit.

    Nothing in the file is executed, imported or believed: every size is held against the file's length before memory is
    taken, at most 1024 times that length and a mebibyte, and every array against its checksum, which finds damage but
    does not say who wrote it.

    Dicts, OrderedDicts, lists, tuples and None come back as they were. A NamedTuple comes back if its class is loaded
    under the name it had, at the top of its module and not derived from another class, as those of this library and of
    optax are. Anything else (a class in a function, a FrozenDict, an Equinox module, a dataclass) needs `like`.

    Args:
      path: the file.
      like: a tree of the structure that was saved, used in place of the one in the file; its leaves have the same names
        and may be anything, such as `jax.eval_shape(init, key)`. Their shapes are not looked at, as those of a small
        network differ.

    Returns:
      A `Stored`.

    Raises:
      ValueError: the file is damaged, not one of these, or of a newer format; the structure cannot be built without
        `like`, or `like` has other leaves.
      FileNotFoundError: there is no such file.

    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "net.safetensors")
    >>> save(path, [np.ones((2, 3))], mask=[np.array([True, False, True])])
    >>> load(path).params[0].tolist(), load(path).mask[0].tolist()
    ([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]], [True, False, True])
    """
    try:
        with _files.opened(path) as file:
            return _restore(file, like)
    except ValueError as error:
        raise ValueError(f"path={os.fspath(path)!r} cannot be loaded: {error}") from error


def _restore(file: _files.File, like: Any) -> Stored:
    manifest = _manifest.parse(file.text)
    leaves, sizes, checksums = manifest.leaves, manifest.kept, manifest.checksums
    expect(not _manifest.missing_bytes(leaves, sizes, file.length), "it claims more memory than such a file can take")
    structure = _structure(manifest, like)
    names = {name for entry in leaves for name in entry.arrays} | {f"kept/{name}" for name in sizes or {}}
    expect(names == file.names - {PADDING} and file.names == checksums.keys(), "it has other arrays than its manifest")

    def read(name: str, dtype: np.dtype, shape: tuple[int | None, ...]) -> np.ndarray:
        array = file.read(name, dtype, shape)
        expect(_files.checksum(array) == checksums[name], f"the checksum of {name!r:.200} is wrong")
        return array

    if PADDING in file.names:
        read(PADDING, np.dtype(np.uint8), (None,))
    restored = [_packing.unpack(entry, read) for entry in leaves]
    params = jax.tree.unflatten(structure, [leaf for leaf, _ in restored])
    mask = jax.tree.unflatten(structure, [keep for _, keep in restored]) if manifest.masked else None
    kept = sizes and {name: _packing.from_bits(read, f"kept/{name}", (size,)) for name, size in sizes.items()}
    return Stored(params, mask, kept, manifest.meta)


def _structure(manifest: Manifest, like: Any) -> jax.tree_util.PyTreeDef:
    names = [entry.name for entry in manifest.leaves]
    if like is None:
        like = _structures.build(manifest.tree)
        expect(list(tree.named(like)) == names, "its tree has other leaves than its list of leaves")
    elif (found := list(tree.named(like))) != names:
        missing, added = [n for n in names if n not in found], [n for n in found if n not in names]
        raise ValueError(
            f"like must have the leaves of the tree that was saved, but it lacks {missing[:3]} and adds {added[:3]}, "
            f"or has them in another order; the leaves in the file are {names[:20]}"
        )
    return jax.tree.structure(like)


def _alive(name: Any, alive: Any) -> np.ndarray:
    alive = _packing.fetch("kept", name, alive)
    if not isinstance(name, str) or alive.dtype != np.bool_ or alive.ndim != 1:
        raise ValueError(
            f"kept[{name!r}] is {alive.dtype} of shape {alive.shape}; kept must be {{group: bool (size,)}}, as it was "
            f"for sparsejax.shrink"
        )
    return alive
