"""Scores: how much every weight matters. A score is a function `(params, **signals) -> scores`; the larger is kept.

Scores have the structure and shapes of the parameters. Signals are what a score may look at besides them: `grads`,
`key`, `input_norms`, or whatever the caller of an optimizer passes to `update`; a score takes those it knows and lets
the others pass. One of your own is two lines:

    def movement(params, *, grads, **signals):
        return jax.tree.map(lambda w, g: -w * g, params, grads)

The scores of different leaves are compared by `sparsejax.select.globally` only. There, `lamp` or `normalized` keep
leaves of small weights alive.
"""

from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from sparsejax import tree
from sparsejax._types import Params, Scores, aligned_shape, wide_dtype


def magnitude(params: Params, **signals: Any) -> Scores:
    """Returns `|w|`.

    Args:
      params: the tree of parameters.
      **signals: not used.

    Returns:
      A tree like `params`, of its dtypes.

    >>> magnitude({"kernel": jnp.array([0.5, -2.0])})["kernel"].tolist()
    [0.5, 2.0]
    """
    del signals
    return jax.tree.map(jnp.abs, params)


def random(params: Params, *, key: chex.PRNGKey, **signals: Any) -> Scores:
    """Returns independent uniform numbers in [0, 1), from one draw for the whole tree.

    Args:
      params: the tree of parameters; only its shapes are read.
      key: a PRNG key.
      **signals: not used.

    Returns:
      A tree like `params`, float32.

    >>> bool(random({"kernel": jnp.zeros(3)}, key=jax.random.key(0))["kernel"].max() < 1)
    True
    """
    del signals
    shapes = {name: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.float32) for name, leaf in tree.named(params).items()}
    return tree.replace(params, tree.draw(key, shapes, jax.random.uniform))


def gradient(params: Params, *, grads: Params, **signals: Any) -> Scores:
    """Returns `|g|`, by which RigL lets weights grow.

    Args:
      params: the tree of parameters; only its structure is read.
      grads: the gradients, those of dead weights too.
      **signals: not used.

    Returns:
      A tree like `grads`.

    Raises:
      ValueError: `grads` has another structure, or other shapes.

    >>> gradient({"kernel": jnp.ones(2)}, grads={"kernel": jnp.array([0.5, -2.0])})["kernel"].tolist()
    [0.5, 2.0]
    """
    del signals
    tree.check_like(grads, params, "grads")
    return jax.tree.map(jnp.abs, grads)


def saliency(params: Params, *, grads: Params, **signals: Any) -> Scores:
    """Returns `|w g|`, to first order the change of the loss when a weight is removed.

    Source: Lee, Ajanthan, Torr, SNIP: Single-shot Network Pruning Based on Connection Sensitivity, 2019, Eq. 6, without
    the constant that all weights share; Molchanov et al., Pruning Convolutional Neural Networks, 2017.

    Args:
      params: the tree of parameters.
      grads: the gradients.
      **signals: not used.

    Returns:
      A tree like `params`, of float32 at least, in which products of small numbers do not vanish.

    Raises:
      ValueError: `grads` has another structure, or other shapes.

    >>> w, g = {"kernel": jnp.array([0.5, -2.0])}, {"kernel": jnp.array([4.0, 0.5])}
    >>> saliency(w, grads=g)["kernel"].tolist()
    [2.0, 1.0]
    """
    del signals
    tree.check_like(grads, params, "grads")
    return jax.tree.map(lambda w, g: jnp.abs(_wide(w, g) * _wide(g, w)), params, grads)


def wanda(params: Params, *, input_norms: Mapping[str, jax.Array], **signals: Any) -> Scores:
    """Returns `|w_ij| ||x_i||` for the input `i` of each weight; it is meant for the scope `per(-1)`.

    Source: Sun, Liu, Bair, Kolter, A Simple and Effective Pruning Approach for Large Language Models, 2024, Eq. 1.

    Args:
      params: the tree of parameters; kernels have their outputs along the last axis.
      input_norms: `{leaf name: norms}`, the l2 norm of each input over all examples, to broadcast against the leaf
        without its last axis: `(in,)` for kernels of dense layers and convolutions. Leaves that it does not name have
        norms of one.
      **signals: not used.

    Returns:
      A tree like `params`; named leaves of float32 at least.

    Raises:
      ValueError: a name is not that of a leaf, or norms do not fit it.

    >>> kernel = {"kernel": jnp.array([[1.0, -3.0], [2.0, 1.0]])}
    >>> wanda(kernel, input_norms={"kernel": jnp.array([4.0, 1.0])})["kernel"].tolist()
    [[4.0, 12.0], [2.0, 1.0]]
    """
    del signals
    tree.check_names(input_norms, params, "input_norms")
    leaves = tree.named(params)
    scored = {}
    for name, norms in input_norms.items():
        norms, kernel = jnp.asarray(norms), jnp.asarray(leaves[name])
        if kernel.ndim < 1 or (shape := aligned_shape(norms.shape, kernel.shape[:-1])) is None:
            raise ValueError(
                f"input_norms[{name!r}] has shape {norms.shape}, which does not broadcast to {kernel.shape[:-1]}, the "
                f"leaf's shape without its outputs; give one norm an input"
            )
        scored[name] = jnp.abs(_wide(kernel, norms)) * _wide(norms, kernel).reshape(*shape, 1)
    return tree.replace(magnitude(params), scored)


def lamp(params: Params, **signals: Any) -> Scores:
    """Returns the layer-adaptive magnitude `w_u^2 / sum of w_v^2 over the |w_v| >= |w_u| of the leaf`.

    With it, `sparsejax.select.globally` finds the sparsity of each leaf, and prunes all of one last: the largest
    weight scores 1. Of equal weights that of the lower index scores higher. It sorts every leaf, and so gathers
    sharded ones.

    Source: Lee, Park, Mo, Ahn, Shin, Layer-adaptive Sparsity for the Magnitude-based Pruning, 2021, Eq. 4.

    Args:
      params: the tree of parameters.
      **signals: not used.

    Returns:
      A tree like `params`, float32 at least.

    >>> lamp({"kernel": jnp.array([1.0, -2.0, 2.0])})["kernel"].tolist()
    [0.1111, 1.0, 0.5]
    """
    del signals
    return jax.tree.map(_lamp, params)


def normalized(scores: Scores) -> Scores:
    """Returns scores divided by the l2 norm of their leaf, `s / ||s||`, for competitions between leaves.

    Args:
      scores: a tree of float leaves.

    Returns:
      A tree like `scores`, float32 at least; a leaf of zeros stays one.

    >>> normalized({"kernel": jnp.array([3.0, 4.0])})["kernel"].tolist()
    [0.6, 0.8]
    """

    def scale(leaf: jax.Array) -> jax.Array:
        wide = _wide(leaf)
        norm = jnp.sqrt(jnp.sum(jnp.square(wide)))
        return wide / jnp.where(norm == 0, jnp.ones_like(norm), norm)

    return jax.tree.map(scale, scores)


def _wide(leaf: chex.Array, *others: chex.Array) -> jax.Array:
    return jnp.asarray(leaf).astype(wide_dtype(jnp.asarray(leaf), *map(jnp.asarray, others)))


def _lamp(leaf: jax.Array) -> jax.Array:
    squares = jnp.square(_wide(leaf)).ravel()
    order = jnp.argsort(-squares, stable=True)
    falling = squares[order]
    total = jnp.cumsum(falling)
    scores = jnp.where(falling == 0, falling, falling / total)
    return jnp.zeros_like(squares).at[order].set(scores).reshape(jnp.shape(leaf))
