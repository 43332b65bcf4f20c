"""The Hessian of a loss over any tree of parameters, by its products with vectors alone."""

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from sparsejax import linear_algebra, tree
from sparsejax._types import Params

Loss = Callable[..., jax.Array]
"""`(params, *batch) -> scalar`."""


def over_batches(loss: Loss) -> Loss:
    """Returns the mean of a loss over batches that are stacked along a leading axis, in the memory of one of them.

    `(params, *batches) -> 1/m sum_i loss(params, *batches[i])`: differentiable any number of times; the activations
    of a batch are computed again in a backward pass, not stored. Use it for Hessians and curves of a whole data set,
    and make it once: what is compiled for a loss, here as in `top_eigenspace`, `connect` and `loss_along`, is kept for
    that function object.

    Args:
      loss: `(params, *batch) -> scalar`, a mean over its batch.

    Returns:
      A loss whose `batches` are arrays or trees of arrays with one more, leading axis, of a common size >= 1.

    Raises:
      ValueError: when called, if `batches` has no arrays, or their leading axes differ or are empty.

    >>> mean = over_batches(lambda w, x: jnp.mean(w * x))
    >>> mean(jnp.float32(2.0), jnp.array([[1.0, 2.0], [3.0, 4.0]])).item()
    5.0
    """
    # Nothing that is recomputed can be optimised away inside a loop, so the barriers against it would only cost time.
    recomputed = jax.checkpoint(lambda params, batch: scalar(loss(params, *batch)), prevent_cse=False)

    def mean(params: Params, *batches: chex.ArrayTree) -> jax.Array:
        count_batches(batches)
        return jnp.mean(jax.lax.map(lambda batch: recomputed(params, batch), batches))

    return mean


def hessian_vector_product(loss: Loss, params: Params, vector: Params, *batch: chex.ArrayTree) -> Params:
    """Returns `H v`, the gradient of `<gradient of loss(params, *batch), v>`.

    Reverse over reverse mode: the arithmetic and memory of about two gradients. It is right for every loss that has a
    gradient, also through a `custom_vjp` such as those of `sparsejax.ops`; `H` is then the derivative of the gradients
    they make up, with the straight-through rule applied twice.

    Args:
      loss: `(params, *batch) -> scalar`.
      params: the tree of parameters, float dtypes.
      vector: `v`, a tree like `params`; it takes their dtypes.
      batch: further arguments of the loss.

    Returns:
      A tree like `params`, same dtypes.

    Raises:
      ValueError: `vector` has not the structure or shapes of `params`, or a leaf of `params` is empty, holds NaN or is
        not of a float dtype.

    Source: Pearlmutter, Fast Exact Multiplication by the Hessian, 1994.

    >>> loss = lambda w: w[0] ** 2 * w[1]
    >>> hessian_vector_product(loss, jnp.array([3.0, 5.0]), jnp.array([1.0, 0.0])).tolist()
    [10.0, 6.0]
    """
    linear_algebra.check_float(params)
    tree.check_like(vector, params, "vector")
    params = jax.tree.map(jnp.asarray, params)
    _, pullback = jax.vjp(jax.grad(lambda p: scalar(loss(p, *batch))), params)
    return pullback(linear_algebra.cast_like(vector, params))[0]


def top_eigenspace(
    loss: Loss,
    params: Params,
    k: int,
    *batch: chex.ArrayTree,
    tolerance: float = 1e-4,
    restarts: int = 100,
    krylov: int | None = None,
) -> tuple[jax.Array, Params]:
    """Returns the `k` algebraically largest eigenvalues of the Hessian of `loss(params, *batch)`, and their vectors.

    ARPACK's implicitly restarted Lanczos method (SciPy's `eigsh`, from the right end of the spectrum, so that no
    eigenvalue is found for being very negative), driven by one compiled Hessian-vector product from a fixed start
    vector; every pair found is checked by one more product. Where n <= `krylov` the Hessian is formed and
    decomposed. It runs on the host: not inside `jit`.

    Args:
      loss: `(params, *batch) -> scalar`, deterministic. For a whole data set, `over_batches(loss)`.
      params: the tree of parameters, n numbers in all. Use float32 or wider: bfloat16 has 2 digits for a Hessian.
      k: how many, from 1 to n.
      batch: further arguments of the loss.
      tolerance: of the residual |H v - value v|, relative to value + |H z| / |z| for the random start vector z; > 0.
      restarts: largest number of restarts, each of about `krylov - k` products.
      krylov: dimension of the Krylov space, > k, by default max(2k + 1, 20); the host holds as many float64 vectors.

    Returns:
      The values, (k,), falling, float32 or wider; and their orthonormal vectors, a tree like `params` whose leaves
      have one more, last axis of size k (so the matrix (n, k) of columns for a bare array), float32 or wider.

    Raises:
      ValueError: `k`, `krylov` or `tolerance` is out of range; a product is not finite; it did not converge; or a
        residual stays large, because the loss is random or its custom gradients are not the gradient of anything.

    Source: Chao et al., Directional Pruning of Deep Neural Networks, 2020, Fig. 6. The authors ask ARPACK for the
    largest in magnitude, three times as many as they want, and for more when negative ones are among them.

    >>> values, vectors = top_eigenspace(lambda w: 2 * w["a"] ** 2 - w["b"] ** 2, {"a": 1.0, "b": 1.0}, 1)
    >>> values.tolist(), abs(vectors["a"]).tolist()
    ([4.0], [1.0])
    """
    linear_algebra.check_float(params)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, batch))):
        raise ValueError("params or batch is traced, but top_eigenspace runs on the host: call it outside jit and vmap")
    params, dtype = jax.tree.map(jnp.asarray, params), linear_algebra.common_dtype(params)
    flat, unravel = ravel_pytree(linear_algebra.widen(params, dtype))
    krylov = _check_sizes(flat.size, k, krylov, tolerance)

    product = _operator(loss, params, batch, dtype, flat.size)
    start = np.random.default_rng(0).standard_normal(flat.size)
    typical = float(np.linalg.norm(product(start)) / np.linalg.norm(start))  # the root mean square eigenvalue, about
    if flat.size <= krylov:
        values, vectors = _all(product, flat.size)
    else:
        values, vectors = _largest(product, start, typical or 1.0, k, tolerance, restarts, krylov)
    order = np.argsort(values)[::-1][:k]
    values, vectors = values[order], vectors[:, order]
    rounding = max(float(jnp.finfo(jnp.result_type(leaf)).eps) for leaf in jax.tree.leaves(params)) ** 0.5
    _check_residuals(product, values, vectors, typical, max(10 * tolerance, rounding))
    columns = jax.vmap(unravel, in_axes=1, out_axes=-1)(jnp.asarray(vectors, dtype))
    return jnp.asarray(values, dtype), columns


def count_batches(batches: chex.ArrayTree) -> int:
    """Returns the common size of the leading axes, or raises `ValueError`."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batches)]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            f"batches has leaves of shapes {shapes}; it needs one at least, and all with the same leading axis, which "
            f"counts the batches: stack them, or reshape the data to (batches, size, ...)"
        )
    return sizes.pop()[0]


def scalar(value: chex.Numeric) -> chex.Numeric:
    """Returns the value of a loss; raises `ValueError` unless it is one number."""
    if jnp.ndim(value):
        raise ValueError(f"loss returned an array of shape {jnp.shape(value)}; it must be one number: take the mean")
    return value


def _forward_product(loss, params, vector, *batch):
    """Returns `H v` by forward over reverse mode, which not every `custom_vjp` permits."""
    return jax.jvp(jax.grad(lambda p: scalar(loss(p, *batch))), (params,), (vector,))[1]


@partial(jax.jit, static_argnums=(0, 1))
def _flat_product(product, loss, params, vector, *batch):
    _, unravel = ravel_pytree(linear_algebra.widen(params, vector.dtype))
    image = product(loss, params, linear_algebra.cast_like(unravel(vector), params), *batch)
    return ravel_pytree(linear_algebra.widen(image, vector.dtype))[0]


def _operator(loss: Loss, params: Params, batch: tuple, dtype: jnp.dtype, n: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the compiled product of the Hessian with a float64 vector (n,)."""

    def multiply(product, vector: np.ndarray) -> np.ndarray:
        image = np.asarray(_flat_product(product, loss, params, jnp.asarray(vector.ravel(), dtype), *batch), np.float64)
        if not np.isfinite(image).all():
            raise ValueError("a Hessian-vector product of the loss is not finite; is the loss itself, at these params?")
        return image

    # Forward mode first: for convolutions on CPUs it is twice as fast, and twenty times inside `over_batches`. That a
    # custom_vjp forbids it (one whose forward rule calls its own function) shows only when the product is compiled.
    try:
        multiply(_forward_product, np.zeros(n))
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        return partial(multiply, hessian_vector_product)
    return partial(multiply, _forward_product)


def _all(product, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns all eigenvalues of a symmetric operator on R^n and their vectors as columns."""
    return np.linalg.eigh(np.stack([product(unit) for unit in np.eye(n)], axis=1))


def _largest(product, start: np.ndarray, shift: float, k: int, tolerance: float, restarts: int, krylov: int):
    """Returns the k largest eigenvalues of a symmetric operator and their vectors as columns."""
    # Imported here: it takes longer than all of this package, and JAX itself imports it only when it must.
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    # ARPACK's tolerance is relative to the eigenvalue, so those near zero, the bulk of a network's spectrum, would
    # never do. Shifted by their typical size they take a sixth of the products, and a Hessian of zeros is no exception.
    shifted = LinearOperator((start.size,) * 2, matvec=lambda v: product(v) + shift * v.ravel(), dtype=np.float64)
    try:
        values, vectors = eigsh(shifted, k, which="LA", v0=start, ncv=krylov, maxiter=restarts, tol=tolerance)
    except ArpackNoConvergence as error:
        raise ValueError(
            f"only {len(error.eigenvalues)} of k={k} eigenvalues converged in restarts={restarts}; raise restarts or "
            f"krylov={krylov}, loosen tolerance={tolerance}, or ask for fewer: those that follow may lie too close"
        ) from error
    return values - shift, vectors


def _check_sizes(n: int, k: int, krylov: int | None, tolerance: float) -> int:
    """Returns the dimension of the Krylov space; raises `ValueError` unless everything is in range."""
    if k not in range(1, n + 1):
        raise ValueError(f"k={k} is outside 1 to n={n}, the number of parameters, and so of eigenvalues")
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance} must be > 0: rounding alone leaves a residual; 1e-4 suits float32")
    if krylov is not None and krylov <= k:
        raise ValueError(f"krylov={krylov} must exceed k={k}, and 2k or more converges faster; leave it to its default")
    return max(2 * k + 1, 20) if krylov is None else krylov


def _check_residuals(product, values: np.ndarray, vectors: np.ndarray, typical: float, limit: float) -> None:
    """Raises `ValueError` unless every column is an eigenvector; Lanczos takes symmetry on trust."""
    images = np.stack([product(vector) for vector in vectors.T], axis=1)
    residual = np.linalg.norm(images - vectors * values, axis=0).max()
    scale = max(typical, np.linalg.norm(images, axis=0).max())
    if not residual <= limit * scale:
        raise ValueError(
            f"the vectors found are not eigenvectors: a residual is {residual / scale:.1e} of the largest product, "
            f"where {limit:.1e} is allowed. Either the loss draws random numbers (fix its key, switch dropout off), or "
            f"its Hessian is not symmetric because of custom gradients, or its dtype is too coarse (use float32)"
        )
