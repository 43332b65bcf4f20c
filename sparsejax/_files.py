"""Files that are whole or not there: atomic writing and checked reading of safetensors, with a text beside the arrays.

`safetensors` is imported when a file is met, so that those who store nothing do without it.
"""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

# One entry: safetensors writes several in any order, and equal trees should make equal files.
_ENTRY = "sparsejax"

# In the header of a tensor. What is not among them (other float8s, int4, complex) is stored as its bytes.
NATIVE = {
    "bool": "BOOL",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bfloat16": "BF16",
}


class File(NamedTuple):
    """A file that is open: its text, its length in bytes, the names of its arrays, and `read(name, dtype, shape)`."""

    text: str
    length: int
    names: frozenset[str]
    read: Callable[[str, np.dtype, tuple[int | None, ...]], np.ndarray]


def damaged(reason: object) -> ValueError:
    """Returns the error of a file that is not what was written."""
    return ValueError(
        f"it is damaged, or not a file of sparsejax.storage: {reason}; copy it again from where it is whole, or save "
        f"the tree again"
    )


def expect(holds: bool, reason: str) -> None:
    """Raises `damaged(reason)` unless what must hold of a file does."""
    if not holds:
        raise damaged(reason)


def checksum(array: np.ndarray) -> str:
    """Returns the SHA-256 of an array's bytes in row-major order, as hexadecimal digits."""
    return hashlib.sha256(np.ravel(array).view(np.uint8)).hexdigest()


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], text: str) -> None:
    """Writes a file next to its place and moves it there when it is whole and on disk; else what was there stays."""
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

    target = os.path.realpath(path)  # a link stays, and what it points to is replaced, as with open()
    folder, name = os.path.split(target)
    if not os.path.isdir(folder) or os.path.isdir(target):
        reason = "is a folder; add a file name" if os.path.isdir(target) else f"lies in {folder!r}, which is no folder"
        raise FileNotFoundError(f"path={os.fspath(path)!r} {reason}, or make the folder with os.makedirs")
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        with open(temporary, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        save_file(dict(arrays), temporary, metadata={_ENTRY: text})
        with contextlib.suppress(OSError):  # newer safetensors take every right away from others
            os.chmod(temporary, mode)
        with safe_open(temporary, framework="np"):  # older ones write too long a header, and do not read it
            pass
        _flush(temporary, os.O_RDWR)
        os.replace(temporary, target)
    except SafetensorError as error:
        raise OSError(f"path={os.fspath(path)!r} could not be written, what was there is unchanged: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    with contextlib.suppress(OSError):  # the move is on disk when the folder is; not all systems can be asked for that
        _flush(folder, os.O_RDONLY)


def _flush(path: str, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[File]:
    """Opens a file of which only the header is read; raises `ValueError` if safetensors finds it damaged.

    The header's sizes are held against the file's length, so no array can be larger than the file.
    """
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise FileNotFoundError(f"path={os.fspath(path)!r} is not a file; make one with sparsejax.storage.save")
    try:
        with safe_open(path, framework="np") as file:

            def read(name: str, dtype: np.dtype, shape: tuple[int | None, ...]) -> np.ndarray:
                header = file.get_slice(name)
                found, sizes = header.get_dtype(), header.get_shape()
                fits = len(sizes) == len(shape) and all(n in (None, m) for n, m in zip(shape, sizes, strict=True))
                expect(
                    found == NATIVE[dtype.name] and fits, f"{name!r:.200} is {found} {sizes}, not {dtype} {[*shape]}"
                )
                return file.get_tensor(name)

            text = (file.metadata() or {}).get(_ENTRY)
            expect(text is not None, "it has no manifest; what others wrote is read with safetensors itself")
            yield File(text, os.path.getsize(path), frozenset(file.keys()), read)
    except SafetensorError as error:
        raise damaged(error) from error
