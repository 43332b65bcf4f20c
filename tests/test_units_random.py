"""Programs of random steps between two layers: the smaller one computes what the masked one does, whatever they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import sparsejax as sj


def moved_weights(axis, name):
    return lambda p, h: jnp.moveaxis(jnp.tensordot(h, p[name], [[axis], [0]]), -1, axis)


def with_constant(constant, step):
    return lambda p, h: step(h, constant)


def along(rng, shape, axis):
    values = rng.normal(size=shape[axis]).astype(np.float32)
    return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def halves(size):
    return (2, size // 2) if size % 4 else (size // 2, 2)


# `(random numbers, shape, axis) -> step`, or None where there is none for the shape; a step is `(params, h) -> h`.
STEPS = {
    "cut": lambda rng, s, a: None if s[a] % 2 else lambda p, h: h.reshape(*s[:a], *halves(s[a]), *s[a + 1 :]),
    "merge": lambda rng, s, a: None if a + 1 == len(s) else lambda p, h: h.reshape(*s[:a], -1, *s[a + 2 :]),
    "turn": lambda rng, s, a: lambda p, h: jnp.moveaxis(h, a, -1),
    "append": lambda rng, s, a: lambda p, h: jnp.concatenate([h, jnp.sin(h)[:, :1] if a == 1 else h], axis=a),
    "exchange": lambda rng, s, a: None if s[a] % 2 else lambda p, h: jnp.concatenate(jnp.split(h, 2, a)[::-1], a),
    "roll": lambda rng, s, a: lambda p, h: jnp.roll(h, 1, a),
    "flip": lambda rng, s, a: lambda p, h: jnp.flip(h, a),
    "pad": lambda rng, s, a: lambda p, h: jnp.pad(h, [(i == a, 2 * (i == a)) for i in range(len(s))]),
    "crop": lambda rng, s, a: None if s[a] < 4 else lambda p, h: lax.slice_in_dim(h, 1, s[a] - 1, 1 + s[a] % 2, a),
    "repeat": lambda rng, s, a: lambda p, h: jnp.repeat(h, 2, a),
    "tile": lambda rng, s, a: lambda p, h: jnp.tile(h, [1 + (i == a) for i in range(len(s))]),
    "take": lambda rng, s, a: with_constant(rng.integers(s[a], size=s[a]), lambda h, at: jnp.take(h, at, axis=a)),
    "sums": lambda rng, s, a: lambda p, h: jnp.cumsum(h, a),
    "mean": lambda rng, s, a: None if len(s) < 3 else lambda p, h: h.mean(a),
    "add mean": lambda rng, s, a: lambda p, h: h + h.mean(a, keepdims=True),
    "largest": lambda rng, s, a: None if len(s) < 3 else lambda p, h: h.max(a),
    "softmax": lambda rng, s, a: lambda p, h: jax.nn.softmax(h, a),
    "scale": lambda rng, s, a: with_constant(along(rng, s, a), jnp.multiply),
    "shift": lambda rng, s, a: with_constant(along(rng, s, a), jnp.add),
    "relu": lambda rng, s, a: lambda p, h: jax.nn.relu(h),
    "sigmoid": lambda rng, s, a: lambda p, h: jax.nn.sigmoid(h),
    "gate": lambda rng, s, a: None if s[a] % 2 else lambda p, h: jnp.multiply(*jnp.split(h, 2, a)),
    "norm": lambda rng, s, a: lambda p, h: h / jnp.sqrt(jnp.square(h).mean(a, keepdims=True) + 1e-3),
    "dense": lambda rng, s, a: moved_weights(a, s[a]),
    "outer": lambda rng, s, a: None if len(s) > 2 else lambda p, h: h[:, :, None] * h[:, None],
    "gram": lambda rng, s, a: None if len(s) != 3 else lambda p, h: jnp.einsum("bij,bkj->bik", h, h),
    "scan": lambda rng, s, a: lambda p, h: lax.scan(lambda c, x: (jnp.tanh(c + x), c), jnp.ones(s[1:]), h)[1],
}


def random_program(seed):
    """A program, its parameters and its input; kernels of steps are keyed by their number of inputs."""
    rng = np.random.default_rng(seed)
    shape, steps = (2, 12), []
    while len(steps) < 6:
        axis = int(rng.integers(1, len(shape)))
        step = STEPS[rng.choice(list(STEPS))](rng, shape, axis)
        if step is None:
            continue
        kernels = {size: jax.ShapeDtypeStruct((size, 6), jnp.float32) for size in shape}
        after = jax.eval_shape(step, kernels, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
        if np.prod(after) < 300 and len(after) < 5:
            steps.append((step, shape))
            shape = after
    sizes = {size for _, before in steps for size in before}
    widths = {"in": (4, 12), "out": (int(np.prod(shape[1:])), 3), **{size: (size, 6) for size in sizes}}
    params = {str(n): jnp.asarray(rng.normal(size=s) * 1.5 / np.sqrt(s[0]), jnp.float32) for n, s in widths.items()}

    def fn(p, x):
        kernels, h = {size: p[str(size)] for size in sizes}, x @ p["in"]
        for step, _ in steps:
            h = step(kernels, h)
        return h.reshape(2, -1) @ p["out"]

    return fn, params, jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)


@pytest.mark.parametrize("seed", range(24))
def test_a_smaller_program_computes_what_the_masked_one_does(seed):
    fn, params, x = random_program(seed)
    graph = sj.units.trace(fn, params, x)
    rng = np.random.default_rng(seed)
    kept = {name: rng.permutation(group.size) < (group.size + 1) // 2 for name, group in graph.groups.items()}
    expected = jax.jit(fn)(sj.apply(graph.push(kept), params), x)
    actual = jax.jit(graph.small(kept))(sj.shrink(graph, params, kept), x)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * max(1.0, np.abs(expected).max()), rtol=1e-4)


def test_random_programs_have_units():
    """Without which the test above would say nothing."""
    graphs = [sj.units.trace(*random_program(seed)) for seed in range(24)]
    assert sum(len(graph.groups) > 0 for graph in graphs) >= 12
    assert sum(len(graph.inexact) > 0 for graph in graphs) >= 2
