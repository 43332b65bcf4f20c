"""Zeros that stay zero under every optimizer, in every container, on every device; and what the optimizer forgets."""

import itertools
import os
import socket
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import laws
import numpy as np
import optax
import oracles
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj
from sparsejax import rules, schedules, scores, select, tree

RATE = 0.05


@pytest.fixture(autouse=True)
def optax_promotes(strict):
    """Optax's own optimizers mix dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def with_extra_state():
    """An optimizer that keeps a history of gradients, as quasi-Newton methods do, and a number that is no weight's."""

    def init(params):
        return {
            "history": jax.tree.map(lambda p: jnp.zeros((3, *p.shape), p.dtype), params),
            "norm": jnp.zeros(()),
            "key": jax.random.key(0),
        }

    def update(updates, state, params=None):
        del params
        history = jax.tree.map(lambda h, u: jnp.concatenate([h[1:], u[None]]), state["history"], updates)
        norm = optax.tree.norm(updates).astype(jnp.float32)
        return jax.tree.map(lambda h: -RATE * h.sum(0), history), {**state, "history": history, "norm": norm}

    return optax.GradientTransformation(init, update)


# Every optimizer to put a mask in, as `sparsify -> optimizer`: around it, inside it, or both.
OPTIMIZERS = {
    "sgd": lambda wrap: wrap(optax.sgd(RATE)),
    "momentum": lambda wrap: wrap(optax.sgd(RATE, momentum=0.9, nesterov=True)),
    "adam": lambda wrap: wrap(optax.adam(RATE)),
    "adamw": lambda wrap: wrap(optax.adamw(RATE, weight_decay=0.1)),
    "amsgrad": lambda wrap: wrap(optax.amsgrad(RATE)),
    "adagrad": lambda wrap: wrap(optax.adagrad(RATE)),
    "rmsprop": lambda wrap: wrap(optax.rmsprop(RATE, centered=True, momentum=0.9)),
    "lion": lambda wrap: wrap(optax.lion(RATE)),
    "adafactor": lambda wrap: wrap(optax.adafactor(RATE, min_dim_size_to_factor=4, momentum=0.9)),
    "adabelief": lambda wrap: wrap(optax.adabelief(RATE)),
    "lamb": lambda wrap: wrap(optax.lamb(RATE)),
    "novograd": lambda wrap: wrap(optax.novograd(RATE)),
    "muon": lambda wrap: wrap(optax.contrib.muon(RATE)),
    "schedule free": lambda wrap: wrap(optax.contrib.schedule_free_sgd(RATE)),
    "grda": lambda wrap: wrap(sj.grda(RATE, c=0.0)),
    "histories and keys": lambda wrap: wrap(with_extra_state()),
    "clipping and a schedule": lambda wrap: wrap(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(RATE, 100)))
    ),
    "apply_if_finite": lambda wrap: wrap(optax.apply_if_finite(optax.adam(RATE), 2)),
    "MultiSteps inside": lambda wrap: wrap(optax.MultiSteps(optax.adam(RATE), 2).gradient_transformation()),
    "MultiSteps around": lambda wrap: optax.MultiSteps(wrap(optax.adam(RATE)), 2).gradient_transformation(),
    "inject_hyperparams inside": lambda wrap: wrap(
        optax.inject_hyperparams(optax.adam, static_args=("b1", "b2", "eps", "eps_root"))(learning_rate=RATE)
    ),
    "inject_hyperparams around": lambda wrap: optax.inject_hyperparams(lambda rate: wrap(optax.adam(rate)))(rate=RATE),
    "partition inside": lambda wrap: wrap(optax.partition({"a": optax.adam(RATE), "b": optax.sgd(RATE)}, LABELS)),
    "partition around": lambda wrap: optax.partition({"a": wrap(optax.adam(RATE)), "b": optax.sgd(RATE)}, LABELS),
    "masked around": lambda wrap: optax.masked(wrap(optax.adam(RATE)), {"a": True, "b": [True, False]}),
    "chain around": lambda wrap: optax.chain(optax.clip(1.0), wrap(optax.adam(RATE))),
}
LABELS = {"a": "a", "b": ["a", "b"]}


def parameters(dtype):
    return {"a": laws.weights((6, 8), 50, dtype), "b": [laws.weights((3, 4, 5), 51, dtype), laws.weights(5, 52, dtype)]}


def gradients(params, step):
    return jax.tree.map(lambda p: laws.weights(p.shape, 100 + step, p.dtype, scale=1.0), params)


def restless(params_of_rank_2=0.5):
    """A rule that draws a new mask whenever it is asked: weights die and are born all the time."""

    def draw(params, key):
        shapes = {name: leaf for name, leaf in tree.named(params).items() if leaf.ndim > 1}
        drawn = {name: leaf > 0 for name, leaf in tree.draw(key, shapes).items()}
        return tree.replace(jax.tree.map(lambda _: jnp.asarray(True), params), drawn)

    return rules.Rule(draw, lambda mask, params, step, *, key, **_: draw(params, key), lambda struck: True)


def pruned(mask, params):
    """The entries that a mask prunes, as NumPy arrays by leaf name."""
    masks = tree.named(mask)
    return {name: ~np.broadcast_to(masks[name], leaf.shape) for name, leaf in tree.named(params).items()}


def check_zeros(params, mask):
    dead = 0
    for name, dead_here in pruned(mask, params).items():
        values = np.asarray(tree.named(params)[name], np.float32)
        assert not values[dead_here].any(), name
        assert not np.signbit(values[dead_here]).any(), name
        dead += int(dead_here.sum())
    return dead


def step_of(tx, traces=1):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=traces)
    def step(params, state, grads, extra):
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype:UserWarning")
def test_zeros_are_exact_after_every_update_in_one_trace(name, dtype):
    tx = OPTIMIZERS[name](lambda inner: sj.sparsify(inner, restless(), schedules.every(2)))
    params = parameters(dtype)
    step = step_of(optax.with_extra_args_support(tx))
    state = tx.init(params)
    before, seen = (params, state), []
    params = sj.apply(sj.find_mask(state, params), params)
    for index in range(5):
        params, state = step(params, state, gradients(params, index), {})
        mask = sj.find_mask(state, params)
        assert check_zeros(params, mask) > 10
        seen.append(np.asarray(tree.named(mask)["a"]))
        chex.assert_tree_all_finite(params)
    assert any((a != b).any() for a, b in itertools.pairwise(seen))
    chex.assert_trees_all_equal_shapes_and_dtypes((params, state), before)


# What each optimizer keeps of every weight, by the end of its name in the state, and what of a newborn one.
MEMORIES = {
    "momentum": {"trace": 0.0},
    "adam": {"mu": 0.0, "nu": 0.0},
    "adabelief": {"mu": 0.0, "nu": 0.0},
    "adagrad": {"sum_of_squares": 0.1},
    "grda": {"accumulator": 0.0},
    "clipping and a schedule": {"mu": 0.0, "nu": 0.0},
    "inject_hyperparams inside": {"mu": 0.0, "nu": 0.0},
    "MultiSteps inside": {"mu": 0.0, "nu": 0.0, "acc_grads": 0.0},
    "partition inside": {"mu": 0.0, "nu": 0.0},
    "histories and keys": {"history": 0.0},
}


@pytest.mark.parametrize("name", MEMORIES)
def test_the_memory_of_dead_weights_is_that_of_newborn_ones(name):
    tx = OPTIMIZERS[name](lambda inner: sj.sparsify(inner, restless(), schedules.every(2)))
    params = parameters(jnp.float32)
    state, step = tx.init(params), step_of(tx)
    for index in range(5):
        params, state = step(params, state, gradients(params, index), {})
    dead, checked = pruned(state.mask, params)["a"], set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.inner):
        words = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        for memory, newborn in MEMORIES[name].items():
            if words[-2:] == [memory, "a"]:
                values = np.asarray(leaf)
                np.testing.assert_allclose(values[..., dead], newborn, atol=1e-15)  # AdaBelief adds 1e-16
                assert (values[..., ~dead] != newborn).any()
                checked.add(memory)
    assert checked == set(MEMORIES[name])


def test_it_is_the_loop_of_the_masked_optimizer():
    """Adam with decay, written out in NumPy: masked gradients, forgotten moments, zeros."""
    params = {"kernel": laws.weights((6, 8), 53)}
    tx = sj.sparsify(optax.adamw(RATE, weight_decay=0.1), restless(), schedules.every(3, start=1))
    state, step = tx.init(params), step_of(tx)
    expected = oracles.MaskedAdam(np.asarray(params["kernel"]), RATE, decay=0.1)
    for index in range(7):
        grads = gradients(params, index)
        params, state = step(params, state, grads, {})
        expected.update(np.asarray(grads["kernel"]), np.asarray(state.mask["kernel"]))
        np.testing.assert_allclose(params["kernel"], expected.weights, rtol=2e-5, atol=1e-6)


def test_clipping_sees_the_gradient_of_the_sparse_network():
    mask = {"kernel": jnp.asarray(np.arange(48).reshape(6, 8) < 5)}
    tx = sj.sparsify(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)), rules.fixed(mask), schedules.at(0))
    params = {"kernel": jnp.zeros((6, 8))}
    updates, _ = tx.update({"kernel": jnp.full((6, 8), 100.0)}, tx.init(params), params)
    np.testing.assert_allclose(np.linalg.norm(updates["kernel"]), 1, rtol=1e-6)


def test_the_rule_sees_the_raw_gradient_the_step_and_what_the_caller_passes():
    seen = []

    def update(mask, params, step, *, grads, key, value, **others):
        seen.append((step, grads, key, value, others))
        return jax.tree.map(lambda g: g > value, grads)

    def refuse(updates, state, params=None, *, value, **others):
        assert not others
        return jax.tree.map(lambda u: u * value, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), refuse)
    first = {"k": jnp.array([False, False, True])}
    rule = rules.Rule(lambda params, key: first, update, lambda struck: True)
    tx = sj.sparsify(inner, rule, lambda step: step == 1)
    params = {"k": jnp.array([0.0, 0.0, 3.0])}
    step, state, grads = step_of(tx), tx.init(params), {"k": jnp.array([4.0, 1.0, 2.0])}
    params, state = step(params, state, grads, {"value": jnp.float32(1.5)})
    assert params["k"].tolist() == [0, 0, 6]
    params, state = step(params, state, grads, {"value": jnp.float32(1.5)})
    assert params["k"].tolist() == [6, 0, 9]
    assert len(seen) == 1
    assert not seen[0][4]


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


@partial(jax.tree_util.register_dataclass, data_fields=["weight", "bias"], meta_fields=["name"])
class Module:
    """A module as Equinox makes them: a class that is a pytree, with what is no array beside the arrays."""

    def __init__(self, weight, bias, name):
        self.weight, self.bias, self.name = weight, bias, name


def linen():
    import flax.linen as nn

    model = nn.Sequential([nn.Dense(12), nn.relu, nn.Dense(4)])
    return model.init(jax.random.key(0), jnp.ones((1, 8)))["params"]


def nnx():
    from flax import nnx

    return nnx.state(nnx.Linear(8, 12, rngs=nnx.Rngs(0)), nnx.Param)


CONTAINERS = {
    **{name: (lambda make=make: make(jnp.float32)) for name, (make, _) in laws.TREES.items()},
    "nested lists and tuples": lambda: [([laws.weights((6, 8))], (laws.weights((8, 4)), laws.weights(4)))],
    "Equinox-like": lambda: Module(laws.weights((6, 8)), laws.weights(8), "dense"),
    "Flax Linen": linen,
    "Flax NNX": nnx,
    "with integers": lambda: {"kernel": laws.weights((6, 8)), "steps": jnp.zeros(3, jnp.int32)},
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_is_pruned_to_the_exact_count(container):
    params = CONTAINERS[container]()
    rule = rules.prune_to(0.75, ramp=schedules.cubic(0, 3))
    tx = sj.sparsify(
        optax.adam(RATE) if container != "with integers" else optax.sgd(RATE), rule, schedules.every(2, end=3)
    )
    grads = jax.tree.map(lambda p: jnp.ones_like(p) if p.dtype == jnp.float32 else jnp.zeros_like(p), params)
    if container == "with integers":
        tx = sj.sparsify(
            optax.masked(optax.sgd(RATE), {"kernel": True, "steps": False}), rule, schedules.every(2, end=3)
        )
    step, state = step_of(tx), tx.init(params)
    for _ in range(4):
        params, state = step(params, state, grads, {})
        check_zeros(params, state.mask)
    expected = {
        name: 1 if leaf.ndim < 2 else oracles.kept(0.75, leaf.size) for name, leaf in tree.named(params).items()
    }
    assert {name: int(m.sum()) for name, m in tree.named(state.mask).items()} == expected


def test_stacked_layers_compete_by_layer():
    params = {"layers": jnp.stack([laws.weights((8, 8), 54, scale=s) for s in (1e-3, 1.0, 1e3)])}
    tx = sj.sparsify(optax.sgd(RATE), rules.prune_to(0.75, scope=select.per(0)), schedules.at(0))
    _, state = tx.update(params, tx.init(params), params)
    assert state.mask["layers"].sum((1, 2)).tolist() == [16, 16, 16]


def test_a_checkpoint_resumes_exactly(tmp_path):
    import orbax.checkpoint as ocp

    params = parameters(jnp.bfloat16)
    rule = rules.drop_and_grow(0.5, grow=scores.random)
    tx = sj.sparsify(optax.adam(RATE), rule, schedules.every(2), seed=3)
    step = step_of(tx)
    state = tx.init(params)
    for index in range(3):
        params, state = step(params, state, gradients(params, index), {})
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", {"params": params, "state": state})
    with ocp.StandardCheckpointer() as checkpointer:
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, {"params": params, "state": state})
        restored = checkpointer.restore(tmp_path / "state", target)
    runs = [(params, state), (restored["params"], restored["state"])]
    for index in range(3, 6):
        runs = [step(*run, gradients(params, index), {}) for run in runs]
    chex.assert_trees_all_equal(*runs)
    assert sj.find_mask(runs[1][1])["a"].sum() == 24


SPECS = {"a": P("x", "y"), "b": P("y")}


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("wrap", [lambda init: init, jax.jit], ids=["eager init", "jitted init"])
def test_one_and_eight_devices_make_the_same_run_and_shardings_stay(axes, wrap):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axes,) * 2)
    params = {"a": laws.weights((16, 12), 55), "b": laws.weights(12, 56)}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    rule = rules.prune_to(0.75, ramp=schedules.linear(0, 2))
    tx = sj.sparsify(optax.adam(RATE), rule, schedules.every(1))
    runs = []
    for place in (lambda tree: tree, lambda tree: jax.device_put(tree, shardings)):
        placed, step = place(params), step_of(tx, traces=2)  # numbers of an eager init are not yet on the mesh
        state = wrap(tx.init)(placed)
        assert state.mask["a"].sharding.is_equivalent_to(placed["a"].sharding, 2)
        for index in range(3):
            placed, state = step(placed, state, place(gradients(params, index)), {})
        assert state.mask["a"].sharding.is_equivalent_to(placed["a"].sharding, 2)
        for moment in (state.inner[0].mu, state.inner[0].nu):
            assert moment["a"].sharding.is_equivalent_to(placed["a"].sharding, 2)
        runs.append(jax.tree.map(np.asarray, (placed, state.mask)))
    chex.assert_trees_all_close(runs[0][0], runs[1][0], rtol=1e-6)
    chex.assert_trees_all_equal(runs[0][1], runs[1][1])


@pytest.mark.slow
def test_two_processes_make_the_run_of_one():
    script = Path(__file__).parent / "two_processes.py"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(script.parent.parent)}
    environment.pop("JAX_NUM_CPU_DEVICES")  # the script says how many

    def start(rank, count):
        command = [sys.executable, script, *map(str, (rank, count, port))]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def results(process):
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return [line for line in out.splitlines() if line.startswith("result")]

    alone = results(start(0, 1))
    together = [results(process) for process in (start(0, 2), start(1, 2))]
    assert len(alone) == 2
    assert together == [alone, alone]


def test_only_the_mask_crosses_the_condition():
    params = parameters(jnp.float32)
    tx = sj.sparsify(optax.adam(RATE), rules.prune_to(0.5), schedules.every(100))
    jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params)
    conditions = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "cond"]
    assert len(conditions) == 1
    assert {out.aval.dtype for out in conditions[0].outvars} == {np.dtype(bool)}


@pytest.mark.parametrize("wrap", [lambda init: init, jax.jit], ids=["eager init", "jitted init"])
def test_parameters_and_state_can_be_donated(wrap):
    tx, params = sj.sparsify(optax.adam(RATE), rules.prune_to(0.5), schedules.every(2)), parameters(jnp.float32)
    state = wrap(tx.init)(params)
    step = jax.jit(lambda p, s, g: tx.update(g, s, p), donate_argnums=(0, 1))
    _, after = step(params, state, gradients(parameters(jnp.float32), 0))
    assert after.mask["a"].sum() == 24
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)))


DENSE = {
    "a clock that never strikes": (rules.prune_to(0.5), lambda step: step < 0),
    "a ramp that has not begun": (rules.prune_to(0.5, ramp=schedules.cubic(0, 100)), schedules.at(0)),
    "a target of nothing": (rules.prune_to({"a": 0.0, "b": [0.0, 0.0]}), schedules.every(1)),
    "a mask of nothing": (rules.fixed(jax.tree.map(lambda _: jnp.asarray(True), LABELS)), schedules.every(1)),
}


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("wrap", [lambda init: init, jax.jit], ids=["eager", "jitted"])
def test_it_warns_when_nothing_will_ever_be_pruned(name, wrap):
    tx = sj.sparsify(optax.sgd(RATE), *DENSE[name])
    with pytest.warns(UserWarning, match="sparsify will prune nothing"):
        wrap(tx.init)(parameters(jnp.float32))


def test_it_does_not_warn_otherwise():
    late = sj.sparsify(optax.sgd(RATE), rules.prune_to(0.5), schedules.every(10_000, start=900_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        late.init(parameters(jnp.float32))


def test_the_mask_is_found_wherever_it_is():
    params = parameters(jnp.float32)
    mask = {"a": laws.weights((6, 8)) > 0, "b": [jnp.asarray(True)] * 2}
    deep = optax.chain(
        optax.clip(1.0),
        optax.MultiSteps(
            sj.sparsify(optax.adam(RATE), rules.fixed(mask), schedules.at(0)), 2
        ).gradient_transformation(),
    )
    chex.assert_trees_all_equal(sj.find_mask(deep.init(params)), mask)
    two = optax.chain(*[sj.sparsify(optax.adam(RATE), restless(), schedules.at(0), seed=seed) for seed in (1, 2)])
    state = two.init(params)
    with pytest.raises(ValueError, match="holds 2 masks; call find_mask"):
        sj.find_mask(state)
    both = sj.find_mask(state, params)
    np.testing.assert_array_equal(both["a"], state[0].mask["a"] & state[1].mask["a"])
    with pytest.raises(ValueError, match="holds no SparsifyState"):
        sj.find_mask(optax.adam(RATE).init(params))


def test_wrong_calls_say_what_is_wrong():
    params = parameters(jnp.float32)
    tx = sj.sparsify(optax.sgd(RATE), rules.prune_to(0.5), schedules.at(0))
    state = tx.init(params)
    with pytest.raises(ValueError, match="params=None, but sparsify needs them"):
        tx.update(params, state)
    with pytest.raises(ValueError, match="updates must have the structure"):
        tx.update(params["a"], state, params)
    with pytest.raises(ValueError, match="leaf 'a': groups of m=4 do not divide"):
        sj.sparsify(optax.sgd(RATE), rules.prune_to(0.5, scope=select.groups_of(4)), schedules.at(0)).init(params)
    with pytest.raises(ValueError, match="mask must have the structure"):
        sj.sparsify(optax.sgd(RATE), rules.fixed({"a": jnp.array([False])}), schedules.at(0)).init(params)
