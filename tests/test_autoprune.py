"""AutoPrune's training rule: the published vectors, the two optimizers one by one, and the laws of every wrapper."""

import itertools
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

import sparsejax as sj
from sparsejax import gates, surrogates, transforms
from sparsejax.gates import Gated
from sparsejax.groups import Group, Member
from sparsejax.transforms import autoprune, freeze_at, proximal_l1, reached_at, turnover

MU = 0.01


def step(tx, gated, state, grads, **options):
    updates, state = tx.update(grads, state, gated, **options)
    return optax.apply_updates(gated, updates), state


def rule(aux_tx=None, weights_tx=None, **options):
    return autoprune(weights_tx or optax.sgd(0.1), aux_tx or optax.sgd(0.1), penalty=MU, **options)


# Vectors A1, A3, A4 and A7.
W, M, G = [0.5, -0.2, 0.01, -1.0], [0.1, -0.05, 0.02, 0.3], [0.4, -0.3, 2.0, 0.1]
A4 = {
    "linear": [0.059, -0.081, -0.181, 0.309],
    "leaky_relu": [0.059, -0.0531, -0.181, 0.309],
    "softplus": [0.078475853313, -0.065112580709, -0.081504966501, 0.305169982651],
}
A7 = {"linear": 1, "leaky_relu": 7, "softplus": 2, "relu": None}


@pytest.mark.parametrize("surrogate", A4)
def test_a_step_of_the_auxiliary_parameters_is_the_published_vector(surrogate):
    function = getattr(surrogates, surrogate)
    gated = Gated({"k": jnp.array(W)}, {"k": jnp.array(M)})
    grads = jax.grad(lambda gated: jnp.vdot(gates.apply(gated, function)["k"], jnp.array(G)))(gated)
    tx = rule(surrogate=function)
    after, state = step(tx, gated, tx.init(gated), grads)
    np.testing.assert_allclose(after.aux["k"], A4[surrogate], rtol=1e-5)
    np.testing.assert_array_equal(after.weights["k"], gated.weights["k"])
    assert turnover(state) == (2, 1, 0, 1, 0)


@pytest.mark.parametrize("surrogate", A7)
def test_a_weight_that_is_missed_recovers_after_the_published_steps(surrogate):
    function = getattr(surrogates, surrogate)
    gated = Gated({"k": jnp.array([2.0])}, {"k": jnp.array([-0.03])})
    tx = autoprune(optax.set_to_zero(), optax.sgd(0.1), penalty=MU, surrogate=function, alternate=False)

    @jax.jit
    def advance(gated, state):
        grads = jax.grad(lambda gated: -0.5 * gates.apply(gated, function)["k"].sum())(gated)
        return step(tx, gated, state, grads)

    state, recovered = tx.init(gated), None
    for count in range(1, 20):
        gated, state = advance(gated, state)
        if gated.aux["k"][0] > 0 and recovered is None:
            recovered = count
            assert turnover(state) == (0, 0, 1, 0, 1)
    assert recovered == A7[surrogate]


class Case(NamedTuple):
    make: object  # () -> an optimizer
    promotion: str = "strict"  # optax is not ready for it everywhere


KERNEL, BIAS = laws.weights((6, 5), 1), laws.weights(5, 2)
LABELS = {"kernel": "a", "bias": "b"}
OPTIMIZERS = {
    "sgd": Case(lambda: optax.sgd(0.1)),
    "momentum": Case(lambda: optax.sgd(0.1, momentum=0.9)),
    "rmsprop": Case(lambda: optax.rmsprop(0.01)),
    "adam": Case(lambda: optax.adam(0.01), promotion="standard"),
    "adamw": Case(lambda: optax.adamw(0.01, weight_decay=0.1), promotion="standard"),
    "decay, clip, schedule": Case(
        lambda: optax.chain(
            optax.add_decayed_weights(0.1),
            optax.clip_by_global_norm(0.5),
            optax.sgd(optax.exponential_decay(0.1, 1, 0.5), momentum=0.9),
        )
    ),
    "MultiSteps": Case(lambda: optax.MultiSteps(optax.adam(0.01), 2), promotion="standard"),
    "inject_hyperparams": Case(
        lambda: optax.inject_hyperparams(optax.rmsprop)(optax.cosine_decay_schedule(0.01, 9)), promotion="standard"
    ),
    "partition": Case(lambda: optax.partition({"a": optax.sgd(0.1, momentum=0.9), "b": optax.rmsprop(0.01)}, LABELS)),
    "grda": Case(lambda: sj.grda(0.1, c=0.1)),
    "proximal L1": Case(lambda: optax.chain(optax.sgd(0.1), proximal_l1(0.1, 0.05))),
}


def random_grads(gated, steps, seed=20):
    rng = np.random.default_rng(seed)
    draw = lambda p: jnp.asarray(rng.standard_normal(p.shape) * 0.3, p.dtype)  # noqa: E731
    return [jax.tree.map(draw, gated) for _ in range(steps)]


def layer(dtype=jnp.float32):
    weights = {"kernel": KERNEL.astype(dtype), "bias": BIAS.astype(dtype)}
    return Gated(weights, {"kernel": laws.weights((6, 5), 3, shift=0.02)})


def one_by_one(tx, params, grads):
    """Every state of the parameters under an optimizer that has them for itself."""

    @jax.jit
    def advance(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, history = tx.init(params), [params]
    for g in grads:
        params, state = advance(params, state, g)
        history.append(params)
    return history


def sigmoid(m):
    return 1 / (1 + np.exp(-np.asarray(m, np.float64)))


class Sgd:
    """SGD of the auxiliary parameters with the pull, in NumPy."""

    def __init__(self, gated, rate=0.1):
        self.aux, self.rate = {name: np.asarray(m, np.float64) for name, m in gated.aux.items()}, rate

    def step(self, grads, mu=MU):
        for name, m in self.aux.items():
            self.aux[name] = m - self.rate * (np.asarray(grads.aux[name], np.float64) + mu * sigmoid(m))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_see_their_own_turns_only_whatever_their_optimizer(name):
    """Calls 0, 2, 4 are steps of aux, 1, 3, 5 of the weights; what rests stays as it is, bit for bit."""
    make, promotion = OPTIMIZERS[name]
    gated, tx = layer(), rule(weights_tx=make())
    grads = random_grads(gated, 8)
    with jax.numpy_dtype_promotion(promotion):
        expected = one_by_one(make(), gated.weights, [g.weights for g in grads[1::2]])
        traces = []
        advance = jax.jit(lambda *run: traces.append(1) or step(tx, *run))
        oracle, state = Sgd(gated), tx.init(gated)
        for call, g in enumerate(grads):
            before, inner = gated, (state.weights, state.aux)
            gated, state = advance(gated, state, g)
            chex.assert_trees_all_equal_shapes_and_dtypes((gated, state), (before, state))
            if call % 2 == 0:
                oracle.step(g)
                chex.assert_trees_all_equal((gated.weights, state.weights), (before.weights, inner[0]))
            else:
                chex.assert_trees_all_equal((gated.aux, state.aux), (before.aux, inner[1]))
            chex.assert_trees_all_close(gated.weights, expected[(call + 1) // 2], rtol=1e-5, atol=1e-7)
            chex.assert_trees_all_close(gated.aux, oracle.aux, rtol=1e-5, atol=1e-7)
    assert int(state.count) == 8
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["adam", "MultiSteps", "decay, clip, schedule"])
def test_the_optimizer_of_aux_can_be_any_too_and_sees_the_pull(name):
    make, promotion = OPTIMIZERS[name]
    gated, tx = layer(), rule(aux_tx=make(), surrogate=surrogates.linear)
    grads = random_grads(gated, 8)
    with jax.numpy_dtype_promotion(promotion):
        pulled = [{"kernel": g.aux["kernel"] + MU} for g in grads[::2]]
        expected = one_by_one(make(), gated.aux, pulled)
        state, advance = tx.init(gated), jax.jit(partial(step, tx))
        for g in grads:
            gated, state = advance(gated, state, g)
    chex.assert_trees_all_close(gated.aux, expected[-1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("at", [0, 1, 4, 5])
@pytest.mark.parametrize("alternate", [True, False])
def test_a_freeze_is_for_good_and_gives_every_call_to_the_weights(at, alternate):
    gated, tx = layer(), rule(weights_tx=optax.rmsprop(0.01), alternate=alternate)
    grads = random_grads(gated, 10)
    turns = [call % 2 == 1 or call >= at or not alternate for call in range(10)]
    expected = one_by_one(
        optax.rmsprop(0.01), gated.weights, [g.weights for g, t in zip(grads, turns, strict=True) if t]
    )
    advance = jax.jit(lambda gated, state, g, freeze: step(tx, gated, state, g, freeze=freeze))
    oracle, state = Sgd(gated), tx.init(gated)
    for call, g in enumerate(grads):
        if call < at and (call % 2 == 0 or not alternate):
            oracle.step(g)
        before = gated
        gated, state = advance(gated, state, g, jnp.asarray(call == at))  # True once, and False again after it
        assert bool(state.frozen) == (call >= at)
        if call >= at:
            chex.assert_trees_all_equal(gated.aux, before.aux)
        chex.assert_trees_all_close(gated.aux, oracle.aux, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(gated.weights, expected[-1], rtol=1e-5, atol=1e-7)


def test_the_pull_can_follow_a_schedule_of_all_calls_or_be_traced():
    gated, grads = layer(), random_grads(layer(), 6)
    scheduled = autoprune(optax.sgd(0.1), optax.sgd(0.1), penalty=lambda step: 0.1 * step.astype(jnp.float32))
    state, oracle, after = scheduled.init(gated), Sgd(gated), gated
    for call, g in enumerate(grads):
        after, state = jax.jit(partial(step, scheduled))(after, state, g)
        if call % 2 == 0:
            oracle.step(g, mu=0.1 * call)
    chex.assert_trees_all_close(after.aux, oracle.aux, rtol=1e-5, atol=1e-7)

    @jax.jit
    def once(mu):
        tx = autoprune(optax.sgd(0.1), optax.sgd(0.1), penalty=mu)
        return step(tx, gated, tx.init(gated), grads[0])[0].aux

    for mu in (0.0, 0.5):
        oracle = Sgd(gated)
        oracle.step(grads[0], mu=mu)
        chex.assert_trees_all_close(once(mu), oracle.aux, rtol=1e-5, atol=1e-7)


def test_a_learning_rate_can_follow_the_calls_rather_than_the_turns():
    rate = lambda step: 0.1 * 0.5**step  # noqa: E731
    by_turn = optax.scale_by_schedule(lambda count: -rate(count.astype(jnp.float32)))
    by_call = transforms.scale_by_step(lambda step: -rate(step.astype(jnp.float32)))
    gated, ones = layer(), jax.tree.map(jnp.ones_like, layer())
    for weights_tx, rates in ((by_turn, [0.1, 0.05]), (by_call, [0.05, 0.0125])):
        tx, after = rule(weights_tx=optax.chain(optax.clip(10.0), weights_tx)), gated
        state = tx.init(gated)
        for _ in range(4):
            after, state = jax.jit(partial(step, tx))(after, state, ones)
        np.testing.assert_allclose(after.weights["bias"], BIAS - sum(rates), rtol=1e-5)


def test_extra_arguments_reach_both_optimizers():
    seen = []

    def update(updates, state, params=None, *, value, step, **_):
        seen.append((sorted(updates), value, step))
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx, gated = autoprune(spy, spy, penalty=0.0), layer()
    tx.update(gated, tx.init(gated), gated, value=3.0)
    assert {tuple(names) for names, *_ in seen} == {("bias", "kernel"), ("kernel",)}
    assert all(value == 3.0 and step.dtype == jnp.int32 for _, value, step in seen)


@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_weights_keep_their_dtype_and_aux_stays_float32(dtype):
    gated, tx = layer(dtype), rule(weights_tx=optax.sgd(0.1, momentum=0.9))
    x = laws.weights((7, 6), 5, dtype, 1.0)

    def loss(gated):
        k = gates.apply(gated)
        return jnp.sum(jnp.tanh(x @ k["kernel"] + k["bias"][None]).astype(jnp.float32) ** 2)

    @jax.jit
    def train(gated):
        advance = lambda run, _: (step(tx, *run, jax.grad(loss)(run[0])), None)  # noqa: E731
        return jax.lax.scan(advance, (gated, tx.init(gated)), length=10)[0]

    after, state = train(gated)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, gated)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(state.weights))
    assert float(jnp.abs(after.aux["kernel"] - gated.aux["kernel"]).max()) > 1e-3
    assert float(loss(after)) < float(loss(gated))


def trained(tx, gated, steps, seed=30):
    """Every state of a run with random gradients: `[(gated, state)]`, after a first pair that is before it."""
    advance = jax.jit(partial(step, tx))
    history = [(gated, tx.init(gated))]
    for g in random_grads(gated, steps, seed):
        history.append(advance(*history[-1], g))
    return history


@pytest.mark.parametrize("alternate", [True, False])
def test_what_turns_is_what_a_recount_finds(alternate):
    weights = {"a": laws.weights((20, 30), 6), "b": {"kernel": laws.weights((10, 4), 7)}}
    gated = gates.init(jax.random.key(0), weights)
    history = trained(rule(optax.sgd(0.5), alternate=alternate), gated, 12)
    totals = np.zeros(2, int)
    for call, ((before, _), (after, state)) in enumerate(itertools.pairwise(history)):
        counts = turnover(state)
        was, stays = (
            np.concatenate([np.ravel(m) > 0 for m in jax.tree.leaves(jax.tree.map(np.asarray, g.aux))])
            for g in (before, after)
        )
        moved = call % 2 == 0 or not alternate
        if moved:
            totals += (sum(was & ~stays), sum(~was & stays))
            assert (counts.newly_pruned, counts.recovered) == (sum(was & ~stays), sum(~was & stays))
        assert counts.pruned == sum(~stays)
        assert (counts.total_newly_pruned, counts.total_recovered) == tuple(totals)
    assert min(totals) > 50
    assert all(value.dtype == np.uint64 for value in counts)


def test_totals_outgrow_32_bits():
    gated = Gated({"k": jnp.ones(3)}, {"k": jnp.array([0.1, -0.1, 0.1])})
    tx = autoprune(optax.sgd(0.1), optax.sgd(1.0), penalty=0.0)
    state = tx.init(gated)
    state = state._replace(totals={"k": jnp.array([[0, 2**32 - 1], [5, 2**32 - 1]], jnp.uint32)})
    _, state = step(tx, gated, state, gated._replace(aux={"k": jnp.array([0.2, -0.2, 0.2])}))
    counts = turnover((optax.EmptyState(), {"inside": state}))
    assert counts == (2, 2, 1, 2**32 + 1, 6 * 2**32)


def test_a_batch_of_runs_is_the_runs_one_by_one():
    """Each with its own freeze, too."""
    gated = jax.tree.map(lambda *leaves: jnp.stack(leaves), layer(), *(layer() for _ in range(2)))
    gated = gated._replace(aux={"kernel": laws.weights((3, 6, 5), 8, shift=0.02)})
    tx, grads = rule(weights_tx=optax.rmsprop(0.01)), random_grads(gated, 6)
    freezes = jnp.array([[False] * 6, [False, False, True, False, False, False], [True] + [False] * 5]).T

    def train(gated, grads, freezes):
        advance = lambda run, x: (step(tx, *run, x[0], freeze=x[1]), None)  # noqa: E731
        return jax.lax.scan(advance, (gated, tx.init(gated)), (grads, freezes))[0]

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)
    together, states = jax.jit(jax.vmap(train, in_axes=(0, 1, 1)))(gated, stacked, freezes)
    one = jax.jit(train)
    for seed in range(3):
        part = lambda tree, seed=seed: jax.tree.map(lambda leaf: leaf[seed], tree)  # noqa: E731
        alone, state = one(part(gated), jax.tree.map(lambda leaf: leaf[:, seed], stacked), freezes[:, seed])  # noqa: B023
        chex.assert_trees_all_close(part(together), alone, rtol=1e-5, atol=1e-7)
        chex.assert_trees_all_equal(part(jax.tree.map(np.asarray, turnover(states))), turnover(state))
    assert states.frozen.tolist() == [False, True, True]


def test_parameters_and_state_can_be_donated():
    gated, tx = jax.tree.map(jnp.copy, layer()), rule(weights_tx=optax.rmsprop(0.01))
    state, grads = tx.init(gated), random_grads(gated, 2)
    expected = step(tx, *step(tx, gated, state, grads[0]), grads[1])
    program, run = jax.jit(partial(step, tx), donate_argnums=(0, 1)), (gated, state)
    for g in grads:
        run = program(*run, g)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((gated, state)))
    chex.assert_trees_all_close(run, expected, rtol=1e-5, atol=1e-7)


def test_one_and_eight_devices_make_the_same_run():
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))
    gated = gates.init(jax.random.key(1), {"k": laws.weights((16, 24), 9)}, mean=0.02)
    tx, grads = rule(weights_tx=optax.rmsprop(0.01)), random_grads(gated, 4)
    run = jax.device_put(gated, sharding)
    run = (run, jax.jit(tx.init)(run))
    for g in grads:
        run = jax.jit(partial(step, tx))(*run, jax.device_put(g, sharding))
    alone = (gated, tx.init(gated))
    for g in grads:
        alone = jax.jit(partial(step, tx))(*alone, g)
    assert run[0].aux["k"].sharding.is_equivalent_to(sharding, 2)
    chex.assert_trees_all_close(run[0], alone[0], rtol=1e-6, atol=1e-7)
    assert turnover(run[1]) == turnover(alone[1])


OUTSIDE = {
    "chain": (lambda tx: optax.chain(optax.clip(10.0), tx), "strict"),
    "MultiSteps": (lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(), "standard"),
    "inject_hyperparams": (
        lambda tx: optax.inject_hyperparams(
            lambda penalty: autoprune(optax.sgd(0.1), optax.sgd(0.1), penalty=penalty), hyperparam_dtype=jnp.float32
        )(MU),
        "strict",
    ),
    "freeze_at, not reached": (
        lambda tx: freeze_at(tx, sj.targets.weights(sj.budgets.Budget({"kernel": 1}, 0))),
        "strict",
    ),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_it_is_the_same_inside_a_wrapper(name):
    wrap, promotion = OUTSIDE[name]
    expected = trained(rule(), layer(), 4)[-1]
    with jax.numpy_dtype_promotion(promotion):
        gated, state = trained(wrap(rule()), layer(), 4)[-1]
    chex.assert_trees_all_close(gated, expected[0], rtol=1e-5, atol=1e-7)
    assert turnover(state) == turnover(expected[1])


def test_a_step_that_is_not_finite_can_be_skipped():
    """A NaN among the auxiliary parameters would prune for good."""
    grads = random_grads(layer(), 4)
    bad = jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), grads[0])
    tx = optax.apply_if_finite(rule(), 5)
    run = (layer(), tx.init(layer()))
    for g in (*grads[:2], bad, *grads[2:]):
        run = jax.jit(partial(step, tx))(*run, g)
    expected = (layer(), rule().init(layer()))
    for g in grads:
        expected = jax.jit(partial(step, rule()))(*expected, g)
    chex.assert_trees_all_close(run[0], expected[0], rtol=1e-5, atol=1e-7)


# Recoverability: a pruned weight under each penalty, vector A8.
def faded(weights_tx, w, steps):
    gated = Gated({"k": jnp.array([w])}, {"k": jnp.array([-0.1])})
    tx = autoprune(weights_tx, optax.set_to_zero(), penalty=0.0, alternate=False)
    zero = jax.tree.map(jnp.zeros_like, gated)

    @jax.jit
    def train(gated):
        advance = lambda run, _: ((run := step(tx, *run, zero)), run[0].weights["k"][0])  # noqa: E731
        return jax.lax.scan(advance, (gated, tx.init(gated)), length=steps)[1]

    return np.asarray(train(gated))


def test_a_pruned_weight_fades_under_l2_and_never_vanishes():
    history = faded(optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1)), 0.05, 100)
    np.testing.assert_allclose(history[-1], 0.04523960735568545, rtol=1e-5)
    with jax.numpy_dtype_promotion("standard"):  # optax is not ready for the strict one everywhere
        decoupled = faded(optax.adamw(0.1, weight_decay=0.01), 0.05, 100)
    np.testing.assert_allclose(decoupled, 0.05 * 0.999 ** np.arange(1, 101), rtol=1e-4)
    assert np.all(history > 0)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_pruned_weight_vanishes_under_l1(sign):
    history = faded(optax.chain(optax.sgd(0.1), proximal_l1(0.1, 0.01)), sign * 0.05, 60)
    np.testing.assert_allclose(history[:49], sign * (0.05 - 0.001 * np.arange(1, 50)), atol=1e-7)
    assert np.all(history[50:] == 0)  # step 50, but for the rounding of 50 sums
    assert abs(history[49]) < 1e-7
    exact = faded(optax.chain(optax.sgd(0.125), proximal_l1(0.125, 0.0625)), sign * 0.5, 70)
    assert np.flatnonzero(exact == 0)[0] + 1 == 64 == math.ceil(0.5 / (0.125 * 0.0625))


def test_l1_makes_pruning_final_and_l2_does_not():
    """Both are pruned and fade; then the loss asks for them, `dL/dt < 0` for a positive weight."""
    penalties = {
        "l1": optax.chain(optax.sgd(0.125), proximal_l1(0.125, 0.0625)),
        "l2": optax.chain(optax.add_decayed_weights(0.0625), optax.sgd(0.125)),
    }
    back = {}
    for name, weights_tx in penalties.items():
        gated = Gated({"k": jnp.array([0.5])}, {"k": jnp.array([-0.03])})
        tx = autoprune(weights_tx, optax.sgd(0.1), penalty=MU)
        run, zero = (gated, tx.init(gated)), jax.tree.map(jnp.zeros_like, gated)
        advance = jax.jit(partial(step, tx))
        for _ in range(2 * 64):
            run = advance(*run, zero)
        assert float(run[0].aux["k"][0]) < -0.03
        missed = jax.jit(jax.grad(lambda gated: -0.5 * gates.apply(gated)["k"].sum()))
        for _ in range(2 * 200):
            run = advance(*run, missed(run[0]))
        back[name] = float(run[0].aux["k"][0]) > 0
        assert (float(run[0].weights["k"][0]) == 0) == (name == "l1")
        assert int(turnover(run[1]).total_recovered) == (name == "l2")
    assert back == {"l1": False, "l2": True}


def test_the_proximal_step_is_the_minimiser_and_keeps_dtypes():
    """Compared with its candidates, as in the definition."""
    for dtype in laws.DTYPES:
        p, u = laws.weights(200, 10, dtype), laws.weights(200, 11, dtype, 0.05)
        tx = proximal_l1(optax.constant_schedule(0.5), 0.125)
        updates, state = tx.update(u, tx.init(p), p)
        after = np.asarray(optax.apply_updates(p, updates), np.float64)
        v = np.asarray(p, np.float64) + np.asarray(u, np.float64)
        expected = np.sign(v) * np.maximum(np.abs(v) - 0.0625, 0)
        np.testing.assert_allclose(
            after, expected, rtol=4 * float(jnp.finfo(dtype).eps), atol=2e-3 if dtype != jnp.float32 else 1e-7
        )
        np.testing.assert_array_equal(after == 0, expected == 0)
        assert updates.dtype == dtype
        assert int(state.count) == 1


def test_the_proximal_step_follows_its_schedule_and_shows_a_nan():
    tx = proximal_l1(lambda count: 0.25 * count.astype(jnp.float32), 0.5)
    p, state = jnp.array([1.0, jnp.nan]), tx.init(None)
    seen = []
    for options in ({}, {}, {"step": jnp.int32(4)}):
        updates, state = tx.update(jnp.zeros(2), state, p, **options)
        seen.append(float(updates[0]))
        assert np.isnan(updates[1])
    assert seen == [0.0, -0.125, -0.5]


def test_rates_of_layers_are_found_by_name_or_pattern():
    aux = {"Conv_0/kernel": jnp.ones(2), "Conv_1/kernel": jnp.ones(2), "Dense_0/kernel": jnp.ones(2, jnp.bfloat16)}
    tx = transforms.scale_by_name({"Conv_1/kernel": 3.0, "Dense": 0.5})
    updates, _ = jax.jit(tx.update)(aux, tx.init(aux))
    assert {name: float(u[0]) for name, u in updates.items()} == {
        "Conv_0/kernel": 1.0, "Conv_1/kernel": 3.0, "Dense_0/kernel": 0.5,
    }  # fmt: skip
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, aux)
    history = trained(rule(optax.chain(optax.sgd(0.1), transforms.scale_by_name({"kernel": 0.0}))), layer(), 4)
    chex.assert_trees_all_equal(history[-1][0].aux, layer().aux)


def test_balanced_rates_make_all_layers_move_alike():
    grads = {"a": laws.weights(500, 12, scale=1e-3), "b": laws.weights((20, 30), 13, scale=2.0), "c": jnp.zeros(3)}
    factors = jax.jit(transforms.balanced)(grads)
    scaled = {name: factors[name] * g for name, g in grads.items()}
    sizes = [math.sqrt(float(jnp.mean(scaled[name] ** 2))) for name in ("a", "b")]
    np.testing.assert_allclose(sizes[0], sizes[1], rtol=1e-5)
    np.testing.assert_allclose(factors["a"] * factors["b"], 1.0, rtol=1e-5)
    assert float(factors["c"]) == 1.0


# Stopping at a target.
def problem(seed=0):
    """A regression of which half of the inputs is noise, and gates on its first layer."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((128, 12)).astype(np.float32)
    y = np.tanh(x[:, :6] @ rng.standard_normal((6, 3))).astype(np.float32)
    weights = {"k1": laws.weights((12, 10), seed + 1, scale=0.3), "k2": laws.weights((10, 3), seed + 2, scale=0.3)}
    return gates.init(jax.random.key(seed), weights), jnp.asarray(x), jnp.asarray(y)


def fit(tx, gated, x, y, steps):
    """The end of a run, and how many gates were open before every call."""

    def loss(gated):
        k = gates.apply(gated)
        return jnp.mean((jnp.tanh(x @ k["k1"]) @ k["k2"] - y) ** 2)

    def advance(run, _):
        gated, state = run
        counts = jnp.stack([jnp.sum(m > 0) for m in gated.aux.values()]).sum()
        return step(tx, gated, state, jax.grad(loss)(gated)), (counts, loss(gated))

    return jax.lax.scan(advance, (gated, tx.init(gated)), length=steps)


@pytest.mark.parametrize("ratio", [2.0, 5.0])
def test_training_stops_at_its_target_to_the_last_weight(ratio):
    gated, x, y = problem()
    target = sj.targets.weights(sj.budgets.compression(gated.weights, ratio))
    tx = freeze_at(autoprune(optax.rmsprop(0.01), optax.sgd(0.2), penalty=0.05), target)
    (after, state), (counts, losses) = jax.jit(lambda gated: fit(tx, gated, x, y, 2000))(gated)
    limit, counts, at = math.floor(150 / ratio), np.asarray(counts), int(reached_at(state))
    assert 0 < at < 1900
    assert np.all(counts[:at] > limit)  # never before
    assert counts[at] <= limit  # overshot, perhaps
    assert np.all(counts[at + 1 :] == limit)  # and met from then on, whatever the gradients
    assert sj.report.count(gates.finalize(after), where="k").nonzeros == limit
    assert bool(target.reached(after))
    assert float(losses[-1]) < 0.5 * float(losses[0])
    assert turnover(state).total_recovered > 0


def test_a_large_step_overshoots_and_is_undone_in_part():
    """The gates that come back are those with the largest auxiliary parameters."""
    gated = Gated({"k": laws.weights((10, 10), 14)}, {"k": laws.weights((10, 10), 15, shift=0.3)})
    target = sj.targets.weights(sj.budgets.compression(gated.weights, 2.0))
    tx = freeze_at(autoprune(optax.sgd(0.1), optax.sgd(1.0), penalty=0.0), target)
    grads = jax.tree.map(jnp.zeros_like, gated)._replace(aux={"k": jnp.full((10, 10), 0.35)})
    advance = jax.jit(partial(step, tx))
    (first, state), moved = advance(gated, tx.init(gated), grads), None
    assert int((first.aux["k"] > 0).sum()) < 50
    assert int(reached_at(state)) == -1
    second, state = advance(first, state, grads)
    assert int(reached_at(state)) == 1
    opened = np.asarray(second.aux["k"]) > 0
    assert opened.sum() == 50
    m = np.asarray(first.aux["k"])
    assert m[opened].min() > m[~opened].max()
    moved = np.asarray(second.aux["k"] != first.aux["k"])
    np.testing.assert_array_equal(moved, opened & (m <= 0))
    for _ in range(3):
        third, state = advance(second, state, grads)
        chex.assert_trees_all_equal(third.aux, second.aux)


def test_a_target_that_is_never_reached_is_reported():
    gated, x, y = problem()
    target = sj.targets.weights(sj.budgets.compression(gated.weights, 20.0))
    tx = freeze_at(autoprune(optax.rmsprop(0.01), optax.sgd(0.01), penalty=1e-3), target)
    (after, state), _ = jax.jit(lambda gated: fit(tx, gated, x, y, 40))(gated)
    assert int(reached_at(state)) == -1
    assert not bool(state.inner.frozen)
    assert not bool(target.reached(after))


def test_units_stop_at_a_share_of_multiply_adds_and_every_layer_keeps_one():
    shapes = {"k1": (12, 16), "k2": (16, 8), "k3": (8, 3)}
    params = {name: laws.weights(shape, seed, scale=0.3) for seed, (name, shape) in enumerate(shapes.items(), 40)}
    units = {
        "one": Group(16, (Member("k1", 1), Member("k2", 0, reads=True))),
        "two": Group(8, (Member("k2", 1), Member("k3", 0, reads=True))),
    }

    def run(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["k1"]) @ p["k2"]) @ p["k3"]

    _, x, y = problem()
    dense = sj.report.multiply_adds(run, params, x[:1])
    target = sj.targets.units(sj.budgets.multiply_adds(params, dense, 0.3), units)
    tx = freeze_at(autoprune(optax.rmsprop(0.01), optax.sgd(0.2), penalty=0.2), target)

    def advance(state, _):
        gated, state = state
        grads = jax.grad(lambda gated: jnp.mean((run(sj.unit_gates.apply(gated, units), x) - y) ** 2))(gated)
        return step(tx, gated, state, grads), None

    def train(key):
        gated = sj.unit_gates.init(key, params, units)
        return jax.lax.scan(advance, (gated, tx.init(gated)), length=600)[0]

    gated, state = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), 3))
    assert np.all(reached_at(state) > 0)
    for seed in range(3):
        final = sj.unit_gates.finalize(jax.tree.map(lambda leaf: leaf[seed], gated), units)  # noqa: B023
        one, two = (int(np.any(np.asarray(final[name]) != 0, axis=1).sum()) for name in ("k2", "k3"))
        assert min(one, two) >= 1
        left = 12 * one + one * two + two * 3
        assert 0.15 * dense.total < left <= 0.3 * dense.total
        limit = math.floor(0.3 * dense.total + 1e-9)
        assert left > limit - max(12 + two, one + 3)  # no room for one more unit
        assert float(np.std(np.asarray(run(final, x)), axis=0).max()) > 1e-3


GATED = layer()
TX = rule()
STATE = TX.init(GATED)
WRONG = {
    "negative pull": (lambda: autoprune(optax.sgd(0.1), optax.sgd(0.1), penalty=-1.0), "penalty=-1.0 must be a finite"),
    "pull is nan": (lambda: autoprune(optax.sgd(0.1), optax.sgd(0.1), penalty=math.nan), "penalty=nan"),
    "pull is text": (lambda: autoprune(optax.sgd(0.1), optax.sgd(0.1), penalty="large"), "penalty='large'"),
    "not gated": (lambda: TX.init({"k": jnp.ones(2)}), "params is dict, but autoprune trains a Gated"),
    "no params": (lambda: TX.update(GATED, STATE), r"params is NoneType.*tx.update\(grads, state, params\)"),
    "grads not gated": (lambda: TX.update({}, STATE, GATED), "updates is dict"),
    "nothing gated": (lambda: TX.init(Gated({"k": jnp.ones(2)}, {})), "params.aux must be a dict with an entry"),
    "narrow aux": (
        lambda: TX.init(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), GATED)),
        r"params.aux\['kernel'\] has dtype bfloat16.*float32",
    ),
    "nan aux": (
        lambda: TX.init(Gated({"k": jnp.ones(2)}, {"k": jnp.array([jnp.nan, 0.1])})),
        r"aux\['k'\].* holds 1 NaN",
    ),
    "freeze is a number": (lambda: TX.update(GATED, STATE, GATED, freeze=1), "freeze=1 must be a bool scalar"),
    "freeze is an array": (lambda: TX.update(GATED, STATE, GATED, freeze=jnp.ones(2, bool)), "must be a bool scalar"),
    "no params, target": (
        lambda: freeze_at(TX, sj.targets.weights(sj.budgets.Budget({}, 1))).update(GATED, STATE),
        "params=None, but freeze_at needs them",
    ),
    "no state of it": (lambda: turnover(optax.EmptyState()), "state holds 0 AutopruneState, not one"),
    "two states of it": (lambda: turnover((STATE, STATE)), "state holds 2 AutopruneState"),
    "no target": (lambda: reached_at(STATE), "state holds 0 FreezeAtState"),
    "negative rate": (lambda: proximal_l1(-0.1, 0.1), "learning_rate=-0.1 must be a finite number >= 0"),
    "negative strength": (lambda: proximal_l1(0.1, -0.1), "strength=-0.1 must be a finite number >= 0"),
    "proximal without params": (
        lambda: proximal_l1(0.1, 0.1).update(BIAS, proximal_l1(0.1, 0.1).init(None)),
        "params=None, but proximal_l1 needs them",
    ),
    "negative factor": (lambda: transforms.scale_by_name({"k": -1.0}), r"factors\['k'\]=-1.0 must be a finite"),
    "name of no leaf": (
        lambda: transforms.scale_by_name({"conv": 2.0}).init(GATED.aux),
        r"factors has an entry 'conv' that matches no leaf; the leaves are \['kernel'\]",
    ),
    "no expression": (lambda: transforms.scale_by_name({"(": 2.0}).init(GATED.aux), "no regular expression"),
    "twice": (lambda: transforms.scale_by_name({"k": 2.0, "kernel": 3.0}).init(GATED.aux), "two entries, 'kernel' and"),
    "no step": (lambda: transforms.scale_by_step(lambda step: step).update(BIAS, None), "step=None"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
