"""The best of many scores without a sort: thresholds found by counting.

The number of scores >= t falls as t grows, so the threshold that a wanted number of scores reaches can be searched for.
Scores are compared as integers that order as they do (their *keys*). A bracket `[low, high)` of keys, with the counts
at its ends, is narrowed by counting at four trial thresholds in one read of the scores, until a count is the wanted
one, or `low + 1 == high` and the scores between are equal. Then the same search over positions tells them apart.

A read leaves a few integers, so that a sharded array is never gathered, and nothing is copied unless the scores of a
contest are far apart in memory. The counts are exact, and so is the result, whatever the values are.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsejax._types import wide_dtype

_SMALL = 16  # competitors that are ranked by comparing all pairs, which reads the scores once and needs no scratch
_EVEN_PASSES = 2  # passes with evenly spaced trials; only then are the scores of the bracket spread evenly enough


class _Contests(NamedTuple):
    """Who competes with whom: leaves, whose entries compete along `axes`, and numbers that there are of each contest.

    `seats` are the first positions of the leaves in their contests, `size` the positions of the largest. `reach(x, i)`
    lets leaf `i` see the numbers `x` of its contests; `gather(parts, op)` joins what all leaves know of each contest.
    """

    leaves: Sequence[jax.Array]
    axes: Sequence[tuple[int, ...]]
    seats: Sequence[jax.Array]
    size: int
    reach: Callable[[jax.Array, int], jax.Array]
    gather: Callable[[Sequence[jax.Array], Callable], jax.Array]


class _Bracket(NamedTuple):
    """Keys on both sides of the wanted threshold and how many scores reach them, one of each a contest."""

    low: jax.Array
    high: jax.Array
    at_low: jax.Array
    at_high: jax.Array


# Both searches are traced once for every shape, whatever looks for a mask and however often: tracing them takes longer
# than compiling them.
@partial(jax.jit, static_argnames="contests")
def best_of_each(leaves: Sequence[jax.Array], kept: jax.Array, contests: tuple[int, ...]) -> list[jax.Array]:
    """Returns which scores are among the best of their contest; a leaf is in one contest, with others or alone.

    Of equal scores, those of the earlier leaf and then of the lower index (row-major) survive. NaN never does.

    Args:
      leaves: scores, float arrays; fewer than 2^31 a contest.
      kept: how many survive, int32 of shape `(number of contests,)`.
      contests: the contest of each leaf, as an index into `kept`; every contest has a leaf.

    Returns:
      A bool array like each leaf.

    >>> [mask.tolist() for mask in best_of_each([jnp.array([3.0, 1.0]), jnp.array([2.0])], jnp.array([2]), (0, 0))]
    [[True, False], [True]]
    """
    seats, taken = [], [0] * kept.size
    for leaf, contest in zip(leaves, contests, strict=True):
        seats.append(jnp.int32(taken[contest]))
        taken[contest] += leaf.size
    _check_size(max(taken))

    def gather(parts, op):
        own = [[part for part, own in zip(parts, contests, strict=True) if own == c] for c in range(kept.size)]
        return jnp.stack([reduce(op, some) for some in own])

    axes = [tuple(range(leaf.ndim)) for leaf in leaves]
    return _best(_Contests(leaves, axes, seats, max(taken), lambda x, i: x[contests[i]], gather), kept)


@partial(jax.jit, static_argnames="axes")
def best_along(scores: jax.Array, kept: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns which scores are among the best along some axes; every place along the others is its own contest.

    Of equal scores those of the lower index survive. NaN never does.

    Args:
      scores: a float array, fewer than 2^31 entries a contest.
      kept: how many survive of each contest, an int32 scalar.
      axes: the axes along which scores compete, not negative.

    Returns:
      A bool array like `scores`.

    >>> best_along(jnp.array([[1.0, 3.0], [2.0, 2.0]]), jnp.int32(1), (1,)).tolist()
    [[False, True], [True, False]]
    """
    whole = jax.typeof(scores).sharding.spec[axes[0]] is None  # on one device: another's part cannot be sliced
    if len(axes) == 1 and scores.shape[axes[0]] <= _SMALL and whole:
        return (scores == scores) & (_ranks(scores, axes[0]) < kept)
    _check_size(math.prod(scores.shape[axis] for axis in axes))
    if scores.ndim - 1 not in axes:
        # A CPU reads a matrix in the order of memory to reduce its rows, and by columns to reduce those, which takes
        # over ten times as long. One transposed copy serves all passes.
        order = (*(axis for axis in range(scores.ndim) if axis not in axes), *axes)
        along = tuple(range(scores.ndim - len(axes), scores.ndim))
        best = best_along(jax.lax.transpose(scores, order), kept, along)
        return jax.lax.transpose(best, tuple(order.index(axis) for axis in range(scores.ndim)))
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(scores.shape))
    contests = _Contests(
        [scores], [axes], [jnp.int32(0)], math.prod(scores.shape[axis] for axis in axes),
        reach=lambda x, _: x, gather=lambda parts, _: jnp.expand_dims(parts[0], axes),
    )  # fmt: skip
    return _best(contests, jnp.broadcast_to(kept, shape))[0]


def _check_size(competitors: int) -> None:
    if competitors >= 2**31:
        raise ValueError(f"{competitors:,} scores compete, which int32 does not count; let each leaf compete by itself")


def _best(contests: _Contests, kept: jax.Array) -> list[jax.Array]:
    """Finds the threshold of the scores, then that of the positions of those that are equal, and applies both."""
    start, wanted = _extent(contests, kept)
    found = _narrow(partial(_count, contests, _score_reaches), start, wanted, _value, _key)

    def is_tied(contests: _Contests, leaf: int) -> jax.Array:
        return _score_reaches(contests, leaf, found.low) & ~_score_reaches(contests, leaf, found.high)

    def place_reaches(contests: _Contests, leaf: int, trial: jax.Array) -> jax.Array:
        return is_tied(contests, leaf) & (_places(contests, leaf) >= contests.reach(trial, leaf))

    # Where the scores have decided there is nothing left to search, and this does not read them again.
    decided = _is_exact(found, wanted)
    ties = jnp.where(decided, 0, found.at_low - found.at_high)
    missing = jnp.where(decided, 0, wanted - found.at_high)
    everywhere = _Bracket(jnp.full_like(ties, -contests.size), jnp.zeros_like(ties), ties, jnp.zeros_like(ties))
    spots = _narrow(partial(_count, contests, place_reaches), everywhere, missing, _float, _integer)
    last = jnp.where(spots.at_low == missing, spots.low, spots.high)
    last = jnp.where(found.at_low == wanted, -contests.size, jnp.where(found.at_high == wanted, 0, last))
    contests, last = _read_again(contests, last)
    leaves = range(len(contests.leaves))
    return [_score_reaches(contests, i, found.high) | place_reaches(contests, i, last) for i in leaves]


def _narrow(count: Callable, start: _Bracket, wanted: jax.Array, value: Callable, key: Callable) -> _Bracket:
    """Narrows the brackets until every one is decided; `count(trials)` counts at all trials in one read.

    Trials are interpolated between the values of keys: `value(key)` is a float, and `key(value)` the key nearest to it.
    """

    def searching(state):
        return jnp.any(~(_is_exact(state[1], wanted) | (state[1].high - state[1].low == 1)))

    def narrow(state):
        step, (low, high, at_low, at_high) = state
        trials = _trials(step, state[1], wanted, value, key)
        for trial, reached in zip(trials, count(trials), strict=True):
            enough = reached >= wanted
            up, down = enough & (trial > low), ~enough & (trial < high)
            low, at_low = jnp.where(up, trial, low), jnp.where(up, reached, at_low)
            high, at_high = jnp.where(down, trial, high), jnp.where(down, reached, at_high)
        return step + 1, _Bracket(low, high, at_low, at_high)

    return jax.lax.while_loop(searching, narrow, (jnp.int32(0), start))[1]


def _trials(step: jax.Array, bracket: _Bracket, wanted: jax.Array, value: Callable, key: Callable) -> list[jax.Array]:
    """Returns four keys inside the bracket: three about where the wanted rank should be, and the middle of the keys.

    Between evenly spread scores the rank is off by about the square root of their number. The middle halves the
    bracket whatever the scores are, so that as many passes as a key has bits suffice.
    """
    low, high, at_low, at_high = bracket
    inside = (at_low - at_high).astype(jnp.float32)
    rank, off = (at_low - wanted).astype(jnp.float32) / inside, jax.lax.rsqrt(inside)
    bottom, top = value(low), value(high)
    trials = [(low >> 1) + (high >> 1) + (low & high & 1)]  # their sum may overflow
    for turn in (-1, 0, 1):
        share = jnp.where(step < _EVEN_PASSES, 0.5 + 0.25 * turn, rank + off * turn)
        trials.append(key(bottom + share.astype(bottom.dtype) * (top - bottom)))
    return [jnp.minimum(jnp.maximum(trial, low + 1), high - 1) for trial in trials]


def _is_exact(bracket: _Bracket, wanted: jax.Array) -> jax.Array:
    return (bracket.at_low == wanted) | (bracket.at_high == wanted)


def _extent(contests: _Contests, kept: jax.Array) -> tuple[_Bracket, jax.Array]:
    """Returns the bracket of all scores that are numbers, and how many of them survive."""
    join = (jnp.add, jnp.minimum, jnp.maximum)
    parts = []
    for leaf, axes in enumerate(contests.axes):
        scores = _wide(contests, leaf)
        number, key = scores == scores, _key(scores)  # as integers: a CPU takes minima of floats one at a time
        limits = jnp.iinfo(key.dtype)
        ends = jnp.where(number, key, limits.max), jnp.where(number, key, limits.min)
        parts.append(_reduce((number.astype(jnp.int32), *ends), (0, limits.max, limits.min), join, axes))
    numbers, least, most = map(contests.gather, zip(*parts, strict=True), join)
    # Devices may take subnormal numbers for 0; the next number that all of them know to be larger is a normal one.
    normal = _key(jnp.asarray(jnp.finfo(jnp.float32).tiny, _value(most).dtype))
    above = jnp.where(jnp.abs(most) < normal, normal, most + 1)
    return _Bracket(least, above, numbers, jnp.zeros_like(numbers)), jnp.minimum(kept, numbers)


def _count(contests: _Contests, reaches: Callable, trials: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns how many entries of each contest reach each trial."""
    contests, trials = _read_again(contests, trials)
    parts = []
    for leaf, axes in enumerate(contests.axes):
        reached = [reaches(contests, leaf, trial).astype(jnp.int32) for trial in trials]
        parts.append(_reduce(reached, (0,) * len(trials), (jnp.add,) * len(trials), axes))
    return [contests.gather(part, jnp.add) for part in zip(*parts, strict=True)]


def _read_again(contests: _Contests, after):
    """Returns both arguments, and makes what is computed from the leaves wait for `after`."""
    # Or XLA would take what does not depend on the trials for the same in every pass, and keep it in whole arrays.
    leaves, seats, after = jax.lax.optimization_barrier((contests.leaves, contests.seats, after))
    return contests._replace(leaves=leaves, seats=seats), after


def _reduce(arrays: Sequence[jax.Array], start: Sequence[float], join: Sequence[Callable], axes: tuple[int, ...]):
    """Reduces several arrays, each by its own operation, in one read of what they are computed from."""
    # XLA fuses a reduction of several operands with its inputs; on a CPU, one of a single operand it does not.
    neutral = tuple(jnp.asarray(value, array.dtype) for value, array in zip(start, arrays, strict=True))

    def joined(a, b):
        return tuple(op(x, y) for op, x, y in zip(join, a, b, strict=True))

    return jax.lax.reduce(tuple(arrays), neutral, joined, axes)


def _score_reaches(contests: _Contests, leaf: int, trial: jax.Array) -> jax.Array:
    return _wide(contests, leaf) >= contests.reach(_value(trial), leaf)  # never true of NaN


def _wide(contests: _Contests, leaf: int) -> jax.Array:
    scores = contests.leaves[leaf]
    return scores.astype(wide_dtype(*contests.leaves))


def _places(contests: _Contests, leaf: int) -> jax.Array:
    """Returns -1, -2, ... for the first, second, ... position of a contest, row-major."""
    shape, place, stride = contests.leaves[leaf].shape, -1 - contests.seats[leaf], 1
    for axis in reversed(contests.axes[leaf]):
        place = place - stride * jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        stride *= shape[axis]
    return place


def _key(value: jax.Array) -> jax.Array:
    """Returns the integers that order as floats do, one for each pattern of bits; 0.0 and -0.0 are equal."""
    return _flip(jax.lax.bitcast_convert_type(value, jnp.int64 if value.dtype == jnp.float64 else jnp.int32))


def _value(key: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(_flip(key), jnp.float64 if key.dtype == jnp.int64 else jnp.float32)


def _flip(bits: jax.Array) -> jax.Array:
    """Makes two's complement of sign and magnitude, and the reverse."""
    return jnp.where(bits < 0, jnp.iinfo(bits.dtype).min - bits, bits)


def _float(place: jax.Array) -> jax.Array:
    return place.astype(jnp.float32)


def _integer(value: jax.Array) -> jax.Array:
    return value.astype(jnp.int32)


def _ranks(scores: jax.Array, axis: int) -> jax.Array:
    """Returns how many along an axis come before each: a larger one, an equal one of a lower index, and any if NaN."""
    place, ranks = jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis), jnp.zeros(scores.shape, jnp.int32)
    for other in range(scores.shape[axis]):
        rival = jax.lax.slice_in_dim(scores, other, other + 1, axis=axis)
        ranks = ranks + ((rival > scores) | ((rival == scores) & (other < place))).astype(jnp.int32)
    return ranks
