"""Compiled networks compute what the pruned ones do; what is chosen, what is skipped, and what the report says."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import sparsejax as sj
from sparsejax import inference

SIZE, SHARE = (8, 16), 0.75


def least(candidates):
    """Takes what stores least, and times nothing."""
    return inference.Verdict(min(candidates, key=lambda name: candidates[name].stored), {})


def balanced(inputs, outputs, seed=0, share=SHARE, size=SIZE):
    """A matrix of which every block column keeps the same number of random blocks."""
    rng, (rows, columns) = np.random.default_rng(seed), (inputs // size[0], outputs // size[1])
    kept = np.argsort(rng.random((rows, columns)), axis=0) < round((1 - share) * rows)
    w = rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)
    return jnp.asarray(np.where(np.kron(kept, np.ones(size)), w, 0), jnp.float32)


def scattered(inputs, outputs, share, seed=0):
    """A matrix with single zeros."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)
    return jnp.asarray(np.where(rng.random((inputs, outputs)) < share, 0, w), jnp.float32)


W, V, X = balanced(32, 64), balanced(64, 32, 1), laws.weights((6, 32), 2, scale=1.0)
BLOCKS = f"blocks {SIZE[0]}x{SIZE[1]}"
W_LAYER, V_LAYER = ("w", (32, 64), BLOCKS), ("v", (64, 32), BLOCKS)
MASK = W != 0


def recurrent(p, x):
    def turn(state, row):
        return jnp.tanh(row @ p["w"] + state @ p["u"]), state

    return jax.lax.scan(turn, jnp.zeros(64), x)


def twice(p, x):
    return jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"] @ p["v"])), (0, x))[1]


def attention_like(p, x):
    heads = jnp.einsum("bi,ihd->bhd", x, p["w"].reshape(32, 4, 16))
    return jnp.einsum("bhd,hdo->bo", jax.nn.relu(heads), p["v"].reshape(4, 16, 32))


# name: (fn, params, [(leaf, matrix, way)]); the argument is X.
NETWORKS = {
    "two layers": (lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"], {"w": W, "v": V}, [W_LAYER, V_LAYER]),
    "jitted and rematerialised": (
        lambda p, x: jax.checkpoint(lambda x: jax.jit(jax.nn.silu)(x @ p["w"]))(x) @ p["v"],
        {"w": W, "v": V},
        [W_LAYER, V_LAYER],
    ),
    "a vector": (lambda p, x: x[0] @ p["w"], {"w": W}, [W_LAYER]),
    "more axes": (lambda p, x: x.reshape(2, 3, 32) @ p["w"], {"w": W}, [W_LAYER]),
    "transposed weights": (lambda p, x: x @ p["w"].T, {"w": W.T}, [W_LAYER]),
    "weights on the left": (lambda p, x: p["w"].T @ x.T, {"w": W}, [W_LAYER]),
    "weights on the left, more axes": (
        lambda p, x: jnp.einsum("hdi,bi->hdb", p["w"].T.reshape(4, 16, 32), x),
        {"w": W},
        [W_LAYER],
    ),
    "heads": (attention_like, {"w": W, "v": V}, [W_LAYER, V_LAYER]),
    "masked in the network": (
        lambda p, x: x @ jnp.where(MASK, p["w"], 0),
        {"w": laws.weights((32, 64), 3)},
        [W_LAYER],
    ),
    "normalised in the network": (
        lambda p, x: x @ (p["scale"] * p["w"] / jnp.linalg.norm(p["w"])),
        {"w": W, "scale": jnp.full((1, 1), 3.0)},
        [("scale + w", (32, 64), BLOCKS)],
    ),
    "cast in the network": (
        lambda p, x: x.astype(jnp.bfloat16) @ p["w"].astype(jnp.bfloat16),
        {"w": W},
        [W_LAYER],
    ),
    "summed in float32": (
        lambda p, x: jnp.matmul(x.astype(jnp.bfloat16), p["w"], preferred_element_type=jnp.float32),
        {"w": W.astype(jnp.bfloat16)},
        [W_LAYER],
    ),
    "weights that are closed over": (
        lambda p, x: x @ W + p["b"][None],
        {"b": jnp.ones(64)},
        [("(constant)", *W_LAYER[1:])],
    ),
    "a scan": (recurrent, {"w": W, "u": balanced(64, 64, 4)}, [("u", (64, 64), BLOCKS), W_LAYER]),
    "a while loop": (twice, {"w": W, "v": V}, [W_LAYER, V_LAYER]),
    "a branch": (
        lambda p, x: jax.lax.cond(x.sum() > 0, lambda: x @ p["w"], lambda: jnp.tanh(x @ p["w"])),
        {"w": W},
        [W_LAYER, W_LAYER],
    ),
    "one array for parameters": (lambda p, x: x @ p, W, [("(array)", *W_LAYER[1:])]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_compiled_network_computes_the_same_from_the_blocks(name):
    fn, params, expected = NETWORKS[name]
    fast = inference.compile(fn, params, X, choose=least)
    layers = fast.report.layers
    assert sorted((one.leaf, one.shape, one.choice) for one in layers) == sorted(expected)
    assert fast.report.choice == "sparse"
    assert {one.stored for one in layers} == {1 - SHARE}
    wanted, got = jax.jit(fn)(params, X), fast(X)
    tolerance = 0.02 if "bfloat16" in str(jax.make_jaxpr(fn)(params, X)) else 1e-5
    for one, other in zip(*map(jax.tree.leaves, (wanted, got)), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(np.asarray(one, np.float32), np.asarray(other, np.float32), atol=tolerance)
    # As many products as are stored, and none of the whole matrices among the constants.
    dense = sj.report.multiply_adds(fn, params, X).total
    assert sj.report.multiply_adds(lambda _, x: fast.function(x), {}, X).total == dense * (1 - SHARE)
    constants = [np.size(one) for one in jax.make_jaxpr(fast.function)(X).consts]
    if name != "a branch":  # to which the matrix is still passed, for XLA to drop
        assert max(constants) <= max(np.prod(shape) for _, shape, _ in expected) * (1 - SHARE)


def test_the_numbers_are_those_of_a_product_in_float64():
    fast = inference.compile(lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"], {"w": W, "v": V}, X, choose=least)
    hidden = np.maximum(np.asarray(X, np.float64) @ np.asarray(W, np.float64), 0)
    np.testing.assert_allclose(fast(X), hidden @ np.asarray(V, np.float64), atol=1e-5)


def test_it_works_under_jit_vmap_and_grad():
    def fn(p, x):
        return jnp.tanh(x @ p["w"]) @ p["v"]

    params = {"w": W, "v": V}
    fast = inference.compile(fn, params, X, choose=least)
    np.testing.assert_allclose(jax.jit(lambda x: 2 * fast(x))(X), 2 * fn(params, X), atol=1e-5)
    np.testing.assert_allclose(jax.vmap(fast)(jnp.stack([X, 2 * X]))[1], fn(params, 2 * X), atol=1e-5)
    gradient = jax.grad(lambda x: jnp.square(fast(x)).sum())(X)
    np.testing.assert_allclose(gradient, jax.grad(lambda x: jnp.square(fn(params, x)).sum())(X), atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.8, 0.95])
def test_single_zeros_make_no_product_faster_and_are_not_said_to(share):
    offered = []

    def watching(candidates):
        offered.append(set(candidates))
        return least(candidates)

    fast = inference.compile(lambda p, x: x @ p, scattered(32, 256, share), X, choose=watching)
    assert fast.report.choice == fast.report.layers[0].choice == "dense"
    assert fast.report.layers[0].stored == 1.0
    assert set.union(*offered) == {"dense"}, "only the network was judged"


def test_many_single_zeros_and_a_large_batch_are_offered_csr():
    w, x = scattered(64, 96, 0.95), laws.weights((16, 64), 5, scale=1.0)

    def csr(candidates):
        return inference.Verdict("CSR" if "CSR" in candidates else min(candidates), {})

    fast = inference.compile(lambda p, x: x @ p, w, x, choose=csr)
    assert fast.report.layers[0].choice == "CSR"
    assert fast.report.layers[0].stored == np.count_nonzero(w) / w.size
    expected = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    np.testing.assert_allclose(fast(x), expected, atol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda x: fast(x).sum())(x), np.ones((16, 96)) @ np.asarray(w).T, atol=1e-5)
    for others in (
        inference.compile(lambda p, x: x @ p, w, x, choose=csr, exportable=True),
        inference.compile(lambda p, x: x @ p, w, x[:15], choose=csr),
        inference.compile(lambda p, x: x @ p, scattered(64, 96, 0.85), x, choose=csr),
        inference.compile(lambda p, x: x @ p, w.astype(jnp.bfloat16), x.astype(jnp.bfloat16), choose=csr),
    ):
        assert others.report.choice == "dense"
    kernel = {"dense": inference.Candidate(None, 1.0), "CSR": inference.Candidate(None, 0.01, plain=False)}
    assert inference.smallest(kernel).choice == "dense"


def offered_by(matrix):
    """The ways that are offered for a matrix, and how much each stores."""
    found = {}

    def watching(candidates):
        found.update({name: one.stored for name, one in candidates.items() if name not in ("dense", "sparse")})
        return inference.Verdict("dense", {})

    inference.compile(lambda p, x: x @ p, matrix, jnp.ones((2, matrix.shape[0])), choose=watching)
    return found


@pytest.mark.parametrize("size", [(1, 64), (8, 16), (4, 32), (32, 16), (16, 128)])
def test_the_sizes_that_are_offered_store_what_is_counted_by_hand(size):
    matrix = np.asarray(balanced(128, 128, 3, 0.75, size))
    ways = offered_by(matrix)
    assert min(ways.values()) == 0.25
    for name, stored in ways.items():
        length, width = map(int, name.removeprefix("blocks ").split("x"))
        columns = []
        for j in range(0, 128, width):
            living = [matrix[i : i + length, j : j + width].any() for i in range(0, 128, length)]
            columns.append(sum(living))
        assert stored == max(columns) * len(columns) * length * width / matrix.size <= 0.6


def test_inputs_that_nothing_needs_are_left_out():
    dead = np.asarray(laws.weights((64, 32), 1, scale=1.0)) * (np.arange(64) % 4 == 0)[:, None]
    assert offered_by(dead) == {"blocks 1x32": 0.25}


def clock(monkeypatch):
    """Replaces the clock by one that only stands for what candidates say that they take."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def taking(*milliseconds):
        calls = iter(milliseconds)
        last = [0.0]

        def run():
            last[0] = next(calls, last[0])
            now[0] += last[0] / 1000

        return run

    return taking


@pytest.mark.parametrize(("sparse", "choice"), [(2.0, "blocks"), (3.6, "blocks"), (3.7, "dense"), (9.0, "dense")])
def test_the_fastest_is_taken_if_it_beats_the_dense_one_clearly(monkeypatch, sparse, choice):
    taking = clock(monkeypatch)
    runs = {"dense": taking(50.0, 4.0), "slow": taking(99.0, 9.5), "blocks": taking(70.0, sparse)}
    verdict = inference.fastest({name: inference.Candidate(run, 0.1) for name, run in runs.items()}, rounds=5)
    assert verdict.choice == choice
    assert verdict.milliseconds == pytest.approx({"dense": 4.0, "slow": 9.5, "blocks": sparse}), "medians, warmed up"


def test_the_median_counts_and_the_margin_can_be_chosen(monkeypatch):
    taking = clock(monkeypatch)
    runs = {"dense": taking(0, 4, 4, 4, 40, 4), "blocks": taking(0, 3.9, 3.9, 99, 3.9, 3.9)}
    candidates = {name: inference.Candidate(run, 0.1) for name, run in runs.items()}
    verdict = inference.fastest(candidates, rounds=5, margin=1.0)
    assert verdict == ("blocks", pytest.approx({"dense": 4.0, "blocks": 3.9}))


@pytest.mark.parametrize(("at_most", "choice"), [(0.05, "dense"), (0.1, "b"), (0.125, "b"), (0.2, "b"), (1.0, "b")])
def test_the_smallest_stores_little_enough(at_most, choice):
    shares = {"dense": 1.0, "a": 0.2, "b": 0.1, "c": 0.1}
    candidates = {name: inference.Candidate(None, share) for name, share in shares.items()}
    assert inference.smallest(candidates, at_most) == (choice, {})


def test_a_network_that_is_slower_with_its_blocks_stays_dense():
    def pessimist(candidates):
        slower = {name: 1.0 + index for index, name in enumerate(candidates)}
        return inference.Verdict(list(candidates)[-1], slower)

    def fn(p, x):
        return x @ p

    fast = inference.compile(fn, W, X, choose=pessimist)
    assert fast.report.choice == "dense"
    assert fast.report.speedup == 1.0
    assert "the network stays dense" in str(fast.report)
    assert sj.report.multiply_adds(lambda _, x: fast.function(x), {}, X).total == 6 * 32 * 64


def test_it_is_timed_by_default_and_right_whatever_is_found():
    fast = inference.compile(lambda p, x: x @ p["w"], {"w": W}, jax.ShapeDtypeStruct(X.shape, X.dtype))
    (layer,) = fast.report.layers
    assert layer.milliseconds.keys() >= {"dense", BLOCKS}
    assert all(ms > 0 for ms in (*layer.milliseconds.values(), *fast.report.milliseconds.values()))
    assert layer.speedup == layer.milliseconds["dense"] / layer.milliseconds[layer.choice] >= 1
    np.testing.assert_allclose(fast(X), X @ W, atol=1e-5)


def test_the_report_is_a_table():
    params = {"w": W, "v": V, "k": laws.weights((32, 5), 1).at[:, 2].set(0)}
    times = {"dense": {"dense": 3.0, "sparse": 1.5}, BLOCKS: {"dense": 0.4, BLOCKS: 0.1, "blocks 1x16": 0.25}}

    def told(candidates):
        choice = BLOCKS if BLOCKS in candidates else "dense"
        return inference.Verdict(choice, times[choice])

    report = inference.compile(lambda p, x: x @ p["w"] @ p["v"] @ p["k"], params, X, choose=told).report
    head, rule, *rows, last, network, note = str(report).splitlines()
    assert rule == last
    assert set(rule) == {"-"}
    assert [row.split() for row in rows] == [
        ["w", "32x64", "6", "75.0%", *BLOCKS.split(), "25.0%", "0.4", "0.1", "4.00x", "blocks", "1x16", "0.25"],
        ["v", "64x32", "6", "75.0%", *BLOCKS.split(), "25.0%", "0.4", "0.1", "4.00x", "blocks", "1x16", "0.25"],
        ["k", "32x5", "6", "20.0%", "dense", "100.0%", "-", "-", "-"],
    ]
    assert head.split()[:5] == ["weights", "matrix", "rows", "zeros", "way"]
    assert network.split() == ["network", "sparse", "3", "1.5", "2.00x"]
    assert note.startswith("k: 1 of 5 outputs have no weights; sparsejax.shrink can cut them out")


CONV = laws.weights((3, 3, 4, 8), 1).at[..., :2].set(0)
STACK = jnp.stack([W, W])
convolve = partial(
    jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
)


def on_devices(w, x):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
    return jax.shard_map(jnp.matmul, mesh=mesh, in_specs=P(), out_specs=P())(x, w)


# name: (fn, params, how the notes begin).
NOTES = {
    "a convolution": (
        lambda p, x: convolve(x.reshape(6, 4, 2, 4), p),
        CONV,
        ["(array): stays dense, it is the kernel of a convolution (25.0% zeros)", "(array): 2 of 8 outputs have no"],
    ),
    "a stack": (
        lambda p, x: jnp.einsum("bi,bio->bo", x[:2], p),
        STACK,
        ["(array): stays dense, it is a stack of matrices"],
    ),
    "a loop over layers": (
        lambda p, x: jax.lax.scan(lambda h, w: (h, h @ w), x, p),
        STACK,
        ["(array): stays dense, a loop runs over it"],
    ),
    "a part for each device": (on_devices, W, ["shard_map: what it multiplies stays dense"]),
    "another dtype": (
        lambda p, x: jax.lax.dot(x, p.astype(jnp.bfloat16), preferred_element_type=jnp.float32),
        W,
        ["(array): stays dense, its product is one of bfloat16 and float32"],
    ),
    "nothing": (lambda p, x: x + p.sum(), W, []),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_stays_dense_is_said_and_computed_all_the_same(name):
    fn, params, notes = NOTES[name]
    fast = inference.compile(fn, params, X, choose=least)
    assert (fast.report.layers, fast.report.choice) == ((), "dense")
    assert len(fast.report.notes) == len(notes)
    assert all(found.startswith(note) for found, note in zip(fast.report.notes, notes, strict=True))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), fast(X), fn(params, X))


def test_units_without_weights_are_cut_out_first():
    def fn(p, x):
        return jax.nn.relu(x @ p["w"] + p["b"][None]) @ p["v"]

    dead = np.arange(64) % 4 == 1
    params = {"w": jnp.where(dead, 0, W), "b": jnp.where(dead, 0, 0.1), "v": jnp.where(dead[:, None], 0, V)}
    graph = sj.units.trace(fn, params, X)
    alive = {name: sizes > 0 for name, sizes in graph.pull(jax.tree.map(jnp.abs, params)).items()}
    small = sj.shrink(graph, params, alive)
    fast = inference.compile(graph.small(alive), small, X, choose=least)
    assert [one.shape for one in fast.report.layers] == [(32, 48), (48, 32)]
    np.testing.assert_allclose(fast(X), fn(params, X), atol=1e-5)


WRONG = {
    "traced parameters": (
        lambda: jax.jit(lambda p: inference.compile(lambda p, x: x @ p["w"], p, X)(X))({"w": W}),
        "leaf 'w' has no value",
    ),
    "shapes for parameters": (
        lambda: inference.compile(lambda p, x: x @ p, jax.ShapeDtypeStruct((32, 64), jnp.float32), X),
        "leaf '' has no value",
    ),
    "another batch": (
        lambda: inference.compile(lambda p, x: x @ p, W, X, choose=least)(X[:3]),
        r"shape=\(3, 32\).*but the network was compiled for.*shape=\(6, 32\)",
    ),
    "another dtype": (
        lambda: inference.compile(lambda p, x: x @ p, W, X, choose=least)(X.astype(jnp.bfloat16)),
        "the network was compiled for",
    ),
    "another argument": (
        lambda: inference.compile(lambda p, x: x @ p, W, X, choose=least)(X, X),
        "the network was compiled for",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name):
    wrong, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        wrong()
