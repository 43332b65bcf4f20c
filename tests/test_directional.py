"""Directional pruning, the Hessian and curves: the published vectors, dense NumPy, and gRDA's path on a quadratic."""

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
from jax.flatten_util import ravel_pytree

from sparsejax import directional, ops, transforms


def orthonormal(n, k, seed=0):
    """Random orthonormal columns (n, k), in float64."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, k)))[0]


def as_columns(matrix, params):
    """The tree of columns that a matrix (n, k) is for a tree of n parameters."""
    leaves, start = [], 0
    for leaf in jax.tree.leaves(params):
        block = matrix[start : start + leaf.size].reshape(*leaf.shape, matrix.shape[1])
        leaves, start = [*leaves, jnp.asarray(block, jnp.float32)], start + leaf.size
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def flat(params):
    """A tree as one float64 vector, in the order of its leaves."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(params)])


def flat_columns(columns):
    return np.concatenate([np.asarray(v, np.float64).reshape(-1, v.shape[-1]) for v in jax.tree.leaves(columns)])


# --- scores and the minimiser ---------------------------------------------------------------------------------------


def objective(x, w, s, lam):
    return 0.5 * (x - w) ** 2 + lam * s * abs(x)


def best(w, s, lam):
    """The least objective, over a fine grid and the three points where its derivative can vanish or jump."""
    grid = np.linspace(-4, 4, 8001)
    return min(objective(x, w, s, lam) for x in [*grid, 0.0, w - lam * s, w + lam * s])


def test_minimiser_is_the_published_vector():
    """Vector G5."""
    w, s = jnp.array([1.0, -0.5, 0.2, -0.1, 0.05]), jnp.array([0.5, 0.8, -0.3, 0.0, 0.5])
    out = directional.minimiser(w, s, 0.4)
    np.testing.assert_allclose(out, [0.8, -0.18, 0.32, -0.1, 0.0], rtol=1e-6)
    assert out[4] == 0


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.7])
def test_nothing_is_lower_than_the_minimiser(lam):
    """Every sign of w and s, zeros included: for w = 0 > s there are two minimisers, and the positive one is taken."""
    w, s = (a.ravel() for a in np.meshgrid([-1.5, -0.2, 0.0, 0.1, 0.8], [-1.0, -0.3, 0.0, 0.4, 1.0]))
    out = directional.minimiser(jnp.asarray(w, jnp.float32), jnp.asarray(s, jnp.float32), lam)
    for x, wj, sj in zip(np.asarray(out, np.float64), w, s, strict=True):
        np.testing.assert_allclose(objective(x, wj, sj, lam), best(wj, sj, lam), atol=1e-6)
    np.testing.assert_allclose(out[w == 0], np.maximum(-lam * s[w == 0], 0), rtol=1e-6)


def test_scores_are_the_published_vector():
    """Vector G6."""
    w, a = jnp.array([1.5, -0.4, 0.7]), jnp.array([[1.0], [2.0], [2.0]]) / 3
    s = directional.scores(w, a)
    np.testing.assert_allclose(s, [8 / 9, 11 / 9, 7 / 9], rtol=1e-6)
    moved = directional.minimiser(w, s, 0.3)
    np.testing.assert_allclose(a[:, 0] @ (moved - w), 0, atol=1e-7)


@pytest.mark.parametrize("view", laws.TREES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scores_of_every_tree_are_those_of_the_dense_projector(view, dtype):
    w = laws.TREES[view][0](dtype)
    w = jax.tree.map(lambda leaf: jnp.where(jnp.abs(leaf) < 0.01, jnp.zeros_like(leaf), leaf), w)
    V = orthonormal(flat(w).size, 4)
    s = jax.jit(directional.scores)(w, as_columns(V, w))
    chex.assert_trees_all_equal_shapes_and_dtypes(s, w)
    signs = np.sign(flat(w))
    projected = signs - V @ (V.T @ signs)
    np.testing.assert_allclose(flat(s), signs * projected, atol=2 * float(jnp.finfo(dtype).eps))
    np.testing.assert_allclose(flat(s).sum(), projected @ projected, rtol=1e-3)
    assert not flat(s)[signs == 0].any()
    moved = jax.jit(directional.minimiser)(w, s, 0.02)
    chex.assert_trees_all_equal_shapes_and_dtypes(moved, w)
    expected = signs * np.maximum(np.abs(flat(w)) - 0.02 * flat(s), 0)
    np.testing.assert_allclose(flat(moved), expected, rtol=float(jnp.finfo(dtype).eps), atol=1e-8)
    np.testing.assert_array_equal(flat(moved) == 0, expected == 0)


def test_a_bare_array_takes_the_matrix_of_columns_and_an_empty_one_leaves_all_flat():
    w, V = laws.weights(30, 1), jnp.asarray(orthonormal(30, 5), jnp.float32)
    tree = directional.scores({"a": w[:10].reshape(2, 5), "b": w[10:]}, {"a": V[:10].reshape(2, 5, 5), "b": V[10:]})
    np.testing.assert_allclose(flat(tree), directional.scores(w, V), atol=1e-6)
    np.testing.assert_array_equal(directional.scores(w, V[:, :0]), jnp.ones(30))


def test_one_trace_serves_every_lambda_and_more_prunes_more():
    w = laws.weights(200, 2)
    s = directional.scores(w, jnp.asarray(orthonormal(200, 5), jnp.float32))
    out = jax.vmap(directional.minimiser, in_axes=(None, None, 0))(w, s, jnp.array([0.0, 0.05, 0.1, 1.0]))
    zeros = (out == 0).sum(axis=1).tolist()
    np.testing.assert_array_equal(out[0], w)
    assert zeros == sorted(set(zeros))


# --- gRDA follows the minimiser -------------------------------------------------------------------------------------


class Path(NamedTuple):
    """Ends of SGD and of gRDA after the time n gamma, gRDA's threshold, and the steep eigenpairs of the quadratic."""

    sgd: np.ndarray
    grda: np.ndarray
    threshold: float
    values: np.ndarray
    V: np.ndarray
    target: np.ndarray

    def loss(self, w):
        return 0.5 * np.sum(self.values * (self.V.T @ (w - self.target)) ** 2)


def soft(v, threshold):
    return np.sign(v) * np.maximum(np.abs(v) - threshold, 0)


def follow(start, target, values, V, gamma, time, c=0.2, mu=0.6):
    """The published recursion with full gradients of 1/2 |w - target|_H^2, H = V diag(values) V^T, in float64."""
    H, sgd, v, w, threshold = (V * values) @ V.T, start.copy(), start.copy(), start.copy(), 0.0
    for k in range(1, round(time / gamma) + 1):
        sgd = sgd - gamma * H @ (sgd - target)
        v = v - gamma * H @ (w - target)
        threshold += c * gamma ** (mu + 0.5) * (k**mu - (k - 1) ** mu)
        w = soft(v, threshold)
    return Path(sgd, w, threshold, values, V, target)


def pruned_directionally(path):
    with jax.enable_x64(True):
        w = jnp.asarray(path.sgd)
        return np.asarray(directional.minimiser(w, directional.scores(w, jnp.asarray(path.V)), path.threshold))


def random_quadratic(seed=0, free=None):
    """Rank 3 in dimension 9: a start away from zero, a target, eigenvalues and steep directions; `free` is flat."""
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((9, 3))
    if free is not None:
        columns[free] = 0
    V = np.linalg.qr(columns)[0]
    start = rng.choice([-1, 1], 9) * rng.uniform(0.6, 1.5, 9)
    return start, start + 0.3 * rng.standard_normal(9), np.array([2.0, 1.0, 0.5]), V


GAMMAS = (0.04, 0.01, 0.0025)


def test_grda_and_the_minimiser_on_two_weights_are_the_published_vector():
    """Vector G7."""
    a = np.array([[2.0], [1.0]])
    path = follow(
        np.array([1.5, 0.8]),
        np.array([0.8, 0.4]),  # a . target = y = 2
        np.array([5.0]),
        a / math.sqrt(5),
        gamma=0.001,
        time=20,
        c=0.5,
    )
    np.testing.assert_allclose(path.threshold, 0.095408705133, rtol=1e-9)
    np.testing.assert_allclose(path.sgd, [0.78, 0.44], rtol=1e-9)
    np.testing.assert_allclose(path.grda, [0.798392018223, 0.401491656545], rtol=1e-9)
    np.testing.assert_allclose(pruned_directionally(path), [0.799081741027, 0.401836517947], rtol=1e-9)
    np.testing.assert_allclose(path.loss(path.grda), 1.486617331092e-06, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_grda_ends_at_the_minimiser_to_first_order(seed):
    """While no weight is clipped the gap is -g'(t) H^+ sign(w), which falls with the root of the rate."""
    paths = [follow(*random_quadratic(seed), gamma, time=40) for gamma in GAMMAS]
    gaps = [path.grda - pruned_directionally(path) for path in paths]
    lengths = [np.linalg.norm(gap) for gap in gaps]
    assert all((path.grda != 0).all() for path in paths)
    np.testing.assert_allclose([lengths[0] / lengths[1], lengths[1] / lengths[2]], 2, rtol=0.01)
    for path, gap, length in zip(paths, gaps, lengths, strict=True):
        slope = 0.6 * path.threshold / 40  # g' = mu g / t
        predicted = -slope * (path.V / path.values) @ (path.V.T @ np.sign(path.sgd))
        assert np.linalg.norm(gap - predicted) < 0.05 * length
        assert length < 0.05 * np.linalg.norm(path.grda - path.sgd)  # the move itself is much longer
        assert path.loss(path.grda) < 1e-3 * path.loss(soft(path.sgd, path.threshold))


def test_the_optimizer_of_the_library_ends_there_too():
    start, target, values, V = random_quadratic()
    path = follow(start, target, values, V, gamma=0.01, time=40)
    with jax.enable_x64(True):
        H, tx = jnp.asarray((V * values) @ V.T), transforms.grda(0.01, c=0.2, mu=0.6)

        def step(carry, _):
            w, state = carry
            updates, state = tx.update(H @ (w - jnp.asarray(target)), state, w)
            return (optax.apply_updates(w, updates), state), None

        w = jnp.asarray(start)
        (w, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=4000))((w, tx.init(w)))
    np.testing.assert_allclose(np.asarray(w), path.grda, rtol=1e-9)


def test_a_longer_time_makes_the_first_order_more_exact():
    """What the prediction leaves out is g''(t) H^+^2 sign(w), smaller by 1 / (t h)."""
    errors = []
    for time in (40, 160):
        path = follow(*random_quadratic(), gamma=0.0025, time=time)
        gap = path.grda - pruned_directionally(path)
        predicted = -0.6 * path.threshold / time * (path.V / path.values) @ (path.V.T @ np.sign(path.sgd))
        errors.append(np.linalg.norm(gap - predicted) / np.linalg.norm(gap))
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.1)


def test_a_flat_weight_is_pruned_by_both_and_the_others_agree_to_first_order():
    start, target, values, V = random_quadratic(free=5)
    start[5] = 0.05
    paths = [follow(start, target, values, V, gamma, time=40) for gamma in GAMMAS]
    pruned = [pruned_directionally(path) for path in paths]
    assert all(path.grda[5] == 0 and w[5] == 0 for path, w in zip(paths, pruned, strict=True))
    lengths = [np.linalg.norm(path.grda - w) for path, w in zip(paths, pruned, strict=True)]
    np.testing.assert_allclose([lengths[0] / lengths[1], lengths[1] / lengths[2]], 2, rtol=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_both_prune_the_same_weight_first(seed):
    """The threshold lies a third of the way from the first weight that the minimiser prunes to the second."""
    start, target, values, V = random_quadratic(seed)
    sgd = follow(start, target, values, V, gamma=0.01, time=40, c=0.0).sgd
    s = np.sign(sgd) * (np.sign(sgd) - V @ (V.T @ np.sign(sgd)))
    first, second = sorted(abs(x) / score for x, score in zip(sgd, s, strict=True) if score > 0)[:2]
    c = (2 * first + second) / 3 / (0.01**0.5 * 40**0.6)
    path = follow(start, target, values, V, gamma=0.01, time=40, c=c)
    pruned, naive = pruned_directionally(path), soft(path.sgd, path.threshold)
    assert (pruned == 0).sum() == 1
    np.testing.assert_array_equal(path.grda == 0, pruned == 0)
    assert np.linalg.norm(path.grda - pruned) < 0.3 * np.linalg.norm(path.grda - naive)
    assert path.loss(path.grda) < 0.01 * path.loss(naive)


# --- the Hessian ----------------------------------------------------------------------------------------------------


def network(params, x):
    return jnp.tanh(x @ params["in"] + params["bias"][None]) @ params["out"]


def squares(params, x, y):
    return jnp.mean((network(params, x) - y) ** 2)


def shrunk_squares(params, x, y):
    return squares(params | {"in": ops.hard_shrink(params["in"], 0.05)}, x, y)


def small_network(dtype=jnp.float32):
    """41 weights and 24 points: more weights than the smallest Krylov space."""
    params = {"in": laws.weights((5, 6), 1, dtype, 0.5), "bias": laws.weights(6, 2, dtype), "out": None}
    params["out"] = laws.weights((6, 1), 3, dtype, 1.0)
    return params, laws.weights((24, 5), 4, dtype, 1.0), laws.weights((24, 1), 5, dtype, 1.0)


def dense_hessian(loss, params, *batch):
    vector, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.jacrev(jax.grad(lambda v: loss(unravel(v), *batch))))(vector), np.float64)


@pytest.mark.parametrize("loss", [squares, shrunk_squares])
def test_products_are_those_of_the_dense_hessian(loss):
    with jax.enable_x64(True):
        params, *batch = small_network(jnp.float64)
        vector = jax.tree.map(lambda p: laws.weights(p.shape, 6, jnp.float64, 1.0), params)
        product = jax.jit(partial(directional.hessian_vector_product, loss))(params, vector, *batch)
        np.testing.assert_allclose(flat(product), dense_hessian(loss, params, *batch) @ flat(vector), atol=1e-12)


def test_products_of_a_plain_loss_are_those_of_jax_hessian():
    with jax.enable_x64(True):
        params, *batch = small_network(jnp.float64)
        vector, unravel = ravel_pytree(params)
        dense = np.asarray(jax.hessian(lambda v: squares(unravel(v), *batch))(vector))
        products = jax.vmap(lambda e: directional.hessian_vector_product(squares, params, unravel(e), *batch))
        rows = jax.vmap(lambda tree: ravel_pytree(tree)[0])(products(jnp.eye(vector.size)))
        np.testing.assert_allclose(rows, dense, atol=1e-12)


def test_products_keep_the_dtypes_of_the_parameters():
    params = {"a": laws.weights(4, 1, jnp.bfloat16), "b": laws.weights(3, 2)}
    vector = jax.tree.map(lambda p: jnp.ones(p.shape), params)
    out = directional.hessian_vector_product(
        lambda p: (p["a"] ** 2).sum().astype(jnp.float32) + (p["b"] ** 2).sum(), params, vector
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(out, params)
    np.testing.assert_array_equal(flat(out), 2 * np.ones(7))


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("loss", [squares, shrunk_squares])
def test_the_top_eigenspace_is_numpys(loss, k):
    """By Lanczos; through an operator whose custom gradient forbids forward mode, too."""
    params, *batch = small_network()
    values, vectors = directional.top_eigenspace(loss, params, k, *batch, tolerance=1e-6)
    expected, columns = np.linalg.eigh(dense_hessian(loss, params, *batch))
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, expected[::-1][:k], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_equal_shapes(jax.tree.map(lambda v: v[..., 0], vectors), params)
    V = flat_columns(vectors)
    np.testing.assert_allclose(V.T @ V, np.eye(k), atol=1e-6)
    cosines = np.linalg.svd(V.T @ columns[:, ::-1][:, :k], compute_uv=False)
    np.testing.assert_allclose(cosines, 1, atol=1e-5)
    assert float(directional.projection_share(jax.tree.map(lambda v: v[..., 0], vectors), vectors)) > 1 - 1e-5


def test_the_eigenspace_is_found_in_float64_and_again_bit_for_bit():
    with jax.enable_x64(True):
        params, *batch = small_network(jnp.float64)
        first, again = (directional.top_eigenspace(squares, params, 4, *batch, tolerance=1e-10) for _ in range(2))
        np.testing.assert_allclose(first[0], np.linalg.eigvalsh(dense_hessian(squares, params, *batch))[:-5:-1])
        chex.assert_trees_all_equal(first, again)


# The eigenvalues of a quadratic, and how many are asked for.
SPECTRA = {
    "rank below k": (np.r_[5.0, 2.0, np.zeros(48)], 4),
    "multiple": (np.r_[[5.0] * 3, [1.0] * 3, np.zeros(44)], 5),
    "the largest in magnitude is negative": (np.r_[3.0, 2.0, np.linspace(-1, 1, 47), -40.0], 3),
    "negative but for zeros": (np.r_[np.zeros(5), -np.linspace(1, 9, 45)], 2),
    "all zero": (np.zeros(50), 3),
    "all equal": (np.full(50, 3.0), 3),
    "formed, k below n": (np.array([4.0, -7.0, 0.5, 2.0]), 2),
    "formed, k = n": (np.array([4.0, -7.0, 0.5, 2.0]), 4),
    "a single weight": (np.array([-2.0]), 1),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_every_spectrum_is_found(name):
    spectrum, k = SPECTRA[name]
    Q = orthonormal(spectrum.size, spectrum.size, seed=1)
    H = jnp.asarray((Q * spectrum) @ Q.T, jnp.float32)
    values, V = directional.top_eigenspace(quadratic, jnp.zeros(spectrum.size), k, H)
    scale = max(1.0, np.abs(spectrum).max())
    np.testing.assert_allclose(values, np.sort(spectrum)[::-1][:k], atol=1e-4 * scale)
    assert V.shape == (spectrum.size, k)
    np.testing.assert_allclose(V.T @ V, np.eye(k), atol=1e-5)
    np.testing.assert_allclose(H @ V, V * values[None], atol=1e-3 * scale)


def quadratic(w, H):
    return 0.5 * w @ (H @ w)


def test_over_batches_is_the_mean_and_its_products_take_the_memory_of_one():
    params, x, y = small_network()
    many = directional.over_batches(squares)
    stacked = x.reshape(4, 6, 5), y.reshape(4, 6, 1)
    np.testing.assert_allclose(many(params, *stacked), squares(params, x, y), rtol=1e-6)

    def memory(loss, batches):
        data = jnp.zeros((batches, 256, 5)), jnp.zeros((batches, 256, 1))
        compiled = jax.jit(partial(directional.hessian_vector_product, loss)).lower(params, params, *data).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def stored(params, *batches):
        return jnp.mean(jax.lax.map(lambda batch: squares(params, *batch), batches))

    for loss in (squares, shrunk_squares):
        many = directional.over_batches(loss)
        whole, parts = (
            directional.hessian_vector_product(f, params, params, *data)
            for f, data in ((loss, (x, y)), (many, stacked))
        )
        np.testing.assert_allclose(flat(parts), flat(whole), atol=1e-6)
        assert memory(many, 32) < 1.1 * memory(many, 2)
    assert memory(stored, 32) > 4 * memory(stored, 2)  # so the figure means something


def test_the_eigenspace_of_a_data_set_in_batches_is_that_of_the_whole():
    params, x, y = small_network()
    whole, _ = directional.top_eigenspace(shrunk_squares, params, 3, x, y)
    many = directional.over_batches(shrunk_squares)
    parts, _ = directional.top_eigenspace(many, params, 3, x.reshape(4, 6, 5), y.reshape(4, 6, 1))
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


# --- shares and ratios ----------------------------------------------------------------------------------------------


def test_the_projection_share_is_the_published_vector():
    """Vector G8, without the notebook's factor."""
    share = directional.projection_share(jnp.array([0.3, -0.4, 1.2, 0.5]), jnp.eye(4)[:, :2])
    np.testing.assert_allclose(share, 0.358979079309, rtol=1e-6)


@pytest.mark.parametrize("view", laws.TREES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_projection_share_of_every_tree_is_numpys(view, dtype):
    delta = laws.TREES[view][0](dtype)
    V = orthonormal(flat(delta).size, 3)
    share = jax.jit(directional.projection_share)(delta, as_columns(V, delta))
    assert share.dtype == jnp.float32
    np.testing.assert_allclose(share, np.linalg.norm(V.T @ flat(delta)) / np.linalg.norm(flat(delta)), rtol=1e-4)


def test_the_projection_share_is_between_nothing_and_all():
    V = jnp.asarray(orthonormal(30, 3), jnp.float32)
    assert float(directional.projection_share(jnp.zeros(30), V)) == 0
    np.testing.assert_allclose(directional.projection_share(1e-12 * V @ jnp.ones(3), V), 1, rtol=1e-5)
    shares = jax.vmap(directional.projection_share, in_axes=(0, None))(laws.weights((4, 30), 7), V)
    assert shares.shape == (4,)


def test_the_norm_ratio_is_the_published_vector():
    """Vector G11, in one leaf and in two."""
    for tree in (jnp.array([0.5, 0, 0, -0.5, 0.1]), [jnp.array([[0.5, 0], [0, -0.5]]), jnp.array(0.1)]):
        ratio, bound = directional.norm_ratio(tree)
        np.testing.assert_allclose([ratio, bound], [0.649220766231, 0.4472135955], rtol=1e-6)


def test_the_norm_ratio_runs_from_its_bound_to_one():
    ratio, bound = directional.norm_ratio(
        {"a": jnp.full((20, 5), -0.3, jnp.bfloat16), "b": jnp.full(44, 0.3, jnp.bfloat16)}
    )
    np.testing.assert_allclose(ratio, bound, rtol=1e-6)
    assert bound == 144**-0.5
    assert float(directional.norm_ratio(jnp.zeros(9).at[4].set(-3.0))[0]) == 1
    assert float(directional.norm_ratio(jnp.zeros(9))[0]) == 0


# --- curves and planes ----------------------------------------------------------------------------------------------

A, M, B = jnp.array([0.0, 0.0]), jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0])


def test_bezier_is_the_published_vector():
    """Vector G9."""
    points = jax.vmap(directional.bezier, in_axes=(None, None, None, 0))(A, M, B, jnp.array([0.25, 0.5]))
    np.testing.assert_allclose(points, [[0.5, 0.75], [1.0, 1.0]], rtol=1e-6)


@pytest.mark.parametrize("view", laws.TREES)
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_bezier_of_every_tree_is_the_formula_and_ends_in_its_ends(view, dtype):
    start = laws.TREES[view][0](dtype)
    middle, end = jax.tree.map(jnp.flip, start), jax.tree.map(lambda x: 2 * x, start)
    middle = jax.tree.map(lambda x, like: x.reshape(like.shape), middle, start)
    point = jax.jit(directional.bezier)
    chex.assert_trees_all_equal(point(start, middle, end, 0.0), start)
    chex.assert_trees_all_equal(point(start, middle, end, 1.0), end)
    got = point(start, middle, end, 0.3)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, start)
    expected = 0.49 * flat(start) + 0.42 * flat(middle) + 0.09 * flat(end)
    np.testing.assert_allclose(flat(got), expected, atol=float(jnp.finfo(dtype).eps))
    straight = directional.bezier(start, directional.midpoint(start, end), end, 0.3)
    np.testing.assert_allclose(flat(straight), 0.7 * flat(start) + 0.3 * flat(end), atol=float(jnp.finfo(dtype).eps))


@pytest.fixture(scope="module")
def minima():
    """Two networks that compute the same function with their units in another order, and its data in 4 batches."""
    params, _, _ = small_network()
    params = jax.tree.map(lambda p: 2 * p, params)
    x = laws.weights((32, 5), 8, scale=1.0)
    order = np.array([1, 2, 3, 4, 5, 0])
    other = {"in": params["in"][:, order], "bias": params["bias"][order], "out": params["out"][order]}
    return params, other, x, network(params, x)


def test_a_trained_curve_connects_two_minima_that_a_barrier_divides(minima):
    start, end, x, y = minima
    batches = x.reshape(4, 8, 5), y.reshape(4, 8, 1)
    ts = jnp.linspace(0, 1, 21)
    connect = partial(directional.connect, squares, start, end, optax.sgd(0.02, 0.9), 300)
    middle = connect(jax.random.key(0), *batches)
    chex.assert_trees_all_equal_shapes_and_dtypes(middle, start)
    straight = directional.loss_along(squares, start, directional.midpoint(start, end), end, ts, x, y)
    curve = directional.loss_along(squares, start, middle, end, ts, x, y)
    assert max(straight[0], straight[-1], curve[0], curve[-1]) < 1e-10
    assert curve.max() < 0.2 * straight.max()
    chex.assert_trees_all_equal(connect(jax.random.key(0), *batches), middle)
    different = connect(jax.random.key(1), *batches)
    assert np.abs(flat(different) - flat(middle)).max() > 1e-4
    several = jax.vmap(lambda key: connect(key, *batches))(jax.random.split(jax.random.key(0), 2))
    assert several["in"].shape == (2, *start["in"].shape)


def test_connect_takes_the_batches_in_turn_and_weighs_them_by_their_place_on_the_curve():
    """The gradient of <w, batch> with respect to the control point is 2 t (1 - t) batch, between 0 and 1/2."""
    connect = partial(directional.connect, jnp.vdot, jnp.zeros(3), jnp.zeros(3), optax.sgd(1.0))
    moves = {steps: -np.asarray(connect(steps, jax.random.key(3), jnp.eye(3))) for steps in (2, 3, 6)}
    assert (moves[2] > 0).tolist() == [True, True, False]
    assert (moves[3][:2] == moves[2][:2]).all()
    assert (moves[6] > moves[3]).all()
    assert moves[3].max() <= 0.5
    assert len(set(moves[3].tolist())) == 3  # another t at every step


def test_connect_needs_no_data():
    middle = directional.connect(lambda w: jnp.sum((w - 1) ** 2), A, B, optax.sgd(0.5), 200, jax.random.key(0))
    point = directional.bezier(A, middle, B, 0.5)
    assert jnp.sum((point - 1) ** 2) < 0.5


def normalised(params, statistics, x):
    return jnp.mean((x @ params - statistics) ** 2)


def test_statistics_are_recomputed_at_every_point_of_a_curve_and_plane():
    """What depends on the point goes into the loss: here a running mean, which no interpolation would get right."""
    x, start, end = laws.weights((16, 3), 9, scale=1.0), laws.weights(3, 10, scale=1.0), laws.weights(3, 11, scale=1.0)
    middle = laws.weights(3, 12, scale=1.0)

    def recompute(params, x):
        return jnp.mean((x @ params) ** 2)

    def loss(params, x):
        return normalised(params, recompute(params, x), x)

    def expected(w):
        out = np.asarray(x, np.float64) @ w
        return np.mean((out - np.mean(out**2)) ** 2)

    a, m, b = flat(start), flat(middle), flat(end)
    ts = np.linspace(0, 1, 5)
    along = directional.loss_along(loss, start, middle, end, jnp.asarray(ts, jnp.float32), x)
    points = [(1 - t) ** 2 * a + 2 * t * (1 - t) * m + t**2 * b for t in ts]
    np.testing.assert_allclose(along, [expected(w) for w in points], rtol=1e-4)
    plane = directional.plane(start, middle, end)
    xs, ys = directional.grid(plane, points=3)
    got = directional.loss_on_plane(loss, plane, xs, ys, x)
    rows = [[expected(a + p * flat(plane.u) + q * flat(plane.v)) for p in np.asarray(xs)] for q in np.asarray(ys)]
    np.testing.assert_allclose(got, rows, rtol=1e-3)


@pytest.mark.parametrize("view", laws.TREES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_plane_holds_its_three_points_and_the_curve(view, dtype):
    start = laws.TREES[view][0](dtype)
    middle, end = (jax.tree.map(lambda p, s=s: laws.weights(p.shape, s, dtype), start) for s in (21, 22))
    plane = jax.jit(directional.plane)(start, middle, end)
    u, v = flat(plane.u), flat(plane.v)
    np.testing.assert_allclose([u @ u, v @ v, u @ v], [1, 1, 0], atol=1e-5)
    for (x, y), corner in zip(np.asarray(plane.points, np.float64), (start, middle, end), strict=True):
        np.testing.assert_allclose(flat(start) + x * u + y * v, flat(corner), atol=1e-5)
    assert plane.points[1, 1] > 0
    x, y = np.asarray(directional.bezier(*plane.points, 0.3), np.float64)
    on_curve = 0.49 * flat(start) + 0.42 * flat(middle) + 0.09 * flat(end)
    np.testing.assert_allclose(flat(start) + x * u + y * v, on_curve, atol=1e-5)
    xs, ys = directional.grid(plane, points=7, margin=0.2)
    low, high = np.asarray(plane.points).min(axis=0), np.asarray(plane.points).max(axis=0)
    ends = [xs[0], ys[0], xs[-1], ys[-1]]
    np.testing.assert_allclose(ends, [*(low - 0.2 * (high - low)), *(high + 0.2 * (high - low))], rtol=1e-4, atol=1e-6)
    assert xs.shape == ys.shape == (7,)


# --- wrong calls ----------------------------------------------------------------------------------------------------

W, V = laws.weights(6, 1), jnp.asarray(orthonormal(6, 2), jnp.float32)
TREE = {"a": W, "b": jnp.ones((2, 2))}
KEY = jax.random.key(0)
connect = partial(directional.connect, squares, W)
top = partial(directional.top_eigenspace, quadratic, W)
H = jnp.diag(jnp.arange(6.0))
ROOMY = laws.weights(40, 2)
CROWD = jnp.asarray(np.diag(np.linspace(1, 1.001, 40)), jnp.float32)
TURN = jnp.asarray(np.triu(np.random.default_rng(0).standard_normal((40, 40))), jnp.float32)


@jax.custom_vjp
def not_a_gradient(w, H):
    return w @ H @ w


not_a_gradient.defvjp(lambda w, H: (w @ H @ w, (w, H)), lambda saved, g: (g * (saved[1] @ saved[0]), None))

WRONG = {
    "rows for columns": (lambda: directional.scores(W, V.T), r"leaf '' of basis has shape \(2, 6\).*\(6, 'k'\)"),
    "no last axis": (lambda: directional.scores(W, V[:, 0]), r"leaf '' of basis has shape \(6,\)"),
    "another k in every leaf": (
        lambda: directional.projection_share(TREE, {"a": V, "b": jnp.ones((2, 2, 3))}),
        "of vectors has shape.*one k for all leaves",
    ),
    "another tree": (lambda: directional.scores(TREE, V), "basis must have the structure"),
    "not orthonormal": (lambda: directional.scores(W, 2 * V), r"columns of basis are not orthonormal.*3.0e\+00"),
    "not orthogonal": (lambda: directional.projection_share(W, V[:, [0, 0]]), "columns of vectors are not orthonormal"),
    "nan columns": (lambda: directional.scores(W, V * jnp.nan), "not orthonormal"),
    "integer weights": (lambda: directional.scores(jnp.arange(6), V), "leaf '' has dtype int32"),
    "nan weights": (lambda: directional.scores(W.at[0].set(jnp.nan), V), "leaf '' holds 1 NaN"),
    "nan displacement": (lambda: directional.projection_share(W.at[0].set(jnp.nan), V), "leaf '' holds 1 NaN"),
    "no weights": (lambda: directional.norm_ratio({}), "the tree of parameters has no leaves"),
    "nan norm": (lambda: directional.norm_ratio({"a": jnp.array([jnp.nan, 1.0])}), "leaf 'a' holds 1 NaN"),
    "scores of another shape": (lambda: directional.minimiser(W, W[:1], 0.1), r"leaf '' of scores has shape \(1,\)"),
    "scores of another tree": (lambda: directional.minimiser(TREE, W, 0.1), "scores must have the structure"),
    "nan scores": (lambda: directional.minimiser(W, W * jnp.nan, 0.1), "leaf '' holds 6 NaN"),
    "negative lam": (lambda: directional.minimiser(W, W, -0.1), "lam=-0.1 must be one number >= 0"),
    "nan lam": (lambda: directional.minimiser(W, W, jnp.nan), "lam=nan"),
    "one lam a weight": (lambda: directional.minimiser(W, W, W), r"lam=\[.*must be one number"),
    "vector of another shape": (
        lambda: directional.hessian_vector_product(quadratic, W, W[:2], H),
        "leaf '' of vector",
    ),
    "integer parameters": (lambda: directional.hessian_vector_product(quadratic, jnp.arange(6), W, H), "dtype int32"),
    "k = 0": (lambda: top(0, H), "k=0 is outside 1 to n=6"),
    "k > n": (lambda: top(7, H), "k=7 is outside 1 to n=6"),
    "tolerance": (lambda: top(1, H, tolerance=0.0), "tolerance=0.0 must be > 0"),
    "krylov": (lambda: top(3, H, krylov=3), "krylov=3 must exceed k=3"),
    "infinite loss": (lambda: top(1, H * jnp.inf), "product of the loss is not finite"),
    "inside jit": (lambda: jax.jit(lambda H: top(1, H)[0])(H), "params or batch is traced"),
    "no convergence": (
        lambda: directional.top_eigenspace(quadratic, ROOMY, 3, CROWD, tolerance=1e-6, restarts=1, krylov=5),
        "of k=3 eigenvalues converged in restarts=1; raise restarts or krylov=5",
    ),
    "asymmetric": (lambda: directional.top_eigenspace(not_a_gradient, ROOMY, 3, TURN), "are not eigenvectors"),
    "asymmetric, formed": (lambda: directional.top_eigenspace(not_a_gradient, W, 2, TURN[:6, :6]), "not eigenvectors"),
    "no batches": (lambda: directional.over_batches(squares)(TREE), "batches has leaves of shapes"),
    "uneven batches": (lambda: directional.over_batches(jnp.vdot)(W, (W, V[:2])), r"shapes \[\(6,\), \(2, 2\)\]"),
    "empty batches": (lambda: directional.over_batches(jnp.vdot)(W, V[:0]), r"\(0, 2\)"),
    "several t": (lambda: directional.bezier(A, M, B, jnp.ones(3)), r"t has shape \(3,\)"),
    "middle of another shape": (lambda: directional.bezier(A, M[:1], B, 0.5), "leaf '' of middle"),
    "end of another tree": (lambda: directional.midpoint(A, {"a": A}), "end must have the structure"),
    "steps": (lambda: connect(W, optax.sgd(0.1), 0, KEY), "steps=0 must be >= 1"),
    "batches of connect": (lambda: connect(W, optax.sgd(0.1), 1, KEY, W, V[:3]), "batches has leaves of shapes"),
    "one t": (lambda: directional.loss_along(jnp.sum, A, M, B, 0.5), r"ts has shape \(\)"),
    "a line": (lambda: directional.plane(A, directional.midpoint(A, B), B), "span no plane"),
    "one point": (lambda: directional.plane(A, M, A), "span no plane: end is 0.0e"),
    "grid": (lambda: directional.grid(directional.plane(A, M, B), points=1), "points=1 must be >= 2"),
    "margin": (lambda: directional.grid(directional.plane(A, M, B), margin=-1.0), "margin=-1.0 >= 0"),
    "a mesh": (
        lambda: directional.loss_on_plane(jnp.sum, directional.plane(A, M, B), jnp.ones((2, 2)), jnp.ones(2)),
        "pass one axis each",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_name_the_argument_and_the_way_out(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
