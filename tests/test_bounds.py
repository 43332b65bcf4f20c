"""Thresholds and learned bounds: the published vectors, loops in float64, and the laws of every tree and dtype."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import laws
import numpy as np
import optax
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparsejax import bounds, losses, ops, tree

AS3 = {"kernel": jnp.array([[0.3, -0.1, 0.05, -0.6]])}
# Vector AS1.
RELATIVE = {
    0.5: 0.674489750196,
    0.51: 0.690308823933,
    0.54: 0.738846849185,
    0.8: 1.281551565545,
    0.85: 1.439531470938,
    0.9: 1.644853626951,
    0.95: 1.959963984540,
    0.99: 2.575829303549,
}


@pytest.mark.parametrize("sparsity", RELATIVE)
def test_init_is_the_published_quantile_and_sparsities_undoes_it(sparsity):
    start = bounds.init({"kernel": jnp.ones((30, 40))}, sparsity)
    np.testing.assert_allclose(start["kernel"], RELATIVE[sparsity], rtol=1e-5)
    np.testing.assert_allclose(bounds.sparsities(start)["kernel"], sparsity, rtol=1e-5)


@pytest.mark.parametrize("target", [0.5, 0.85, 0.9])
def test_the_authors_start_is_six_tenths_of_the_target(target):
    """Vector AS14."""
    start = bounds.init({"kernel": jnp.ones((30, 40))}, 0.6 * target)
    expected = {0.5: 0.385320466408, 0.85: 0.690308823933, 0.9: 0.738846849185}[target]
    np.testing.assert_allclose(start["kernel"], expected, rtol=1e-5)


def test_gaussian_prunes_the_share_of_a_gaussian_sample():
    """Vector AS11: the bound to float32, and the realised share."""
    z = np.random.default_rng(0).standard_normal(100000) * 0.03
    w = jnp.asarray(z - z.mean(), jnp.float32)
    bound = bounds.gaussian(w, 0.85)
    np.testing.assert_allclose(bound, 0.043191709656, rtol=1e-5)
    np.testing.assert_allclose(np.mean(np.abs(w) < bound), 0.85122, atol=2e-5)


def test_gaussian_takes_sigma_about_the_mean():
    w = laws.weights((30, 40), shift=5.0)
    _, sigma = oracles.centred_statistics(w)
    np.testing.assert_allclose(bounds.gaussian(w, 0.85), sigma * RELATIVE[0.85], rtol=1e-5)


def test_bisection_is_the_published_vector():
    """Vector AS10: every bound in (0.11, 0.2] is right."""
    w = jnp.array([0.9, -0.05, 0.3, -0.7, 0.02, 0.11, -0.42, 0.6, -0.2, 0.08])
    assert 0.11 < float(bounds.bisection(w, 0.4, tolerance=0.01)) <= 0.2


HOSTILE = {
    "gaussian": laws.weights(3000, 1),
    "one outlier": jnp.concatenate([laws.weights(3000, 2), jnp.array([1e30])]),
    "tiny": laws.weights(3000, 3) * 1e-30,
    "sixty decades": jnp.asarray(10.0 ** np.random.default_rng(4).uniform(-30, 30, 3000), jnp.float32),
    "half zeros": jnp.where(jnp.arange(3000) % 2 == 0, 0, laws.weights(3000, 5)),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.85, 0.99, 1.0])
def test_bisection_reaches_its_tolerance_on_any_data(name, sparsity):
    w = HOSTILE[name]
    bound = float(_bisection(w, sparsity))
    attained, best = oracles.share_below(w, bound), oracles.nearest_share(w, sparsity)
    assert abs(attained - sparsity) < max(1e-3, abs(best - sparsity) + 1e-9)
    # No weight lies on the bound, so the operators' `|w| > bound` prunes the same weights.
    assert oracles.share_below(w, bound) == np.mean(np.asarray(ops.hard_shrink(w, bound)) == 0) or attained == 0


_bisection = jax.jit(bounds.bisection)


@given(
    w=hnp.arrays(np.float32, 24, elements=st.sampled_from([0.0, 0.25, -0.25, 0.5, 1.0, -2.0])),
    sparsity=st.floats(0, 1, width=32),
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_bisection_finds_the_nearest_share_under_ties(w, sparsity):
    bound = float(_bisection(w, sparsity))
    best = oracles.nearest_share(w, sparsity)
    np.testing.assert_allclose(abs(oracles.share_below(w, bound) - sparsity), abs(best - sparsity), atol=1e-3)


@pytest.mark.parametrize("function", [bounds.gaussian, bounds.bisection])
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_thresholds_prune_the_share_in_every_dtype_and_pass_no_gradient(function, dtype):
    w = laws.weights((60, 50), 6, dtype)
    bound = jax.jit(function)(w, 0.85)
    assert bound.dtype == jnp.float32
    np.testing.assert_allclose(np.mean(np.asarray(ops.hard_shrink(w, bound)) == 0), 0.85, atol=0.02)
    assert not np.asarray(jax.grad(lambda w: function(w, 0.85))(w), np.float32).any()


@pytest.mark.parametrize("function", [bounds.gaussian, bounds.bisection])
def test_thresholds_take_traced_and_batched_budgets(function):
    w, shares = laws.weights((60, 50), 7), jnp.array([0.1, 0.5, 0.9])
    batched = jax.vmap(function, in_axes=(None, 0))(w, shares)
    np.testing.assert_allclose(batched, [function(w, s) for s in (0.1, 0.5, 0.9)], rtol=1e-6)


@pytest.mark.parametrize(("bound", "expected"), [(1.0, [0.3875, 0, 0, -0.5125]), (0.25, [0.3875, 0, 0.1375, -0.5125])])
def test_shrink_is_the_published_vector(bound, expected):
    """Vector AS3: forward, straight-through gradient (Eq. 16) and bound gradient (Eq. 18)."""
    learned, g = {"kernel": jnp.float32(bound)}, jnp.array([[1.0, 2.0, 3.0, 4.0]])
    out, pullback = jax.vjp(bounds.shrink, AS3, learned)
    np.testing.assert_allclose(out["kernel"], [expected], rtol=1e-6)
    dw, db = pullback({"kernel": g})
    np.testing.assert_array_equal(dw["kernel"], g)
    np.testing.assert_allclose(db["kernel"], {1.0: -0.3875, 0.25: 0.1}[bound], rtol=1e-5)


def test_shrink_without_centring_thresholds_the_weights_themselves():
    out = bounds.shrink(AS3, {"kernel": jnp.float32(0.5)}, center=False)["kernel"]
    np.testing.assert_allclose(out, oracles.shrink(AS3["kernel"], 0.5, center=False)[0], rtol=1e-6)


@pytest.mark.parametrize("view", laws.TREES)
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_shrink_and_finalize_are_the_loop_on_every_tree(view, dtype):
    make, names = laws.TREES[view]
    params = make(dtype)
    learned = bounds.init(params, 0.8)
    assert list(learned) == names
    out = jax.jit(bounds.shrink)(params, learned)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, params)
    chex.assert_trees_all_close(bounds.finalize(params, learned), out, rtol=0, atol=float(jnp.finfo(dtype).eps) / 10)
    before, after = tree.named(params), tree.named(out)
    for name, leaf in before.items():
        if name not in names:
            np.testing.assert_array_equal(after[name], leaf)
            continue
        expected, threshold = oracles.shrink(np.asarray(leaf, np.float64), RELATIVE[0.8])
        got, precision = np.asarray(after[name], np.float64), float(jnp.finfo(dtype).eps)
        # A weight within rounding of the threshold may go either way; all others must agree.
        sure = np.abs(np.abs(leaf.astype(jnp.float32)) - threshold) > 4 * precision
        np.testing.assert_allclose(got[sure], expected[sure], rtol=4 * precision, atol=precision / 5)


@pytest.mark.parametrize("view", laws.TREES)
def test_gradients_of_every_tree_are_the_loop(view):
    make, names = laws.TREES[view]
    params = make(jnp.float32)
    learned = bounds.init(params, 0.8)
    g = jax.tree.map(lambda p: laws.weights(p.shape, 12, scale=1.0), params)
    dw, db = jax.vjp(bounds.shrink, params, learned)[1](g)
    chex.assert_trees_all_equal(dw, g)
    for name in names:
        expected = oracles.bound_gradient(tree.named(params)[name], RELATIVE[0.8], tree.named(g)[name])
        np.testing.assert_allclose(db[name], expected, rtol=1e-4)


@pytest.mark.parametrize("center", [True, False])
def test_kept_counts_what_shrink_keeps(center):
    make, names = laws.TREES["two layers"]
    params = make(jnp.float32)
    learned = bounds.init(params, 0.8)
    got = jax.jit(partial(bounds.kept, center=center))(params, learned)
    for name in names:
        pruned, _ = oracles.shrink(tree.named(params)[name], RELATIVE[0.8], center)
        np.testing.assert_allclose(got[name], np.mean(pruned != 0), atol=1e-3)


@pytest.mark.parametrize("counted", [True, False])
def test_a_counted_budget_is_met_by_weights_that_are_no_gaussian(counted):
    """Under the model alone, heavy tails end where the Gaussian's bound leaves them, far beyond the target."""
    values = np.random.default_rng(16).laplace(size=(60, 50)) ** 3
    without = 1 - np.mean(oracles.shrink(values, RELATIVE[0.85])[0] != 0)
    assert without > 0.9
    params = {"kernel": jnp.asarray(values, jnp.float32)}
    learned = bounds.init(params, 0.5)
    tx = optax.chain(optax.sgd(0.02, 0.9), bounds.keep_in_range())

    def loss(learned):
        kept = bounds.kept(params, learned) if counted else None
        return 10 * losses.squared_budget(losses.density(learned, None, kept), 0.15)

    def step(carry, _):
        learned, state = carry
        updates, state = tx.update(jax.grad(loss)(learned), state, learned)
        return (optax.apply_updates(learned, updates), state), None

    (learned, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=500))((learned, tx.init(learned)))
    zeros = np.mean(bounds.finalize(params, learned)["kernel"] == 0)
    np.testing.assert_allclose(zeros, 0.85 if counted else without, atol=0.005)


def test_without_straight_through_pruned_weights_and_bounds_get_no_gradient():
    params = {"kernel": laws.weights((30, 40))}
    f = partial(bounds.shrink, operator=ops.hard_threshold)
    out, pullback = jax.vjp(f, params, bounds.init(params, 0.8))
    g = {"kernel": laws.weights((30, 40), 13)}
    dw, db = pullback(g)
    np.testing.assert_array_equal(dw["kernel"], np.where(out["kernel"] != 0, g["kernel"], 0))
    assert float(db["kernel"]) == 0.0


@pytest.mark.parametrize("center", [True, False])
def test_search_prunes_the_share_of_every_layer(center):
    params, names = laws.TREES["two layers"][0](jnp.float32), laws.TREES["two layers"][1]
    found = jax.jit(partial(bounds.search, center=center))(params, 0.9)
    out = tree.named(bounds.finalize(params, found, center=center))
    for name in names:
        np.testing.assert_allclose(np.mean(out[name] == 0), 0.9, atol=1e-3)


def test_small_leaves_stay_dense():
    params = {"large": laws.weights((25, 40)), "small": laws.weights((27, 37))}
    assert list(bounds.init(params, 0.5)) == ["large"]
    assert list(bounds.init(params, 0.5, min_size=999)) == ["large", "small"]
    assert list(bounds.init(jax.eval_shape(lambda: params), 0.5)) == ["large"]


def test_one_trace_serves_every_bound_and_sparsity():
    params = laws.TREES["dict"][0](jnp.float32)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(sparsity):
        return bounds.shrink(params, bounds.init(params, sparsity))

    zeros = [int((step(jnp.float32(s))["Dense_0"]["kernel"] == 0).sum()) for s in (0.1, 0.5, 0.9)]
    assert zeros == sorted(zeros)
    assert zeros[0] < zeros[2]


def test_one_and_eight_devices_prune_the_same_weights():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))
    params = {"kernel": laws.weights((32, 40))}
    sharded = jax.device_put(params, sharding)
    learned = bounds.init(params, 0.8)
    out = jax.jit(bounds.shrink)(sharded, learned)["kernel"]
    assert out.sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_array_equal(out == 0, bounds.shrink(params, learned)["kernel"] == 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_keep_in_range_ends_in_range_whatever_the_update(dtype):
    rng = np.random.default_rng(14)
    values = {"b": jnp.asarray(rng.uniform(1e-3, 5, 4000), dtype)}
    step = {"b": jnp.asarray(rng.standard_normal(4000) * 10.0 ** rng.uniform(-6, 3, 4000), dtype)}
    values = jax.tree.map(lambda v: jnp.clip(v, jnp.asarray(1e-3, dtype), jnp.asarray(5.0, dtype)), values)
    tx = bounds.keep_in_range(float(jnp.asarray(1e-3, dtype)), 5.0)
    updates, _ = jax.jit(tx.update)(step, tx.init(values), values)
    after = optax.apply_updates(values, updates)["b"]
    assert after.dtype == dtype
    assert float(after.min()) >= float(jnp.asarray(1e-3, dtype))
    assert float(after.max()) <= 5.0
    free = values["b"] + step["b"]
    untouched = (free >= jnp.asarray(1e-3, dtype)) & (free <= 5.0)
    np.testing.assert_array_equal(updates["b"][untouched], step["b"][untouched])


def test_a_partitioned_chain_learns_the_bounds_to_the_budget():
    """The recipe of the module's head: weights with decay, bounds with a lower rate, no decay, kept in range."""
    params = {"layer": {"kernel": laws.weights((30, 40)), "bias": jnp.zeros(40)}}
    trained = {"params": params, "bounds": bounds.init(params, 0.6 * 0.85)}
    labels = {"params": "weights", "bounds": "bounds"}
    tx = optax.partition(
        {
            "weights": optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, 0.9)),
            "bounds": optax.chain(optax.sgd(0.01, 0.9), bounds.keep_in_range()),
        },
        labels,
    )
    target = laws.weights((30, 40), 15)

    def loss(trained):
        pruned = bounds.shrink(trained["params"], trained["bounds"])
        task = jnp.mean((pruned["layer"]["kernel"] - target) ** 2)
        return task + 10 * losses.squared_budget(losses.density(trained["bounds"]), 0.15)

    @jax.jit
    def step(trained, state):
        updates, state = tx.update(jax.grad(loss)(trained), state, trained)
        return optax.apply_updates(trained, updates), state

    state = tx.init(trained)
    structure = jax.tree.structure(state)
    for _ in range(300):
        trained, state = step(trained, state)
    assert jax.tree.structure(state) == structure
    zeros = np.mean(bounds.finalize(trained["params"], trained["bounds"])["layer"]["kernel"] == 0)
    np.testing.assert_allclose(zeros, 0.85, atol=0.02)


KERNEL = {"kernel": laws.weights((30, 40)), "bias": jnp.zeros(40), "steps": jnp.arange(2000).reshape(40, 50)}
NAN = {"kernel": KERNEL["kernel"].at[0, 0].set(jnp.nan)}
BOUND = {"kernel": jnp.float32(1.0)}
WRONG = {
    "pattern without a match": (lambda: bounds.init(KERNEL, 0.5, "Conv"), "where='Conv' matches no leaf.*'kernel'"),
    "invalid pattern": (lambda: bounds.init(KERNEL, 0.5, "("), r"where='\('"),
    "nothing large enough": (lambda: bounds.init(KERNEL, 0.5, min_size=10**6), "min_size=1000000.*'kernel': 1200"),
    "no float matrix": (lambda: bounds.init({"b": jnp.ones(3)}, 0.5), "no float leaf has rank >= 2"),
    "percent": (lambda: bounds.init(KERNEL, 85), r"sparsity=85.0 is outside \[0, 1\)"),
    "negative": (lambda: bounds.search(KERNEL, -0.1), r"sparsity=-0.1 is outside \[0, 1\]"),
    "everything": (lambda: bounds.gaussian(KERNEL["kernel"], 1.0), "sparsity=1.0 is outside"),
    "not a number": (lambda: bounds.init(KERNEL, math.nan), "sparsity=nan"),
    "integer leaf": (lambda: bounds.init(KERNEL, 0.5, "steps"), "leaf 'steps' has dtype int32"),
    "nan leaf": (lambda: bounds.init(NAN, 0.5), "leaf 'kernel' holds 1 NaN"),
    "nan on export": (lambda: bounds.finalize(NAN, BOUND), "leaf 'kernel' holds 1 NaN"),
    "nan array": (lambda: bounds.bisection(NAN["kernel"], 0.5), "leaf 'w' holds 1 NaN"),
    "empty leaf": (lambda: bounds.init({"kernel": jnp.ones((0, 4))}, 0.5), r"leaf 'kernel' is empty.*\(0, 4\)"),
    "single entry": (lambda: bounds.shrink({"k": jnp.ones((1, 1))}, {"k": 1.0}), "leaf 'k' has a single entry"),
    "bound of no leaf": (lambda: bounds.shrink(KERNEL, {"Dense/kernel": 1.0}), "'Dense/kernel' that is not a leaf"),
    "bound of an integer leaf": (lambda: bounds.shrink(KERNEL, {"steps": 1.0}), "leaf 'steps' has dtype int32"),
    "nan bound": (lambda: bounds.finalize(KERNEL, {"kernel": jnp.nan}), "bound of 'kernel' is nan"),
    "negative bound": (lambda: bounds.finalize(KERNEL, {"kernel": -1.0}), "bound of 'kernel' is -1.0"),
    "tolerance": (lambda: bounds.bisection(KERNEL["kernel"], 0.5, 0.0), "tolerance=0.0"),
    "range": (lambda: bounds.keep_in_range(5.0, 1.0), "low=5.0 must be below high=1.0"),
    "params missing": (lambda: bounds.keep_in_range().update(BOUND, optax.EmptyState()), "params=None"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_name_the_leaf_and_the_way_out(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
