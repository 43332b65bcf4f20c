"""Compiles programs that are alike once, in experiments whose networks differ in their data only."""

import contextlib
import tempfile
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

EVERYTHING = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}


@contextlib.contextmanager
def once() -> Iterator[None]:
    """Lets JAX keep what it compiles for as long as this is entered; a compilation cache of your own stays in use."""
    if jax.config.jax_compilation_cache_dir is not None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        wanted = {"jax_compilation_cache_dir": folder, **EVERYTHING}
        before = {name: getattr(jax.config, name) for name in wanted}
        _configure(wanted)
        try:
            yield
        finally:
            _configure(before)


def _configure(values: dict) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # or JAX goes on with the folder it has decided on
