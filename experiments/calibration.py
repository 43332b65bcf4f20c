"""What pruning after training wants to know of the data: how large the inputs of every layer are."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp


def input_norms(
    model: nn.Module, params: chex.ArrayTree, model_state: chex.ArrayTree, images: jax.Array
) -> dict[str, jax.Array]:
    """Returns the l2 norm of every input of every dense layer and convolution, over images and positions.

    Args:
      model: a Linen network, `apply(variables, images, train)`.
      params: its parameters.
      model_state: its other collections.
      images: (n, h, w, c), normalised.

    Returns:
      `{kernel's leaf name: (inputs,) float32}`, what `sparsejax.scores.wanda` takes.
    """
    norms = {}

    def record(next_function, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(context.module, nn.Dense | nn.Conv):
            inputs = args[0].astype(jnp.float32)
            squares = jnp.sum(jnp.square(inputs), axis=tuple(range(inputs.ndim - 1)))
            norms["/".join((*context.module.path, "kernel"))] = jnp.sqrt(squares)
        return next_function(*args, **kwargs)

    with nn.intercept_methods(record):
        model.apply({"params": params, **model_state}, images, train=False)
    return norms
