"""Modules built again with smaller widths: what `shrink` returns fits them, and they are the small network."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from unit_networks import drawn, images

import sparsejax as sj

X = images(2, 6, 6, 3)


@pytest.fixture(autouse=True)
def strict():
    """Leaves promotion as it is outside: the networks of other libraries rely on it."""


class Linen(nn.Module):
    """Convolution, batch norm, a flattened map and dense layers, of any widths."""

    channels: int = 6
    neurons: int = 8

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(self.channels, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        x = nn.gelu(nn.Dense(features=self.neurons)(x))
        return nn.Dense(3)(x)


class Nnx(nnx.Module):
    """The same."""

    def __init__(self, channels=6, neurons=8, *, rngs):
        self.conv = nnx.Conv(3, channels, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(channels, use_running_average=True, rngs=rngs)
        self.dense = nnx.Linear(9 * channels, neurons, rngs=rngs)
        self.last = nnx.Linear(neurons, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))
        return self.last(nnx.gelu(self.dense(x.reshape(x.shape[0], -1))))


class Equinox(eqx.Module):
    """The same, of one example with the channels first, without batch norm."""

    conv: eqx.nn.Conv2d
    pool: eqx.nn.MaxPool2d
    dense: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, channels=6, neurons=8, *, key):
        keys = jax.random.split(key, 3)
        self.conv = eqx.nn.Conv2d(3, channels, 3, padding=1, key=keys[0])
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.dense = eqx.nn.Linear(9 * channels, neurons, key=keys[1])
        self.last = eqx.nn.Linear(neurons, 3, key=keys[2])

    def __call__(self, x):
        x = self.pool(jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0))))
        return self.last(jax.nn.gelu(self.dense(x.ravel())))


def linen():
    def rebuild(small, channels, neurons):
        return Linen(channels, neurons).apply(small, X)

    return (
        Linen().apply,
        jax.eval_shape(Linen().init, jax.random.key(0), X),
        rebuild,
        ("params/Conv_0", "params/Dense_0"),
    )


def of_nnx():
    structure, state = nnx.split(nnx.eval_shape(lambda: Nnx(rngs=nnx.Rngs(0))))

    def rebuild(small, channels, neurons):
        model = Nnx(channels, neurons, rngs=nnx.Rngs(0))
        nnx.update(model, small)
        return model(X)

    return lambda state, x: nnx.merge(structure, state)(x), state, rebuild, ("conv", "dense")


def equinox():
    def build(*widths):
        return eqx.partition(
            eqx.filter_eval_shape(lambda: Equinox(*widths, key=jax.random.key(0))), lambda leaf: hasattr(leaf, "shape")
        )

    arrays, rest = build()

    def rebuild(small, channels, neurons):  # a module's structure holds its widths
        arrays, rest = build(channels, neurons)
        leaves = jax.tree.unflatten(jax.tree.structure(arrays), jax.tree.leaves(small))
        return jax.vmap(eqx.combine(leaves, rest))(X)

    return lambda arrays, x: jax.vmap(eqx.combine(arrays, rest))(x), arrays, rebuild, ("conv", "dense")


@pytest.mark.parametrize("build", [linen, of_nnx, equinox])
def test_a_module_of_smaller_widths_takes_the_smaller_arrays(build):
    fn, shapes, rebuild, (channels, neurons) = build()
    params = drawn(shapes)
    graph = sj.units.trace(fn, params, X)
    assert {name: group.size for name, group in graph.groups.items()} == {channels: 6, neurons: 8}
    kept = {channels: jnp.array([True, False, True, True, False, True]), neurons: jnp.arange(8) != 3}
    small = sj.shrink(graph, params, kept)
    rebuilt = rebuild(small, *(int(kept[name].sum()) for name in (channels, neurons)))
    np.testing.assert_allclose(rebuilt, graph.small(kept)(small, X), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rebuilt, fn(sj.apply(graph.push(kept), params), X), rtol=1e-4, atol=1e-4)
    assert np.abs(rebuilt - fn(params, X)).max() > 1e-2
