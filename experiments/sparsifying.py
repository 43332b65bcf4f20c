"""Recipes of `sparsejax.recipes` in the form the training loop takes: a mask through training, around the dense SGD.

The optimizer's state holds the mask, and the parameters its zeros. What a recipe needs to see first comes to it as the
optimizer's own arguments: SNIP's gradients are those of the first batch.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

import sparsejax as sj
from experiments.methods import Method, Recipe, dense
from experiments.models import one_by_one

Around = Callable[..., optax.GradientTransformation]
"""`(optimizer, target, seed) -> the recipe around it`: the target as recipes take it, the seed for what they draw."""


class Masked(NamedTuple):
    """Parameters that are zero where the mask is false, and two things that no gradient reaches."""

    params: chex.ArrayTree
    draw: jax.Array
    """A whole number below 2^24 that seeds what the recipe draws: so the networks of a run have masks of their own."""
    sparsities: dict[str, jax.Array]
    """Those of the leaves that are pruned, by name: so networks of every sparsity are trained by one program."""


def through_training(recipe: Recipe, around: Around, target: chex.ArrayTree, name: str = "sparsify") -> Method:
    """Returns training under a mask that a recipe chooses and changes.

    Args:
      recipe: how to train; the optimizer inside is the dense method's.
      around: what prunes, such as `lambda inner, target, seed: sparsejax.recipes.set_(inner, target, seed=seed)`.
      target: a tree of sparsities, 0.0 for leaves to leave alone.
      name: for logs.

    Returns:
      A method whose trainable is a `Masked`; where the recipe begins sparse, so do the parameters.
    """

    asked = {name: share for name, share in sj.tree.named(target).items() if share}

    def seeded(inner: optax.GradientTransformation, draw: jax.Array, shares) -> optax.GradientTransformation:
        return around(inner, lambda params: sj.tree.replace(target, shares), draw.astype(jnp.int32))

    def init(key: chex.PRNGKey, params: chex.ArrayTree) -> Masked:
        draw = jax.random.randint(key, (), 0, 2**24).astype(jnp.float32)
        shares = {name: jnp.asarray(share, jnp.float32) for name, share in asked.items()}
        mask = seeded(optax.identity(), draw, shares).init(params).mask
        return Masked(sj.apply(mask, params), draw, shares)

    def optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
        inner = dense(recipe).optimizer(schedule)

        def begin(trained: Masked) -> optax.OptState:
            return seeded(inner, *trained[1:]).init(trained.params)

        def update(grads: Masked, state: optax.OptState, trained: Masked):
            updates, state = seeded(inner, *trained[1:]).update(grads.params, state, trained.params)
            return Masked(updates, *jax.tree.map(jnp.zeros_like, trained[1:])), state

        return optax.GradientTransformation(begin, update)

    return dataclasses.replace(
        dense(recipe),
        name=name,
        init=init,
        forward=lambda trained: trained.params,
        optimizer=optimizer,
        finalize=lambda trained: trained.params,
        over_seeds=one_by_one,  # side by side they would choose a new mask at every step, and seldom take it
    )


def shuffled(key: chex.PRNGKey, mask: chex.ArrayTree) -> chex.ArrayTree:
    """Returns a mask whose entries are in another order within each leaf: as many survive, but others."""
    leaves = sj.tree.named(mask)
    keys = jax.random.split(key, len(leaves))
    moved = {
        name: jax.random.permutation(key, leaf.ravel()).reshape(leaf.shape)
        for key, (name, leaf) in zip(keys, leaves.items(), strict=True)
    }
    return sj.tree.replace(mask, moved)
