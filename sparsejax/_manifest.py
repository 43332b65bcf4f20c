"""What a file says of itself: the tree, its leaves, and a checksum of every array, as one line of JSON behind its own.

Nothing it says is believed before it has been checked: a file may have been damaged, or made to do harm.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sparsejax._files import damaged, expect
from sparsejax._packing import DTYPES, Entry
from sparsejax._structures import Node
from sparsejax._types import aligned_shape
from sparsejax._version import __version__

FORMAT = 1
"""The format of the files; larger where an older library would misread them."""

PADDING = "padding"
"""The array of zeros that makes a file long enough; what has a slash is another array."""

_FREE, _EXPANSION = 2**20, 1024  # bytes that any file may take in memory, and that a byte of it adds
_RANK = 64  # NumPy's highest
_LARGEST = 2**63  # bytes of an array, which NumPy counts in int64


class Manifest(NamedTuple):
    """What is written beside the arrays."""

    tree: Node
    leaves: tuple[Entry, ...]
    masked: bool
    kept: Mapping[str, int] | None
    meta: Mapping[str, Any] | None
    checksums: Mapping[str, str]


def missing_bytes(leaves: Iterable[Entry], kept: Mapping[str, int] | None, length: int) -> int:
    """Returns how much too short a file is for what it unpacks to: 0 if it is not.

    Else a few bytes, a scalar mask that is false, could claim any amount of memory.
    """
    unpacked = sum(entry.unpacked for entry in leaves) + sum((kept or {}).values())
    return max(0, -((_FREE - unpacked) // _EXPANSION) - length)


def dump(manifest: Manifest) -> str:
    """Returns the text of a manifest; raises `ValueError` if `meta` is not a dict of what JSON holds."""
    if not isinstance(manifest.meta, Mapping | None):
        raise ValueError(f"meta={manifest.meta!r:.200} must be a dict; put it into one, meta={{'method': ...}}")
    try:
        meta = json.dumps(manifest.meta and dict(manifest.meta), allow_nan=False)
        meta = json.loads(meta, object_pairs_hook=_unique)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"meta cannot be written as JSON: {error!s:.200}; pass str, int, finite float, bool, None, and lists and "
            f"dicts of them (x.tolist() of an array, str(x) of anything else)"
        ) from error
    leaves = [entry._asdict() for entry in manifest.leaves]
    fields = {"format": FORMAT, "library": __version__, **manifest._asdict(), "leaves": leaves, "meta": meta}
    text = json.dumps(fields, separators=(",", ":"))
    return f"{_digest(text)} {text}"


def parse(text: str) -> Manifest:
    """Returns the manifest of a text; raises `ValueError` if it is damaged, malformed or of a newer format."""
    stated, _, text = text.partition(" ")
    expect(_digest(text) == stated, "the checksum of its manifest is wrong")
    try:
        fields = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise damaged(f"its manifest cannot be read: {error!s:.200}") from error
    expect(type(fields) is dict and type(fields.get("format")) is int, "its manifest has no format")
    if fields["format"] > FORMAT:
        raise ValueError(
            f"its format is {fields['format']}, written by sparsejax {fields.get('library')!r:.40}; this is sparsejax "
            f"{__version__}, which reads formats up to {FORMAT}: install a newer one"
        )
    expect(fields["format"] == FORMAT and fields.keys() == {"format", "library", *Manifest._fields}, "its manifest")
    manifest = Manifest(*(fields[name] for name in Manifest._fields))
    kept, meta = manifest.kept, manifest.meta
    expect(type(manifest.leaves) is list and type(manifest.masked) is bool, "its leaves are not a list")
    expect(kept is None or (type(kept) is dict and _are_sizes(kept.values())), "kept is not a dict of sizes")
    expect(meta is None or type(meta) is dict, "meta is not a dict")
    expect(type(manifest.checksums) is dict, "its checksums are not a dict")
    return manifest._replace(leaves=tuple(_entry(leaf, manifest.masked) for leaf in manifest.leaves))


def _entry(fields: Any, masked: bool) -> Entry:
    expect(type(fields) is dict and fields.keys() == {*Entry._fields}, "a leaf in its manifest is not one")
    entry = Entry(**fields)
    expect({*map(type, [entry.name, entry.dtype])} == {str}, "a leaf in its manifest has no name")
    expect({*map(type, [entry.number, entry.packed])} == {bool}, "a leaf in its manifest is not one")
    name, keys = f"leaf {entry.name!r:.200}", entry.implementation is not None
    expect(not keys or type(entry.implementation) is str, f"{name} has no PRNG")
    expect(entry.dtype in DTYPES, f"{name} has dtype {entry.dtype!r:.40}")
    expect(_is_shape(entry.shape, DTYPES[entry.dtype].itemsize), f"{name} has shape {entry.shape!r:.200}")
    shape, mask = tuple(entry.shape), entry.mask
    expect(not entry.number or shape == (), f"{name} is a number of shape {shape}")
    expect(masked == (mask is not None), f"{name} has a mask and the tree has none, or the other way round")
    if mask is not None:
        masks = shape[:-1] if keys else shape
        expect(
            _is_shape(mask, 1) and aligned_shape(tuple(mask), masks) is not None, f"{name} has a mask of another shape"
        )
        mask = tuple(mask)
    return entry._replace(shape=shape, mask=mask)


def _is_shape(shape: Any, itemsize: int) -> bool:
    if type(shape) is not list or len(shape) > _RANK or not _are_sizes(shape):
        return False
    return math.prod(n for n in shape if n) * itemsize < _LARGEST


def _are_sizes(sizes: Iterable[Any]) -> bool:
    return all(type(n) is int and n >= 0 for n in sizes)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"the key {key!r} is there twice")
        fields[key] = value
    return fields


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
