"""Matrices as blocks against the masked matrix in float64, with gradients; and masks whose columns are equally full."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import laws
import numpy as np
import optax
import oracles
import pytest

from sparsejax import block_sparse, constraining, rules, schedules, scores, select

MATRIX = block_sparse.BlockSparse


def random_mask(shape, size, share, seed=0):
    """A mask of random blocks, those at the ends cut off where they reach beyond the matrix."""
    counts = [-(-n // m) for n, m in zip(shape, size, strict=True)]
    kept = np.random.default_rng(seed).random(counts) >= share
    return np.kron(kept, np.ones(size, bool))[: shape[0], : shape[1]]


def stored_by_hand(mask, size):
    """Blocks a column needs, counted in loops."""
    columns = []
    for j in range(0, mask.shape[1], size[1]):
        starts = range(0, mask.shape[0], size[0])
        columns.append(sum(bool(mask[i : i + size[0], j : j + size[1]].any()) for i in starts))
    return columns


# name: (shape, size of the blocks that are stored, size of those of the mask, share of them that is gone)
CASES = {
    "square blocks": ((32, 24), (8, 8), (8, 8), 0.6),
    "wide blocks": ((32, 24), (2, 12), (2, 12), 0.6),
    "tall blocks": ((32, 24), (16, 3), (16, 3), 0.5),
    "rows of outputs": ((32, 24), (1, 8), (1, 8), 0.7),
    "finer than the mask": ((32, 24), (2, 4), (4, 8), 0.6),
    "coarser than the mask": ((32, 24), (8, 8), (4, 4), 0.7),
    "single weights": ((32, 24), (4, 4), (1, 1), 0.9),
    "ragged": ((30, 21), (8, 8), (8, 8), 0.5),
    "larger than the matrix": ((5, 3), (8, 8), (1, 1), 0.5),
    "many columns": ((24, 40), (4, 2), (4, 2), 0.6),
    "many columns, ragged": ((23, 39), (4, 2), (4, 2), 0.6),
    "one block": ((8, 8), (8, 8), (8, 8), 0.0),
    "dense": ((32, 24), (8, 8), (8, 8), 0.0),
    "empty": ((32, 24), (8, 8), (8, 8), 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_the_masked_matrix(name):
    shape, size, of_mask, share = CASES[name]
    mask, w = random_mask(shape, of_mask, share), np.asarray(laws.weights(shape, 1, scale=1.0))
    masked = np.where(mask, w, 0)
    x, given = laws.weights((16, shape[0]), 2, scale=1.0), laws.weights((16, shape[1]), 3, scale=1.0)
    compact = block_sparse.compress(w, size, mask)
    np.testing.assert_array_equal(block_sparse.expand(compact), masked)
    columns = stored_by_hand(mask, size)
    assert compact.blocks.shape == (len(columns), max(1, *columns), *size)
    assert compact.waste == pytest.approx(1 - np.mean(columns) / max(1, *columns))
    assert compact.stored == pytest.approx(compact.blocks.size / w.size)

    @jax.jit
    def run(x, blocks):
        y, back = jax.vjp(lambda x, blocks: block_sparse.matmul(x, MATRIX(blocks, compact.indices, shape)), x, blocks)
        return y, *back(given)

    y, dx, dblocks = run(x, compact.blocks)
    few = jax.jit(lambda x: (block_sparse.matmul(x[:3], compact), block_sparse.column_by_column(x[:3], compact)))(x)
    np.testing.assert_allclose(few, [y[:3]] * 2, atol=1e-5)
    wide, cotangent = np.asarray(x, np.float64), np.asarray(given, np.float64)
    np.testing.assert_allclose(y, wide @ masked, atol=1e-5)
    np.testing.assert_allclose(dx, cotangent @ masked.T, atol=1e-5)
    # The gradient of every stored block is that of its place; of those that only fill up, and beyond the ends, zero.
    stored = np.kron(tiles_of(mask, size), np.ones(size, bool))[: shape[0], : shape[1]]
    found = block_sparse.expand(MATRIX(dblocks, compact.indices, shape))
    np.testing.assert_allclose(found, np.where(stored, wide.T @ cotangent, 0), atol=1e-5)
    assert np.abs(dblocks).sum() == pytest.approx(np.abs(np.asarray(found, np.float64)).sum(), rel=1e-4)


def tiles_of(mask, size):
    starts = [range(0, n, m) for n, m in zip(mask.shape, size, strict=True)]
    return np.array([[mask[i : i + size[0], j : j + size[1]].any() for j in starts[1]] for i in starts[0]])


@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_dtypes_are_kept(dtype):
    mask = random_mask((32, 24), (4, 8), 0.5)
    w, x = laws.weights((32, 24), 1, dtype), laws.weights((3, 32), 2, dtype, scale=1.0)
    compact = block_sparse.compress(w, (4, 8), mask)
    y = block_sparse.matmul(x, compact)
    assert (compact.blocks.dtype, y.dtype) == (dtype, dtype)
    expected = np.asarray(x, np.float64) @ np.where(mask, np.asarray(w, np.float64), 0)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=0, atol=float(4 * jnp.finfo(dtype).eps))
    wide = block_sparse.matmul(x, compact, preferred_element_type=jnp.float32)
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(32,), (0, 32), (1, 32), (2, 3, 32), (2, 1, 3, 32)])
def test_any_axes_before_the_inputs(shape):
    w = np.where(random_mask((32, 24), (8, 8), 0.5), 1.5, 0).astype(np.float32)
    x = laws.weights(shape, 4, scale=1.0)
    y = jax.jit(block_sparse.matmul)(x, block_sparse.compress(w, (8, 8)))
    assert y.shape == (*shape[:-1], 24)
    np.testing.assert_allclose(y, np.asarray(x) @ w, atol=1e-5)


def test_it_maps_over_inputs_and_over_stacks_of_matrices():
    mask = random_mask((16, 8), (4, 4), 0.5, seed=3)
    w, x = np.asarray(laws.weights((3, 16, 8), 1, scale=1.0)), laws.weights((3, 5, 16), 2, scale=1.0)
    layers = [block_sparse.compress(one, (4, 4), mask) for one in w]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    expected = np.einsum("lri,lio->lro", x, np.where(mask, w, 0))
    np.testing.assert_allclose(jax.vmap(block_sparse.matmul)(x, stacked), expected, atol=1e-5)
    over_inputs = jax.vmap(partial(block_sparse.matmul, compact=layers[0]))(x)
    np.testing.assert_allclose(over_inputs, np.asarray(x) @ np.where(mask, w[0], 0), atol=1e-5)


def test_blocks_train_as_the_masked_matrix_does():
    mask, w = random_mask((16, 12), (4, 4), 0.5, seed=1), laws.weights((16, 12), 1, scale=1.0)
    x, y = laws.weights((20, 16), 2, scale=1.0), laws.weights((20, 12), 3, scale=1.0)
    compact = block_sparse.compress(w, (4, 4), mask)

    @jax.jit
    def step(blocks):
        def loss(blocks):
            return jnp.mean(jnp.square(block_sparse.matmul(x, MATRIX(blocks, compact.indices, (16, 12))) - y))

        return blocks - 0.1 * jax.grad(loss)(blocks)

    blocks, dense = compact.blocks, np.where(mask, np.asarray(w, np.float64), 0)
    for _ in range(5):
        blocks = step(blocks)
        error = np.asarray(x, np.float64) @ dense - np.asarray(y)
        dense -= np.where(mask, 0.1 * 2 * np.asarray(x, np.float64).T @ error / error.size, 0)
    assert compact.waste > 0, "the case should have columns that are filled up"
    np.testing.assert_allclose(block_sparse.expand(MATRIX(blocks, compact.indices, (16, 12))), dense, atol=1e-5)


def test_a_mask_stores_what_it_keeps_even_where_that_is_zero():
    w = np.zeros((4, 4), np.float32)
    mask = np.array([[True], [False], [False], [True]])
    compact = block_sparse.compress(w, (1, 4), mask)
    assert compact.indices.tolist() == [[0, 3]]
    assert block_sparse.compress(np.full((2, 2), -0.0), (1, 2)).indices.tolist() == [[2]], "-0.0 is zero"


WRONG = {
    "traced": (lambda: jax.jit(lambda w: block_sparse.compress(w, (2, 2)).blocks)(jnp.ones((4, 4))), "are traced here"),
    "a vector": (lambda: block_sparse.compress(jnp.ones(4), (2, 2)), r"w has shape \(4,\); it must be"),
    "nothing": (lambda: block_sparse.compress(jnp.ones((0, 4)), (2, 2)), r"w has shape \(0, 4\)"),
    "a size of one": (lambda: block_sparse.compress(jnp.ones((4, 4)), (2,)), r"size=\(2,\) must be two"),
    "an empty block": (lambda: block_sparse.compress(jnp.ones((4, 4)), (2, 0)), "size=0 must be an integer >= 1"),
    "numbers for a mask": (
        lambda: block_sparse.compress(jnp.ones((4, 4)), (2, 2), jnp.ones((4, 4))),
        "mask has dtype float32",
    ),
    "another mask": (
        lambda: block_sparse.compress(jnp.ones((4, 4)), (2, 2), jnp.ones((3, 4), bool)),
        r"mask has shape \(3, 4\), which does not",
    ),
    "other inputs": (
        lambda: block_sparse.matmul(jnp.ones((2, 3)), block_sparse.compress(jnp.ones((4, 4)), (2, 2))),
        r"x has shape \(2, 3\); its last axis must be the 4 inputs",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name):
    wrong, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        wrong()


SIZE, SPARSITY = (2, 6), 0.75
PARAMS = {"a": laws.weights((32, 24), 5, scale=1.0), "b": laws.weights((3, 16, 12), 6, scale=1.0)}
BALANCED = {"grain": select.block(*SIZE), "scope": select.per(-1)}


def columns_of(mask):
    """Living blocks of each block column, counted block by block; fails where a block is neither dead nor alive."""
    *_, inputs, outputs = mask.shape
    columns = np.zeros(outputs // SIZE[1], int)
    for layer in np.reshape(mask, (-1, inputs, outputs)):
        for i, j in np.ndindex(inputs // SIZE[0], len(columns)):
            own = layer[SIZE[0] * i : SIZE[0] * (i + 1), SIZE[1] * j : SIZE[1] * (j + 1)]
            assert own.all() or not own.any()
            columns[j] += bool(own.all())
    return columns


RULES = {
    "prune_to": rules.prune_to(SPARSITY, ramp=schedules.linear(0, 4), **BALANCED),
    "drop_and_grow": rules.drop_and_grow(SPARSITY, grow=scores.gradient, fraction=0.5, **BALANCED),
    "fixed": rules.fixed(
        select.leafwise(jax.tree.map(jnp.abs, PARAMS), dict.fromkeys(PARAMS, SPARSITY), **BALANCED),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_columns_stay_equally_full_through_training_with_every_rule(name):
    tx = constraining.sparsify(optax.sgd(0.1, momentum=0.9), RULES[name], schedules.every(2))
    state, params = tx.init(PARAMS), PARAMS
    step = jax.jit(tx.update)
    for index in range(6):
        grads = {key: laws.weights(p.shape, 10 + index, scale=1.0) for key, p in params.items()}
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        counts = {key: columns_of(np.broadcast_to(mask, PARAMS[key].shape)) for key, mask in state.mask.items()}
        assert all(len(set(of_leaf)) == 1 for of_leaf in counts.values()), counts
    assert {key: of_leaf[0] for key, of_leaf in counts.items()} == {"a": 4, "b": 6}
    compact = block_sparse.compress(params["a"], SIZE)
    assert (compact.blocks.shape, compact.waste) == ((4, 4, *SIZE), 0.0)


@pytest.mark.parametrize("shape", [(32, 24), (3, 8, 12)])
def test_balanced_blocks_are_the_best_of_each_block_column(shape):
    rounded = jnp.round(laws.weights(shape, 7, scale=1.0) * 64) / 64  # sums that round nowhere
    mask = jax.jit(lambda s: select.leafwise(s, SPARSITY, **BALANCED))(rounded)
    *_, inputs, outputs = shape
    split = np.asarray(rounded).reshape(-1, inputs // SIZE[0], SIZE[0], outputs // SIZE[1], SIZE[1])
    means = split.mean((2, 4)).reshape(-1, outputs // SIZE[1])
    own = oracles.best_within(means, np.broadcast_to(np.arange(means.shape[1]), means.shape), SPARSITY)
    expected = np.kron(own.reshape(*shape[:-2], inputs // SIZE[0], -1), np.ones(SIZE, bool))
    np.testing.assert_array_equal(mask, expected)


def test_a_size_that_does_not_divide_a_leaf_names_it():
    with pytest.raises(ValueError, match=re.escape("leaf 'b': block(2, 8) does not divide axes [2]")):
        select.leafwise(PARAMS, dict.fromkeys(PARAMS, 0.5), grain=select.block(2, 8), scope=select.per(-1))
