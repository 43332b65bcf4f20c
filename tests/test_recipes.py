"""Every published name, trained for a few steps in every container: zeros, counts, and what makes it that method."""

import inspect
from functools import partial

import chex
import jax
import jax.numpy as jnp
import laws
import numpy as np
import optax
import oracles
import pytest

import sparsejax as sj
from sparsejax import allocate, recipes, tree

END, TARGET = 4, 0.75
RECIPES = {
    "one_shot_magnitude": partial(recipes.one_shot_magnitude, target=TARGET, step=1),
    "gradual_magnitude": partial(recipes.gradual_magnitude, target=TARGET, start=0, end=END, period=3),
    "global_magnitude": partial(recipes.global_magnitude, target=TARGET, start=0, end=END, period=2),
    "random_pruning": partial(recipes.random_pruning, target=TARGET, step=1),
    "snip": partial(recipes.snip, target=TARGET),
    "set_": partial(recipes.set_, target=TARGET, period=2),
    "rigl": partial(recipes.rigl, target=TARGET, end=END, period=2),
    "n_of_m": partial(recipes.n_of_m, n=1, m=4, start=0, end=END, period=2, axis=-2),
    "block_magnitude": partial(recipes.block_magnitude, target=TARGET, size=(2, 2), start=0, end=END, period=2),
    "balanced_blocks": partial(recipes.balanced_blocks, target=TARGET, size=(2, 4), start=0, end=END, period=2),
    "channel_magnitude": partial(recipes.channel_magnitude, target=TARGET, start=0, end=END, period=2, axis=-1),
}
SPARSE_FROM_THE_START = {"set_", "rigl"}


class Module:
    """A pytree that is a class of its own."""

    def __init__(self, kernel, bias):
        self.kernel, self.bias = kernel, bias


jax.tree_util.register_dataclass(Module, data_fields=["kernel", "bias"], meta_fields=[])
F32, BF16 = jnp.float32, jnp.bfloat16
VIEWS = {
    "dict": lambda: {"a": {"kernel": laws.weights((8, 12), 70, F32), "bias": laws.weights(12, 71, F32)}},
    "list": lambda: [laws.weights((8, 12), 70, BF16), (laws.weights((2, 2, 4, 8), 72, BF16),)],
    "module": lambda: Module(laws.weights((3, 8, 12), 70, BF16), laws.weights(12, 71, F32)),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", RECIPES)
def test_it_reaches_its_target_with_exact_zeros_in_one_trace(name, view):
    params = VIEWS[view]()
    tx = RECIPES[name](optax.sgd(0.05, momentum=0.9))
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    before = (params, state)
    if name in SPARSE_FROM_THE_START:
        params = sj.apply(state.mask, params)
    for index in range(END + 2):
        grads = jax.tree.map(lambda p, index=index: laws.weights(p.shape, 80 + index, p.dtype), params)
        params, state = step(params, state, grads)
        for mask, p in zip(*map(jax.tree.leaves, (state.mask, params)), strict=True):
            assert not np.asarray(p, np.float32)[~np.broadcast_to(mask, p.shape)].any()
    chex.assert_trees_all_equal_shapes_and_dtypes((params, state), before)
    masks, leaves = tree.named(state.mask), tree.named(params)
    kept = {leaf: int(np.broadcast_to(masks[leaf], p.shape).sum()) for leaf, p in leaves.items() if p.ndim > 1}
    size = sum(leaves[leaf].size for leaf in kept)
    assert sum(kept.values()) == oracles.kept(TARGET, size)
    if name not in ("global_magnitude", "snip"):
        assert kept == {leaf: oracles.kept(TARGET, leaves[leaf].size) for leaf in kept}


def test_there_is_a_law_for_every_recipe():
    assert set(RECIPES) | {"wanda"} == set(recipes.__all__)


@pytest.mark.parametrize("name", recipes.__all__)
def test_no_recipe_is_longer_than_six_lines(name):
    body = inspect.getsource(getattr(recipes, name)).split('"""')[-1]
    assert len(body.strip().splitlines()) <= 6


def trained(tx, params, grads, steps):
    state = tx.init(params)
    step = jax.jit(lambda p, s: tx.update(grads, s, p))
    for _ in range(steps):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    return params, state


PARAMS = {"a": laws.weights((8, 12), 73), "b": laws.weights((12, 4), 74, scale=1.0)}
GRADS = jax.tree.map(lambda p: laws.weights(p.shape, 75), PARAMS)


def test_snip_keeps_the_most_salient_of_all_leaves():
    _, state = trained(RECIPES["snip"](optax.sgd(0.0)), PARAMS, GRADS, 1)
    saliency = np.concatenate([np.abs(np.asarray(PARAMS[n]) * np.asarray(GRADS[n])).ravel() for n in "ab"])
    got = np.concatenate([np.ravel(state.mask[n]) for n in "ab"])
    np.testing.assert_array_equal(got, oracles.best(saliency, oracles.kept(TARGET, saliency.size)))


def test_global_magnitude_prunes_the_leaf_of_small_weights_more():
    _, state = trained(RECIPES["global_magnitude"](optax.sgd(0.0)), PARAMS, GRADS, END + 1)
    assert state.mask["a"].mean() < 0.1 < 0.5 < state.mask["b"].mean()


def test_rigl_grows_where_the_gradient_is_large_and_set_does_not():
    dead_gradients = {}
    for name in SPARSE_FROM_THE_START:
        tx = RECIPES[name](optax.sgd(0.0), seed=1)
        first = tx.init(PARAMS).mask["a"]
        _, state = trained(tx, sj.apply(tx.init(PARAMS).mask, PARAMS), GRADS, 3)
        born = np.asarray(state.mask["a"] & ~first)
        assert born.any()
        gradients = np.abs(np.asarray(GRADS["a"]))
        dead_gradients[name] = (gradients[born].min(), np.quantile(gradients[~np.asarray(first)], 0.85))
    assert dead_gradients["rigl"][0] >= dead_gradients["rigl"][1]
    assert dead_gradients["set_"][0] < dead_gradients["set_"][1]


def test_n_of_m_leaves_n_of_every_m_inputs():
    _, state = trained(RECIPES["n_of_m"](optax.sgd(0.01)), PARAMS, GRADS, END + 1)
    for name in "ab":
        groups = np.asarray(state.mask[name]).reshape(-1, 4, PARAMS[name].shape[-1])
        assert (groups.sum(1) == 1).all()


def test_an_allocation_is_a_target():
    target = partial(allocate.erdos_renyi, sparsity=TARGET)
    _, state = trained(recipes.one_shot_magnitude(optax.sgd(0.01), target), PARAMS, GRADS, 1)
    shares = allocate.erdos_renyi(PARAMS, TARGET)
    assert {n: int(state.mask[n].sum()) for n in "ab"} == {n: oracles.kept(shares[n], PARAMS[n].size) for n in "ab"}


def test_wanda_prunes_the_inputs_of_every_output_by_weight_and_norm():
    norms = {"a": jnp.abs(laws.weights(8, 76))}
    mask = recipes.wanda(PARAMS, norms, 0.5)
    scores = np.abs(np.asarray(PARAMS["a"])) * np.asarray(norms["a"])[:, None]
    np.testing.assert_array_equal(mask["a"], oracles.best_within(scores, np.broadcast_to(np.arange(12), (8, 12)), 0.5))
    assert (np.asarray(mask["b"]).sum(0) == 6).all()
