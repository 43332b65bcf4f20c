"""Every law of a mask, on every tree, and the bits it is packed into."""

import chex
import jax
import jax.numpy as jnp
import laws
import numpy as np
import optax
import oracles
import pytest

from sparsejax import masks, tree


def half(params):
    """A mask that prunes about half of every matrix and leaves vectors alone."""

    def keep(p):
        return laws.weights(p.shape, 20) > 0 if p.ndim > 1 else jnp.asarray(True)

    return jax.tree.map(keep, params)


@pytest.mark.parametrize("view", laws.TREES)
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_apply_zeroes_what_is_false_and_keeps_the_rest(view, dtype):
    params = laws.TREES[view][0](dtype)
    mask = half(params)
    out = jax.jit(masks.apply)(mask, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, params)
    expected = jax.tree.map(lambda m, p: np.where(np.broadcast_to(m, p.shape), p, np.zeros_like(p)), mask, params)
    chex.assert_trees_all_equal(out, expected)
    chex.assert_trees_all_equal(masks.apply(mask, out), out)


@pytest.mark.parametrize("dtype", laws.DTYPES)
@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 1e4, jnp.nan, jnp.inf])
def test_projected_updates_end_in_exact_zeros(dtype, size):
    params = laws.TREES["dict"][0](dtype)
    mask = half(params)
    updates = jax.tree.map(lambda p: jnp.full_like(p, size), params)
    after = optax.apply_updates(params, masks.project(mask, updates, params))
    pruned = ~np.asarray(mask["Dense_0"]["kernel"])
    assert not np.asarray(after["Dense_0"]["kernel"], np.float32)[pruned].any()
    free = optax.apply_updates(params, updates)
    for name in ("kernel", "bias"):
        got, expected = (np.asarray(t["Dense_0"][name], np.float32) for t in (after, free))
        np.testing.assert_array_equal(got, np.where(pruned if name == "kernel" else False, 0, expected))


def test_projection_of_float32_updates_zeroes_bfloat16_parameters():
    params = {"k": laws.weights((30, 40), dtype=jnp.bfloat16)}
    updates = {"k": laws.weights((30, 40), 1)}
    mask = half(params)
    with jax.numpy_dtype_promotion("standard"):  # optax adds updates of another dtype by promotion
        after = optax.apply_updates(params, masks.project(mask, updates, params))["k"]
    assert not np.asarray(after, np.float32)[~np.asarray(mask["k"])].any()


def test_apply_has_the_ordinary_derivative():
    params, mask = {"k": laws.weights((4, 5))}, {"k": jnp.arange(5) % 2 == 0}
    gradient = jax.grad(lambda p: masks.apply(mask, p)["k"].sum())(params)
    np.testing.assert_array_equal(gradient["k"], np.tile([1.0, 0, 1, 0, 1], (4, 1)))


@pytest.mark.parametrize("view", laws.TREES)
def test_sparsity_counts_every_parameter(view):
    params = laws.TREES[view][0](jnp.float32)
    mask = half(params)
    pruned = sum(
        int((~np.broadcast_to(m, p.shape)).sum()) for m, p in zip(*map(jax.tree.leaves, (mask, params)), strict=True)
    )
    total = sum(p.size for p in jax.tree.leaves(params))
    np.testing.assert_allclose(jax.jit(masks.sparsity)(mask, params), pruned / total, rtol=1e-6)


def test_sparsity_counts_what_a_channel_mask_covers():
    params = {"k": jnp.ones((3, 3, 4, 8))}
    mask = {"k": (jnp.arange(8) < 6)[None, None, None]}
    assert float(masks.sparsity(mask, params)) == 0.25


def test_combine_keeps_what_all_keep():
    a, b = jnp.array([True, True, False, False]), jnp.array([True, False, True, False])
    combined = masks.combine({"k": a, "b": jnp.array(True)}, {"k": b, "b": jnp.array(True)})
    assert combined["k"].tolist() == [True, False, False, False]
    assert combined["b"].shape == ()


@pytest.mark.parametrize("shape", [(), (1,), (8,), (3, 3), (1, 1, 1, 9), (0, 4)])
def test_packing_is_the_loop_and_unpacking_undoes_it(shape):
    mask = {"k": laws.weights(shape, 21) > 0}
    packed = jax.jit(masks.pack)(mask)
    assert packed["k"].bits.tolist() == oracles.pack(mask["k"])
    chex.assert_trees_all_equal(jax.jit(masks.unpack)(packed), mask)


P = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
KEEP = jax.tree.map(lambda _: jnp.asarray(True), P)
WRONG = {
    "a missing leaf": ({"a": {"kernel": jnp.array(True)}}, r"it lacks \['a/bias'\]"),
    "an added leaf": ({**KEEP, "b": jnp.array(True)}, r"it adds \['b'\]"),
    "a hole": ({"a": {"kernel": None, "bias": jnp.array(True)}}, r"it lacks \['a/kernel'\].*no None"),
    "another container": ([jnp.array(True)] * 2, "mask must have the structure of params"),
    "floats": (tree.replace(KEEP, {"a/bias": jnp.ones(3)}), "mask leaf 'a/bias' has dtype float32"),
    "another size": (tree.replace(KEEP, {"a/kernel": jnp.ones((2, 4), bool)}), r"'a/kernel' has shape \(2, 4\)"),
    "a higher rank": (tree.replace(KEEP, {"a/bias": jnp.ones((1, 3), bool)}), r"'a/bias' has shape \(1, 3\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_a_mask_is_refused(name):
    mask, message = WRONG[name]
    calls = [
        lambda: masks.check(mask, P),
        lambda: masks.apply(mask, P),
        lambda: masks.project(mask, P, P),
        lambda: masks.sparsity(mask, P),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_other_wrong_calls_say_what_is_wrong():
    with pytest.raises(ValueError, match="at least one mask"):
        masks.combine()
    with pytest.raises(ValueError, match="must have the structure"):
        masks.combine(KEEP, {"b": jnp.array(True)})
    with pytest.raises(ValueError, match="updates must have the structure"):
        masks.project(KEEP, {"a": jnp.ones(3)}, P)
    with pytest.raises(ValueError, match="no entries"):
        masks.sparsity({}, {})
