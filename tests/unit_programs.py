"""Small functions with units, each with one difficulty, and what is to be found in it.

`name: Case(fn, shapes, args, exact, inexact)`; `exact` and `inexact` are `{group: units}`, counted by hand.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from unit_networks import images, tokens

import sparsejax as sj

X = images(2, 4)


class Case(NamedTuple):
    fn: object
    shapes: dict
    args: tuple = (X,)
    exact: dict = {}  # noqa: RUF012
    inexact: dict = {}  # noqa: RUF012
    options: dict = {}  # noqa: RUF012


def hidden(between, width=6, read=None, **options):
    """A function that computes 6 units, does something with them, and reads them."""
    shapes = {"in": (4, width), "out": (read or width, 3)}
    return Case(lambda p, x: between(x @ p["in"]) @ p["out"], shapes, **options)


TABLE = np.sin(1 + np.arange(6) / 3.0).astype(np.float32)
SIX = {"in": 6}


def layer_norm(x, variance):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt(variance(x, centred) + 1e-5)


def fast_variance(x, _):
    return jnp.square(x).mean(-1, keepdims=True) - jnp.square(x.mean(-1, keepdims=True))


def slow_variance(_, centred):
    return jnp.square(centred).mean(-1, keepdims=True)


def gram(p, x):
    h = x @ p["in"]
    return jnp.einsum("bi,bj->ij", h, h).reshape(1, -1) @ p["out"]


def channel_gram(p, x):
    h = x @ p["in"]
    covariance = jnp.einsum("bi,bj->ij", h, h)
    return (jnp.tanh(covariance) @ p["right"]).sum(0)


def two_uses(p, x):
    return (jnp.tanh(x @ p["w"]) @ p["w"].T) @ p["w"] @ p["out"]


def recurrent(p, x):
    def turn(h, xt):
        h = jnp.tanh(xt @ p["in"] + h @ p["w"])
        return h, h

    last, every = lax.scan(turn, jnp.zeros((1, 6)), jnp.stack([x[:1], x[1:], x[:1]]))
    return last @ p["out"] + every.sum(0) @ p["out"]


def counted(p, x):
    _, h = lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"])), (0, x @ p["in"]))
    return h @ p["out"]


def branched(p, x):
    h = x @ p["in"]
    h = lax.cond(x.sum() > 0, lambda h: jnp.tanh(h @ p["a"]), lambda h: 2 * h + p["b"], h)
    return h @ p["out"]


def stacked_layers(p, x):
    h, _ = lax.scan(lambda h, w: (h + jnp.tanh(h @ w["up"]) @ w["down"], None), x @ p["in"], p["layers"])
    return h @ p["out"]


@jax.custom_vjp
def doubled(x):
    return 2 * x


# A wrong derivative, so that it is seen whether it is kept; and one that sums over the units, by their number.
doubled.defvjp(lambda x: (doubled(x), x.shape), lambda shape, g: (3 * g,))


@jax.custom_jvp
def tripled(x):
    return 3 * x


tripled.defjvps(lambda t, ans, x: 5 * t + 0 * ans)


def glu(h):
    first, second = jnp.split(h, 2, axis=-1)
    return first * jax.nn.sigmoid(second)


def shuffled(h):
    return h.reshape(2, 2, 3).swapaxes(1, 2).reshape(2, 6)


def lora(p, x):
    return jnp.tanh(x @ (p["w"] + p["a"] @ p["b"])) @ p["out"]


def dropped(p, x, key):
    h = jax.nn.relu(x @ p["in"])
    h = jnp.where(jax.random.bernoulli(key, 0.5, h.shape), h * 2, 0.0)
    return h @ p["out"]


def sampled(p, x, key):
    mean, spread = x @ p["mean"], x @ p["spread"]
    return (mean + jnp.exp(spread) * jax.random.normal(key, mean.shape)) @ p["out"]


def embedded(p, t):
    h = p["table"][t]
    return jnp.tanh(h @ p["w"]) @ p["table"].T


def positions(p, t):
    return jnp.tanh(p["table"][t] + TABLE) @ p["out"]


def positions_and_norm(p, t):
    return layer_norm(p["table"][t] + TABLE, fast_variance) * p["scale"] @ p["out"]


def counters(p, x):
    return jnp.tanh(x @ p["in"]) @ p["out"] * p["count"].astype(jnp.float32)


def unused(p, x):
    return jnp.tanh(x @ p["in"]) @ p["out"]


def standardised(p, x):
    w = p["in"] / jnp.sqrt(jnp.square(p["in"]).sum(0, keepdims=True))
    return jnp.tanh(x @ w) @ p["out"]


def reduced_over_parameters(p, x):
    return jnp.tanh(x @ p["in"]) @ p["out"] + sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(p))


def written(h):
    return jnp.zeros((3, 2, 6)).at[1].set(h).sum(0)


def pooled_over_units(h):
    return lax.reduce_window(h, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID")


def gathered(h, start, size):
    """A slice as indexing writes it where the batch is symbolic."""
    numbers = lax.GatherDimensionNumbers((0, 1), (), (1,))
    return lax.gather(h, jnp.array([start]), numbers, (2, size))


def heads(p, x):
    h = (x @ p["in"]).reshape(2, 3, 2)
    return h.sum(1) @ p["out"]


def conv1d(p, x):
    x = x.reshape(2, 4, 1)
    numbers = ("NWC", "WIO", "NWC")
    x = jnp.tanh(lax.conv_general_dilated(x, p["first"], (1,), "SAME", dimension_numbers=numbers))
    x = lax.conv_general_dilated(x, p["deep"], (1,), "SAME", dimension_numbers=numbers, feature_group_count=4)
    return x.reshape(2, -1) @ p["out"]


def transposed_conv(p, x):
    x = x.reshape(2, 1, 4)
    numbers = ("NCW", "OIW", "NCW")
    x = jnp.tanh(lax.conv_general_dilated(x, p["first"], (1,), [(1, 1)], (2,), dimension_numbers=numbers))
    return x.sum(-1) @ p["out"]


def returned_state(p, x):
    h = x @ p["in"]
    mean = 0.9 * p["stats"]["mean"] + 0.1 * h.mean(0, keepdims=True)
    return jnp.tanh(h - mean) @ p["out"], {"stats": {"mean": mean}}


KEY = jax.random.key(3)
PROGRAMS = {
    # what goes through
    "relu": hidden(jax.nn.relu, exact=SIX),
    "sigmoid": hidden(jax.nn.sigmoid, exact=SIX),
    "softplus": hidden(jax.nn.softplus, exact=SIX),
    "clip": hidden(lambda h: jnp.clip(h, 0, 1), exact=SIX),
    "jitted": hidden(jax.jit(jnp.tanh), exact=SIX),
    "rematerialised": hidden(jax.checkpoint(lambda h: jnp.tanh(h) ** 2), exact=SIX),
    "custom vjp": hidden(doubled, exact=SIX),
    "custom jvp": hidden(tripled, exact=SIX),
    "our operators": hidden(lambda h: sj.ops.hard_shrink(h, jnp.float32(0.1)), exact=SIX),
    "reversed": hidden(lambda h: h[:, ::-1], exact=SIX),
    "rolled": hidden(lambda h: jnp.roll(h, 2, axis=1), exact=SIX),
    "padded": hidden(lambda h: jnp.pad(h, ((0, 0), (1, 2))), read=9, exact=SIX),
    "cropped": hidden(lambda h: lax.pad(h, 0.0, ((0, 0, 0), (-1, -2, 0))), read=3, exact=SIX),
    "half of it": hidden(lambda h: h[:, :4], read=4, exact=SIX),
    "every other": hidden(lambda h: h[:, ::2], read=3, exact=SIX),
    "known positions": hidden(lambda h: h[:, np.array([4, 0, 2])], read=3, exact=SIX),
    "known positions twice": hidden(lambda h: h[:, np.array([4, 0, 4, 5])], read=4, exact=SIX),
    "known slice": hidden(lambda h: gathered(h, 2, 3), read=3, exact=SIX),
    "known position": hidden(lambda h: gathered(h, 2, 1)[:, 0, None] + h[:, 4:5], read=1, exact={"in": 4}),
    "known start": hidden(lambda h: lax.dynamic_slice(h, (0, 1), (2, 4)), read=4, exact=SIX),
    "concatenated": hidden(lambda h: jnp.concatenate([h, 2 * h], axis=1), read=12, exact=SIX),
    "concatenated with a constant": hidden(lambda h: jnp.concatenate([h, jnp.ones((2, 1))], 1), read=7, exact=SIX),
    "repeated": hidden(lambda h: jnp.repeat(h, 2, axis=1), read=12, exact=SIX),
    "tiled": hidden(lambda h: jnp.tile(h, (1, 2)), read=12, exact=SIX),
    "stacked": hidden(lambda h: jnp.stack([h, h], axis=1).reshape(2, -1), read=12, exact=SIX),
    "gated": hidden(glu, read=3, exact={"in": 3}),
    "reshaped": hidden(lambda h: h.reshape(2, 2, 3).reshape(2, 6), exact={"in": 2}),
    "shuffled": hidden(shuffled, exact=SIX),
    "cut and turned": hidden(lambda h: h.reshape(2, 2, 3).swapaxes(1, 2).sum(2), read=3, exact={"in": 2}),
    "written into zeros": hidden(written, exact=SIX),
    "scaled by a constant": hidden(lambda h: h * TABLE, exact=SIX),
    "shifted by a constant": hidden(lambda h: jnp.tanh(h + TABLE), exact=SIX),
    "shifted by positions": hidden(lambda h: jnp.tanh(h + jnp.arange(6.0)), exact=SIX),
    "summed": hidden(lambda h: jnp.tanh(h).mean(1, keepdims=True), read=1, exact=SIX),
    "summed along": hidden(lambda h: jnp.cumsum(jnp.tanh(h), axis=1), exact=SIX),
    "largest of others": hidden(lambda h: h + h.max(0, keepdims=True), exact=SIX),
    "norm by mean of squares": hidden(lambda h: h / jnp.sqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-5), exact=SIX),
    "norm with the fast variance": hidden(lambda h: layer_norm(h, fast_variance), exact=SIX),
    "gram matrix of units": Case(channel_gram, {"in": (4, 6), "right": (6, 6)}, exact={"in": 6}),
    "weights used twice": Case(two_uses, {"w": (4, 6), "out": (6, 3)}, exact={"w": 6}),
    "low rank": Case(lora, {"w": (4, 6), "a": (4, 2), "b": (2, 6), "out": (6, 3)}, exact={"b": 6, "a": 2}),
    "recurrent": Case(recurrent, {"in": (4, 6), "w": (6, 6), "out": (6, 3)}, exact=SIX),
    "counted": Case(counted, {"in": (4, 6), "w": (6, 6), "out": (6, 3)}, exact=SIX),
    "branched": Case(branched, {"in": (4, 6), "a": (6, 6), "b": (1, 6), "out": (6, 3)}, exact=SIX),
    "stacked layers": Case(
        stacked_layers,
        {"in": (4, 6), "layers": {"up": (3, 6, 5), "down": (3, 5, 6)}, "out": (6, 3)},
        exact={"in": 6, "layers": 5},
    ),
    "dropout": Case(dropped, {"in": (4, 6), "out": (6, 3)}, (X, KEY), SIX),
    "sampled": Case(sampled, {"mean": (4, 6), "spread": (4, 6), "out": (6, 3)}, (X, KEY), {"mean": 6}),
    "tied embedding": Case(embedded, {"table": (7, 6), "w": (6, 6)}, (tokens(2, 5, below=7),), {"table": 6}),
    "position table": Case(positions, {"table": (7, 6), "out": (6, 3)}, (tokens(2, 5, below=7),), {"table": 6}),
    "integer leaf": Case(counters, {"in": (4, 6), "out": (6, 3), "count": ((3,), jnp.int32)}, exact=SIX),
    "unused leaf": Case(unused, {"in": (4, 6), "out": (6, 3), "idle": (6, 6)}, exact=SIX),
    "penalty on parameters": Case(reduced_over_parameters, {"in": (4, 6), "out": (6, 3)}, exact=SIX),
    "groups and multipliers": Case(
        conv1d, {"first": (3, 1, 4), "deep": (3, 1, 8), "out": (32, 3)}, exact={"first": 4}
    ),
    "other layouts": Case(transposed_conv, {"first": (6, 1, 2), "out": (6, 3)}, exact={"first": 6}),
    "heads that are summed": Case(heads, {"in": (4, 6), "out": (2, 3)}, exact={"in": 3}),
    "returned state": Case(
        returned_state, {"in": (4, 6), "stats": {"mean": (1, 6)}, "out": (6, 3)}, exact=SIX
    ),
    # what would be seen
    "softmax": hidden(jax.nn.softmax, inexact=SIX),
    "norm with the slow variance": hidden(lambda h: layer_norm(h, slow_variance), inexact=SIX),
    "sum of sigmoids": hidden(lambda h: jax.nn.sigmoid(h).sum(1, keepdims=True), read=1, inexact=SIX),
    "largest": hidden(lambda h: h.max(1, keepdims=True), read=1, inexact=SIX),
    "product": hidden(lambda h: h.prod(1, keepdims=True), read=1, inexact=SIX),
    "largest along": hidden(lambda h: lax.cummax(h, axis=1), inexact=SIX),
    "weights of norm 1": Case(standardised, {"in": (4, 6), "out": (6, 3)}, inexact=SIX),
    "contracted with a constant": hidden(lambda h: jax.nn.sigmoid(h) @ jnp.ones((6, 2)), read=2, inexact=SIX),
    "position table and norm": Case(
        positions_and_norm, {"table": (7, 6), "scale": (6,), "out": (6, 3)}, (tokens(2, 5, below=7),), {}, {"table": 6}
    ),
    # what stays
    "sorted": hidden(lambda h: jnp.sort(h, axis=1)),
    "largest position": hidden(lambda h: h + jnp.argmax(h, axis=1, keepdims=True).astype(jnp.float32)),
    "pooled over": hidden(pooled_over_units, read=3),
    "at data": hidden(lambda h: h + h[:, jnp.int32(h.sum()) % 6][:, None]),
    "unknown primitive": hidden(lambda h: h + jnp.linalg.cholesky(jnp.eye(6) + h.T @ h)[:2]),
    "gram matrix flattened": Case(gram, {"in": (4, 6), "out": (36, 3)}),
}  # fmt: skip
