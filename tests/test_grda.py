"""gRDA: the published vectors, the authors' recursion in float64, and the laws of every tree, dtype and wrapper."""

import math
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import laws
import numpy as np
import optax
import pytest

from sparsejax import report, tree
from sparsejax.transforms import GrdaState, current_rate, grda, sum_of_rates


def soft(v, threshold):
    return math.copysign(max(abs(v) - threshold, 0.0), v)


def thresholds(rates, c, mu, sum_time=False):
    """The authors' increments, or those of the sum of rates, added up in float64."""
    threshold, total, out = 0.0, 0.0, []
    for k, rate in enumerate(rates, 1):
        if sum_time:
            threshold += c * rate**0.5 * ((total + rate) ** mu - total**mu)
        else:
            threshold += c * rate ** (mu + 0.5) * (k**mu - (k - 1) ** mu)
        total += rate
        out.append(threshold)
    return out


def recursion(weights, grads, rates, c, mu):
    """The authors' update in float64: accumulator, threshold and weights after every gradient."""
    v = [float(x) for x in np.ravel(weights)]
    history = []
    for g, rate, threshold in zip(grads, rates, thresholds(rates, c, mu), strict=True):
        v = [x - rate * float(y) for x, y in zip(v, np.ravel(g), strict=True)]
        history.append((np.array(v), threshold, np.array([soft(x, threshold) for x in v])))
    return history


def step(tx, params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


# Vectors G2, G3 and G4.
START = [0.5, -0.02, 0.001, -0.3]
GRADS = [
    [0.2, -0.1, 0.0, 0.3],
    [0.1, -0.2, 0.05, 0.2],
    [0.0, -0.3, -0.3, 0.1],
    [-0.1, 0.1, -0.2, 0.0],
    [-0.2, 0.2, -0.2, -0.1],
]
G2_THRESHOLDS = [0.007943282347, 0.012039764646, 0.015355810812, 0.018248870731, 0.020863251943]
G2_WEIGHTS = [
    [0.472056717653, -0.002056717653, 0.0, -0.322056717653],
    [0.457960235354, 0.0, 0.0, -0.337960235354],
    [0.454644189188, 0.024644189188, 0.010644189188, -0.344644189188],
    [0.461751129269, 0.011751129269, 0.027751129269, -0.341751129269],
    [0.479136748057, 0.0, 0.045136748057, -0.329136748057],
]
G3_FIRST_WEIGHTS = [0.48, -0.01, 0.001, -0.33]
G4_RATES = [0.1, 0.1, 0.1, 0.01, 0.01]
G4 = {
    current_rate: [0.007943282347, 0.012039764646, 0.015355810812, 0.015585614729, 0.015793282411],
    sum_of_rates: [0.007943282347, 0.012039764646, 0.015355810812, 0.015452291903, 0.015547535819],
}


def run(tx, params, grads, wrap=lambda init: init):
    """Every tree of parameters and every state that a run goes through; one trace for all of it."""
    traces = []

    @jax.jit
    def advance(params, state, grads):
        traces.append(grads)
        return step(tx, params, state, grads)

    state, history = wrap(tx.init)(params), []
    for g in grads:
        params, state = advance(params, state, g)
        history.append((params, state))
    assert len(traces) == 1
    return history


def test_five_steps_are_the_published_vector():
    history = run(grda(0.1, c=0.1, mu=0.6), jnp.array(START), jnp.array(GRADS))
    for (params, state), weights, threshold in zip(history, G2_WEIGHTS, G2_THRESHOLDS, strict=True):
        np.testing.assert_allclose(params, weights, rtol=1e-5)
        np.testing.assert_allclose(state.threshold, threshold, rtol=1e-6)
        np.testing.assert_array_equal(params == 0, np.equal(weights, 0))
    np.testing.assert_allclose(history[-1][1].accumulator, [0.5, 0.01, 0.066, -0.35], rtol=1e-5)


def test_the_first_update_is_the_codes_and_not_the_slides():
    """Vector G3 has a first threshold of 0."""
    [(params, state)] = run(grda(0.1, c=0.1, mu=0.6), jnp.array(START), jnp.array(GRADS[:1]))
    assert float(state.threshold) > 0
    assert np.abs(params - np.array(G3_FIRST_WEIGHTS)).min() > 9e-4


@pytest.mark.parametrize("time", G4)
def test_a_drop_of_the_rate_is_the_published_vector(time):
    tx = grda(lambda count: jnp.array(G4_RATES)[count], c=0.1, mu=0.6, time=time)
    history = run(tx, jnp.array(START), jnp.array(GRADS))
    np.testing.assert_allclose([state.threshold for _, state in history], G4[time], rtol=1e-6)
    np.testing.assert_allclose(G4[time], thresholds(G4_RATES, 0.1, 0.6, time is sum_of_rates), rtol=1e-10)


def test_a_trace_before_it_is_the_published_heavy_ball():
    """Vector G12."""
    tx = optax.chain(optax.trace(0.9), grda(0.1, c=0.1, mu=0.6))
    history = run(tx, jnp.array([0.5, -0.3]), jnp.array([[0.2, -0.1], [0.1, -0.2], [0.0, 0.3]]))
    np.testing.assert_allclose(history[-1][0], [0.411444189188, -0.249544189188], rtol=1e-6)


# The last step, rate, c, mu and threshold of vector G1; its first row runs on beyond what it gives.
G1 = [
    (1, 0.1, 0.005, 0.51, 4.886186104779e-04),
    (100, 0.1, 0.005, 0.51, 5.116464961404e-03),
    (391 * 200, 0.1, 0.001, 0.501, 2.821607384623e-02),
    (391 * 200, 0.1, 0.001, 0.65, 1.072962119119e-01),
    (391 * 600, 0.1, 0.0005, 0.6, 6.624709045672e-02),
    (5005 * 140, 0.1, 0.005, 0.55, 7.311604121105e-01),
]
MILLION = 10**6


@partial(jax.jit, static_argnames=("time", "steps"))
def grown(rates, c, mu, time=None, steps=MILLION):
    """The thresholds of a run of the optimizer itself, `(configurations, steps)`; `rates` holds one or all of a run."""

    def one(rates, c, mu):
        tx = grda(lambda count: rates[jnp.minimum(count, len(rates) - 1)], c=c, mu=mu, time=time)
        params = jnp.zeros(1)

        def body(state, _):
            _, state = tx.update(params, state, params)
            return state, state.threshold

        return jax.lax.scan(body, tx.init(params), length=steps)[1]

    return jax.vmap(one)(rates, c, mu)


def test_a_million_constant_steps_in_float32_lose_nothing():
    """Vector G1, and its closed form at every step."""
    last, rate, c, mu, expected = (np.array(column) for column in zip(*G1, strict=True))
    got = np.asarray(grown(*(jnp.asarray(x, jnp.float32) for x in (rate[:, None], c, mu))), np.float64)
    np.testing.assert_allclose(got[np.arange(len(G1)), last - 1], expected, rtol=6e-7)
    steps = np.arange(1, MILLION + 1)
    for row, (_, rate, c, mu, _) in zip(got, G1, strict=True):
        np.testing.assert_allclose(row, c * rate**0.5 * (steps * rate) ** mu, rtol=6e-7)


def cifar_factor(progress):
    """Vector G10: constant to the half, linear to a hundredth at nine tenths, constant."""
    return np.where(progress <= 0.5, 1.0, np.where(progress <= 0.9, 1 - (progress - 0.5) / 0.4 * 0.99, 0.01))


def test_the_cifar_factor_is_the_published_vector():
    epochs = np.array([1, 100, 101, 140, 180, 181, 200])
    np.testing.assert_allclose(cifar_factor(epochs / 200), [1, 1, 0.987625, 0.505, 0.01, 0.01, 0.01], rtol=1e-12)


PROGRESS = np.arange(MILLION) / MILLION
SCHEDULES = {
    "cifar": 0.1 * cifar_factor(PROGRESS),
    "steps": 0.1 * 0.1 ** np.floor(3 * PROGRESS),
    "warm-up from 0, cosine": 0.1 * np.minimum(1, 20 * PROGRESS) * (0.5 + 0.5 * np.cos(np.pi * PROGRESS)),
    "restarts": 0.1 * (1 - 0.9 * (10 * PROGRESS % 1)),
}


@pytest.mark.parametrize("time", [current_rate, sum_of_rates])
def test_a_million_scheduled_steps_in_float32_lose_nothing(time):
    rates = np.array(list(SCHEDULES.values()), np.float32)
    ones = jnp.ones(len(rates))
    got = np.asarray(grown(jnp.asarray(rates), 0.005 * ones, 0.55 * ones, time=time), np.float64)
    for row, values in zip(got, rates.astype(np.float64), strict=True):
        expected = np.array(thresholds(values.tolist(), 0.005, 0.55, time is sum_of_rates))
        np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-12)


def test_counts_beyond_the_integers_of_float32_lose_no_steps():
    start, steps, tx = 2**24 - 3, 1000, grda(0.1, c=0.1, mu=0.6)
    state = tx.init(jnp.zeros(1))._replace(count=jnp.int32(start), threshold=jnp.float32(1.0))
    state = jax.lax.fori_loop(0, steps, lambda _, state: tx.update(jnp.zeros(1), state, jnp.zeros(1))[1], state)
    assert int(state.count) == start + steps
    grown = float(state.threshold) - 1.0 + float(state.lost[0])
    closed = [0.1 * 0.1**0.5 * (k * 0.1) ** 0.6 for k in (start, start + steps)]
    np.testing.assert_allclose(grown, closed[1] - closed[0], rtol=1e-6)


def test_the_count_stops_at_its_largest_value():
    tx = grda(0.1)
    state = tx.init(jnp.zeros(1))._replace(count=jnp.int32(2**31 - 1), threshold=jnp.float32(1.0))
    _, state = tx.update(jnp.zeros(1), state, jnp.zeros(1))
    assert int(state.count) == 2**31 - 1
    assert float(state.threshold) >= 1.0


def random_grads(params, steps, seed=20):
    rng = np.random.default_rng(seed)
    return [
        jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape) * 0.3, p.dtype), params) for _ in range(steps)
    ]


def assert_is(params, weights, accumulator, threshold):
    """Parameters are the oracle's weights to a rounding, zeros included; at the threshold they may go either way."""
    precision = float(jnp.finfo(params.dtype).eps)
    got = np.ravel(np.asarray(params, np.float64))
    # p + (w - p) rounds once to the precision of the larger of p and the step; weights here are below 0.6.
    np.testing.assert_allclose(got, weights, rtol=precision, atol=max(precision / 2, 1e-6))
    pruned = np.abs(accumulator) < threshold - 1e-6
    assert 0.05 < pruned.mean() < 0.95
    np.testing.assert_array_equal(got[pruned], 0)
    if precision < 1e-6:
        assert np.all(got[np.abs(accumulator) > threshold + 1e-6] != 0)


@pytest.mark.parametrize("view", laws.TREES)
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_it_is_the_recursion_on_every_tree_and_dtype(view, dtype):
    params = laws.TREES[view][0](dtype)
    grads = random_grads(params, 5)
    tx = grda(0.1, c=0.5, mu=0.7)
    first = tx.init(params)
    history = run(tx, params, grads)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(first.accumulator))
    chex.assert_trees_all_equal_shapes_and_dtypes(first, *(state for _, state in history))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, *(after for after, _ in history))
    leaves, names = tree.named(params), list(tree.named(params))
    for name in names:
        expected = recursion(leaves[name], [tree.named(g)[name] for g in grads], [0.1] * 5, 0.5, 0.7)
        for (after, state), (accumulator, threshold, weights) in zip(history, expected, strict=True):
            assert_is(tree.named(after)[name], weights, accumulator, threshold)
            v = np.ravel(tree.named(state.accumulator)[name])
            np.testing.assert_allclose(v, accumulator, rtol=1e-5, atol=1e-7)


def test_the_state_is_one_copy_of_the_parameters_and_a_few_numbers():
    params = laws.TREES["dict"][0](jnp.float32)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(grda(0.1).init(params)))
    assert sizes == [1] * 5 + sorted(leaf.size for leaf in jax.tree.leaves(params))


def test_float64_parameters_are_accumulated_in_float64():
    with jax.enable_x64(True):
        params = jnp.array(START, jnp.float64)
        [*_, (params, state)] = run(grda(0.1, c=0.1, mu=0.6), params, jnp.array(GRADS, jnp.float64))
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"int32", "float64"}
        np.testing.assert_allclose(params, G2_WEIGHTS[-1], rtol=1e-10)


@pytest.mark.parametrize("learning_rate", [0.1, lambda count: 0.1 * 0.9 ** count.astype(jnp.float32)])
def test_without_a_threshold_it_is_sgd(learning_rate):
    params = laws.TREES["dict"][0](jnp.float32)
    grads = random_grads(params, 30)
    after, state = run(grda(learning_rate, c=0.0), params, grads)[-1]
    sgd, _ = run(optax.sgd(learning_rate), params, grads)[-1]
    assert float(state.threshold) == 0.0
    chex.assert_trees_all_close(after, sgd, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(after, state.accumulator, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_rounding_does_not_add_up(dtype):
    """Steps that the dtype cannot add to a weight are kept in the accumulator, and show once they are large enough."""
    params, steps = {"kernel": laws.weights((30, 40), 21, dtype, shift=1.0)}, 2000
    grads = {"kernel": jnp.full((30, 40), 0.001, dtype)}
    tx = grda(0.01, c=0.001, mu=0.51)
    state = tx.init(params)
    exact = np.asarray(params["kernel"], np.float64) - steps * 0.01 * float(grads["kernel"][0, 0])
    params, state = jax.jit(lambda *run: jax.lax.fori_loop(0, steps, lambda _, x: step(tx, *x, grads), run))(
        params, state
    )
    v, threshold = np.asarray(state.accumulator["kernel"], np.float64), float(state.threshold)
    np.testing.assert_allclose(v, exact, atol=1e-4)  # 2000 roundings of float32, at most 6e-8 each
    np.testing.assert_allclose(threshold, 0.001 * 0.01**0.5 * (steps * 0.01) ** 0.51, rtol=1e-6)
    precision = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(params["kernel"], np.float64), v - threshold, rtol=precision)


KERNEL, BIAS = laws.weights((30, 40), 22), laws.weights(40, 23)
LAYER = {"kernel": KERNEL, "bias": BIAS}
LABELS = {"kernel": "sparse", "bias": "dense"}
OPTIONS = {"learning_rate": 0.1, "c": 0.5, "mu": 0.7}


def as_given(grads):
    return grads


def clipped(grads):
    """To a global norm of 5."""
    norms = [math.sqrt(sum(float(np.sum(np.square(x, dtype=np.float64))) for x in g.values())) for g in grads]
    assert min(norms) > 5
    return [{k: np.float64(x) * 5 / norm for k, x in g.items()} for g, norm in zip(grads, norms, strict=True)]


def averaged(grads):
    return [
        {k: (np.float64(a[k]) + np.float64(b[k])) / 2 for k in a} for a, b in zip(grads[::2], grads[1::2], strict=True)
    ]


def finite(grads):
    return [g for g in grads if np.isfinite(g["kernel"]).all()]


class Wrapper(NamedTuple):
    make: object
    seen: object = as_given  # the gradients that gRDA gets, of those given
    treated: tuple = ("kernel", "bias")
    promotion: str = "strict"  # optax is not ready for it everywhere


WRAPPERS = {
    "alone": Wrapper(lambda: grda(**OPTIONS)),
    "chain": Wrapper(lambda: optax.chain(optax.clip_by_global_norm(5.0), grda(**OPTIONS)), clipped),
    "partition": Wrapper(
        lambda: optax.partition({"sparse": grda(**OPTIONS), "dense": optax.sgd(0.1)}, LABELS), treated=("kernel",)
    ),
    "masked": Wrapper(lambda: optax.masked(grda(**OPTIONS), {"kernel": True, "bias": False}), treated=("kernel",)),
    "MultiSteps": Wrapper(
        lambda: optax.MultiSteps(grda(**OPTIONS), 2).gradient_transformation(), averaged, promotion="standard"
    ),
    "inject_hyperparams": Wrapper(lambda: optax.inject_hyperparams(grda)(**OPTIONS)),
    "inject_hyperparams, schedule": Wrapper(
        lambda: optax.inject_hyperparams(grda)(**OPTIONS | {"learning_rate": optax.constant_schedule(0.1)})
    ),
    "inject_hyperparams, time": Wrapper(
        lambda: optax.inject_hyperparams(grda, static_args="time")(**OPTIONS, time=sum_of_rates)
    ),
    "apply_if_finite": Wrapper(lambda: optax.apply_if_finite(grda(**OPTIONS), 3), finite),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_it_is_the_recursion_in_every_wrapper(name):
    wrapper, grads = WRAPPERS[name], random_grads(LAYER, 8)
    if wrapper.seen is finite:
        grads[3]["kernel"] = grads[3]["kernel"].at[0, 0].set(jnp.nan)
    tx = wrapper.make()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)

    @jax.jit
    def train(params, stacked):  # the scan holds structure, shapes and dtypes of the state fixed
        return jax.lax.scan(lambda run, g: (step(tx, *run, g), None), (params, tx.init(params)), stacked)[0]

    with jax.numpy_dtype_promotion(wrapper.promotion):
        params, _ = train(LAYER, stacked)
    for leaf in LAYER:
        if leaf in wrapper.treated:
            seen = [g[leaf] for g in wrapper.seen(grads)]
            accumulator, threshold, weights = recursion(LAYER[leaf], seen, [0.1] * len(seen), 0.5, 0.7)[-1]
            assert_is(params[leaf], weights, accumulator, threshold)
        else:
            assert np.all(params[leaf] != 0)


def test_masked_leaves_pass_their_gradients_on_and_partitioned_ones_do_not():
    grads = random_grads(LAYER, 1)
    masked, _ = run(WRAPPERS["masked"].make(), LAYER, grads)[-1]
    np.testing.assert_allclose(masked["bias"], BIAS + grads[0]["bias"], rtol=1e-6)
    partitioned, _ = run(WRAPPERS["partition"].make(), LAYER, grads)[-1]
    np.testing.assert_allclose(partitioned["bias"], BIAS - 0.1 * grads[0]["bias"], rtol=1e-5)


def test_injected_numbers_can_be_changed_between_steps():
    tx = optax.inject_hyperparams(grda)(**OPTIONS)
    state = tx.init(LAYER)
    grads = jax.tree.map(jnp.zeros_like, LAYER)
    _, state = jax.jit(tx.update)(grads, state, LAYER)
    before = float(state.inner_state.threshold)
    state.hyperparams["c"] = jnp.float32(0.0)
    _, state = jax.jit(tx.update)(grads, state, LAYER)
    assert float(state.inner_state.threshold) == before > 0


def test_injected_numbers_stay_float32_for_bfloat16_parameters():
    params = {"kernel": KERNEL.astype(jnp.bfloat16)}
    tx = optax.inject_hyperparams(grda, hyperparam_dtype=jnp.float32)(**OPTIONS)
    [(_, state)] = run(tx, params, random_grads(params, 1))
    np.testing.assert_allclose(state.inner_state.threshold, thresholds([0.1], 0.5, 0.7)[0], rtol=1e-6)


def test_a_gradient_that_is_not_a_number_shows_in_the_weights():
    """A pruned weight must be one that the threshold has reached."""
    grads = {"kernel": jnp.zeros((30, 40)).at[3, 4].set(jnp.nan), "bias": jnp.zeros(40)}
    params, _ = run(grda(**OPTIONS), LAYER, [grads])[-1]
    np.testing.assert_array_equal(np.isnan(params["kernel"]), np.isnan(grads["kernel"]))
    assert np.isfinite(params["bias"]).all()


def test_a_batch_of_runs_is_the_runs_one_by_one():
    params = {"kernel": laws.weights((3, 20, 10), 24)}
    grads = random_grads(params, 4)
    tx = grda(**OPTIONS)

    @jax.jit
    @jax.vmap
    def train(params, *grads):
        state = tx.init(params)
        for g in grads:
            params, state = step(tx, params, state, g)
        return params, state

    together, state = train(params, *grads)
    assert state.count.tolist() == [4, 4, 4]
    for seed in range(3):
        alone, _ = run(tx, {"kernel": params["kernel"][seed]}, [{"kernel": g["kernel"][seed]} for g in grads])[-1]
        np.testing.assert_allclose(together["kernel"][seed], alone["kernel"], rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(together["kernel"][seed] == 0, alone["kernel"] == 0)


def test_one_and_eight_devices_make_the_same_run():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    kernel, bias = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (("x", "y"), ("y",))
    )
    shardings = {"kernel": kernel, "bias": bias}
    params = {"kernel": laws.weights((32, 40), 25), "bias": laws.weights(40, 26)}
    grads, tx = random_grads(params, 3), grda(**OPTIONS)
    sharded = run(tx, jax.device_put(params, shardings), [jax.device_put(g, shardings) for g in grads], jax.jit)
    first = tx.init(jax.device_put(params, shardings))
    for tree_of_arrays in (first.accumulator, *(t for after, state in sharded for t in (after, state.accumulator))):
        for name, sharding in shardings.items():
            assert tree_of_arrays[name].sharding.is_equivalent_to(sharding, tree_of_arrays[name].ndim)
    alone = run(tx, params, grads)[-1][0]
    chex.assert_trees_all_close(sharded[-1][0], alone, rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_equal(*(jax.tree.map(lambda p: np.asarray(p == 0), t) for t in (sharded[-1][0], alone)))


@pytest.mark.parametrize("wrap", [lambda init: init, jax.jit], ids=["eager init", "jitted init"])
def test_parameters_and_state_can_be_donated(wrap):
    tx, params = grda(**OPTIONS), {"kernel": KERNEL + 0}
    state, grads = wrap(tx.init)(params), random_grads(params, 1)[0]
    expected, _ = step(tx, params, state, grads)
    after, _ = jax.jit(partial(step, tx), donate_argnums=(0, 1))(params, state, grads)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)))
    np.testing.assert_allclose(after["kernel"], expected["kernel"], rtol=1e-6, atol=1e-7)


def test_its_copies_of_the_parameters_are_known_to_optax():
    state = optax.tree.map_params(grda(0.1), lambda leaf: leaf.shape, grda(0.1).init(LAYER), transform_non_params=str)
    assert state.accumulator == {"kernel": (30, 40), "bias": (40,)}


def test_the_threshold_has_the_derivatives_of_its_closed_form():
    rate, c, mu, steps = 0.3, 0.2, 0.6, 5

    def last(rate, c, mu):
        tx, params = grda(rate, c, mu), jnp.zeros(1)
        state = tx.init(params)
        for _ in range(steps):
            _, state = tx.update(params, state, params)
        return state.threshold

    got = jax.jit(jax.grad(last, (0, 1, 2)))(rate, c, mu)
    g = c * rate**0.5 * (steps * rate) ** mu
    np.testing.assert_allclose(got, [g * (mu + 0.5) / rate, g / c, g * math.log(steps * rate)], rtol=1e-5)


def test_a_schedule_is_called_with_0_first():
    tx = grda(lambda count: jnp.where(count == 0, 0.25, 0.0), c=0.0)
    history = run(tx, jnp.zeros(1), jnp.ones((2, 1)))
    assert [params.tolist() for params, _ in history] == [[-0.25], [-0.25]]


def trained(tx, steps=40):
    """A run on a quadratic whose every other coordinate is flat, and the share that its threshold has reached."""
    target, curvature = laws.weights((40, 50), 27), jnp.arange(2000).reshape(40, 50) % 2
    params = {"kernel": laws.weights((40, 50), 28)}
    state = tx.init(params)

    @jax.jit
    def train(params, state):
        def advance(_, run):
            params, state = run
            return step(tx, params, state, {"kernel": curvature.astype(jnp.float32) * (params["kernel"] - target)})

        return jax.lax.fori_loop(0, steps, advance, (params, state))

    params, state = train(params, state)
    [state] = [
        s for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, GrdaState)) if isinstance(s, GrdaState)
    ]
    return params, np.mean(np.abs(np.asarray(state.accumulator["kernel"])) <= float(state.threshold))


BEFORE = {
    "nothing": (),
    "clip": (optax.clip_by_global_norm(1.0),),
    "decay": (optax.add_decayed_weights(0.1),),
    "momentum": (optax.trace(0.9),),
}
AFTER = {
    "decay": optax.add_decayed_weights(-0.1),
    "scale": optax.scale(0.5),
    "momentum": optax.trace(0.5),
    "clip": optax.clip(0.002),
    "noise": optax.add_noise(1e-6, 0.0, 0),
    "average": optax.ema(0.5),
}


@pytest.mark.parametrize("name", BEFORE)
def test_what_stands_before_it_leaves_the_zeros_exact(name):
    params, share = trained(optax.chain(*BEFORE[name], grda(0.1, c=0.05)))
    assert 0.1 < share < 0.9
    assert report.check_sparsity(params, share, tolerance=0.0).prunable_sparsity == share


@pytest.mark.parametrize("name", AFTER)
def test_what_stands_after_it_breaks_the_zeros_and_is_caught(name):
    with jax.numpy_dtype_promotion("standard"):  # optax is not ready for the strict one everywhere
        params, share = trained(optax.chain(grda(0.1, c=0.05), AFTER[name]))
    assert 0.1 < share < 0.9
    with pytest.raises(ValueError, match="sparsity is not within"):
        report.check_sparsity(params, share)


def test_a_subspace_that_the_loss_ignores_is_pruned_first():
    params, _ = trained(grda(0.1, c=0.05), steps=2000)
    zeros = np.asarray(params["kernel"] == 0)
    assert zeros[:, 0::2].mean() > 0.9
    assert zeros[:, 1::2].mean() < 0.2


GRDA, STATE = grda(0.1), grda(0.1).init(LAYER)
WRONG = {
    "negative rate": (lambda: grda(-0.1), r"learning_rate=-0.1 must be a number >= 0, or a schedule"),
    "rate is nan": (lambda: grda(math.nan), "learning_rate=nan"),
    "rate is infinite": (lambda: grda(math.inf), "learning_rate=inf"),
    "rate is an array": (lambda: grda(jnp.ones(3)), "learning_rate="),
    "rate is missing": (lambda: grda(None), "learning_rate=None"),
    "negative c": (lambda: grda(0.1, c=-1.0), r"c=-1.0 must be a number >= 0: 0 is SGD"),
    "scheduled c": (lambda: grda(0.1, c=lambda _: 0.1), r"c=<function.*optax.inject_hyperparams\(grda\)"),
    "mu is 0": (lambda: grda(0.1, mu=0.0), r"mu=0.0 must be in \(0, 1\)"),
    "mu is 1": (lambda: grda(0.1, mu=1), r"mu=1 must be in \(0, 1\)"),
    "mu is nan": (lambda: grda(0.1, mu=jnp.nan), "mu=nan must be in"),
    "injected": (lambda: optax.inject_hyperparams(grda)(0.1, c=-1.0).init(LAYER), "c=.*-1.* must be a number >= 0"),
    "integer leaf": (lambda: GRDA.init({"steps": jnp.arange(3)}), "leaf 'steps' has dtype int32.*optax.partition"),
    "bool leaf": (lambda: GRDA.init({"a": {"mask": jnp.ones(3, bool)}}), "leaf 'a/mask' has dtype bool"),
    "complex leaf": (lambda: GRDA.init({"k": jnp.ones(3, jnp.complex64)}), "leaf 'k' has dtype complex64"),
    "traced integer leaf": (
        lambda: jax.eval_shape(GRDA.init, {"steps": jnp.arange(3)}),
        "leaf 'steps' has dtype int32",
    ),
    "nan leaf": (lambda: GRDA.init({"k": jnp.array([1.0, jnp.nan])}), "leaf 'k' holds 1 NaN"),
    "params missing": (lambda: GRDA.update(LAYER, STATE), r"params=None.*tx.update\(grads, state, params\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_name_the_argument_and_the_way_out(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("mu", [0.4, 0.501, 0.85])
def test_every_exponent_the_authors_ran_is_accepted(mu):
    grda(0.1, mu=mu)
