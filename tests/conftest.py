"""Strict JAX for every test: 8 CPU devices, no silent promotion, one compilation cache, little optimisation."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

# Before JAX is imported: it reads these once. XLA's optimiser is most of a test's time, and tests are small.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# The newer emitters of 0.10 compile loops of reductions three times as slowly; later versions have no others.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    * version("jaxlib").startswith("0.10."),
)
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest

# Tracing makes millions of objects that live on; looking for garbage among them is a twentieth of the time.
gc.set_threshold(200_000, 20, 100)


@pytest.fixture(autouse=True)
def strict():
    """Makes an implicit promotion of dtypes or ranks an error."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def relaxed(strict):
    """Experiments are user code: JAX's ordinary promotion holds in them."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def one_device(monkeypatch):
    """Lets experiments find one device: eight that are simulated wait for each other half of the time."""
    (first, *_) = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda *backend: [first])


@pytest.fixture
def random_data(tmp_path, monkeypatch):
    """Lets every data set of TensorFlow Datasets have eight random images of its real shape."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.testing import mocking

    # tfds 4.9.10 calls this function of its mock without `self`, and so cannot read batches.
    monkeypatch.setattr(mocking, "_getitems", lambda keys, generator: [generator[key] for key in keys])
    with tfds.testing.mock_data(num_examples=8, data_dir=str(tmp_path)):
        yield
