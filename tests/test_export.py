"""Pruned networks as files: exported by `jax.export`, loaded and run by a process that has nothing but JAX."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import sparsejax as sj

pytest.importorskip("flatbuffers", reason="jax.export serialises with it")

X = laws.weights((3, 8, 8, 2), 1, scale=1.0)
PARAMS = {
    "conv": laws.weights((3, 3, 2, 8), 2, scale=0.5),
    "scale": laws.weights(8, 3, shift=1.0),
    "in": {"kernel": laws.weights((8 * 16, 64), 4), "bias": laws.weights(64, 5)},
    "out": {"kernel": laws.weights((64, 10), 6), "bias": laws.weights(10, 7)},
}
LOADER = """
import pathlib, sys
import jax, numpy as np
from jax import export
x = np.load("x.npy")
for path in pathlib.Path(".").glob("*.stablehlo"):
    np.save(path.with_suffix(".npy"), export.deserialize(path.read_bytes()).call(x))
assert "sparsejax" not in sys.modules
"""


def fn(p, x):
    x = jax.lax.conv_general_dilated(x, p["conv"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = jax.nn.relu(x * p["scale"][None, None, None]).reshape(len(x), -1)
    x = jax.nn.gelu(x @ p["in"]["kernel"] + p["in"]["bias"][None])
    return x @ p["out"]["kernel"] + p["out"]["bias"][None]


def exported(function):
    return jax.export.export(jax.jit(function))(jax.ShapeDtypeStruct(X.shape, X.dtype))


def balanced(share):
    """The parameters with blocks of one layer gone, equally many of each column."""
    shares = sj.allocate.uniform(PARAMS, share, where="in/kernel")
    grain, scope = sj.select.block(8, 32), sj.select.per(-1)
    return sj.apply(sj.select.leafwise(sj.scores.magnitude(PARAMS), shares, grain, scope), PARAMS)


@pytest.fixture(scope="module")
def networks():
    """`{name: (function of the input, what it should compute)}`."""
    graph = sj.units.trace(fn, PARAMS, X)
    sizes = graph.pull(jax.tree.map(jnp.square, PARAMS))
    kept = {name: size > jnp.median(size) for name, size in sizes.items()}
    without = sj.apply(graph.push(kept), PARAMS)
    small, small_fn = sj.shrink(graph, PARAMS, kept), graph.small(kept)
    blocks = balanced(0.875)
    fast = sj.inference.compile(fn, blocks, X, choose=sj.inference.smallest, exportable=True)
    assert fast.report.choice == "sparse"
    return {
        "masked": (lambda x: fn(blocks, x), fn(blocks, X)),
        "shrunk": (lambda x: small_fn(small, x), fn(without, X)),
        "compiled": (fast.function, fn(blocks, X)),
    }


def test_a_process_without_sparsejax_runs_what_was_exported(networks, tmp_path):
    np.save(tmp_path / "x.npy", X)
    for name, (function, _) in networks.items():
        (tmp_path / f"{name}.stablehlo").write_bytes(exported(function).serialize())
    done = subprocess.run([sys.executable, "-c", LOADER], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, (_, expected) in networks.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), expected, atol=1e-5, err_msg=name)
    sizes = {name: (tmp_path / f"{name}.stablehlo").stat().st_size for name in networks}
    assert max(sizes["shrunk"], sizes["compiled"]) < sizes["masked"] / 1.5, "arrays that nobody reads are in the file"


def test_blocks_are_exported_for_devices_that_are_not_here(networks):
    function, _ = networks["compiled"]
    platforms = ["cpu", "cuda", "tpu"]
    whole = jax.export.export(jax.jit(function), platforms=platforms)(jax.ShapeDtypeStruct(X.shape, X.dtype))
    assert jax.export.deserialize(whole.serialize()).platforms == tuple(platforms)


def test_csr_cannot_be_exported_and_is_left_out_on_request():
    w = jnp.where(jnp.arange(64 * 64).reshape(64, 64) % 19 == 0, 1.0, 0.0)
    x = jnp.ones((64, 64))

    def csr(candidates):
        return sj.inference.Verdict("CSR" if "CSR" in candidates else next(iter(candidates)), {})

    fast = sj.inference.compile(lambda p, x: x @ p, w, x, choose=csr)
    assert fast.report.layers[0].choice == "CSR"
    with pytest.raises(ValueError, match="custom call"):
        jax.export.export(jax.jit(fast.function))(x).serialize()
    plain = sj.inference.compile(lambda p, x: x @ p, w, x, choose=csr, exportable=True)
    jax.export.export(jax.jit(plain.function))(x).serialize()
