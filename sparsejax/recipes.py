"""Published pruning methods by name: a score, a competition and a clock each, around an optimizer of yours.

Every recipe but `wanda`, which needs no training, returns an optax transformation, as `sparsejax.sparsify` does, whose
state holds the mask. Write your own from the same parts; none of these is longer than six lines.

`target` is the sparsity of every float leaf of rank >= 2; or a tree of sparsities, as from `sparsejax.allocate`; or a
function `params -> tree`. Steps are counted from 0.
"""

from collections.abc import Mapping
from functools import partial

import jax
import optax

from sparsejax import allocate, schedules, scores, select
from sparsejax._numbers import check_share
from sparsejax._types import Mask, Params, Where
from sparsejax.constraining import sparsify
from sparsejax.rules import Target, drop_and_grow, prune_to, shares_of

__all__ = [
    "balanced_blocks",
    "block_magnitude",
    "channel_magnitude",
    "global_magnitude",
    "gradual_magnitude",
    "n_of_m",
    "one_shot_magnitude",
    "random_pruning",
    "rigl",
    "set_",
    "snip",
    "wanda",
]

Optimizer = optax.GradientTransformation


def one_shot_magnitude(inner: Optimizer, target: Target, step: int = 0) -> Optimizer:
    """Returns pruning by magnitude, leaf by leaf, at one step.

    Args:
      inner: any optimizer.
      target: the sparsity to reach, see the head of the module.
      step: the step at which it is pruned.

    Returns:
      A transformation, see `sparsejax.sparsify`.

    >>> tx, params = one_shot_magnitude(optax.sgd(0.1), 0.75, step=100), {"kernel": jax.numpy.ones((4, 4))}
    >>> tx.init(params).mask["kernel"].shape
    (4, 4)
    """
    return sparsify(inner, prune_to(target), schedules.at(step))


def gradual_magnitude(
    inner: Optimizer,
    target: Target,
    start: int,
    end: int,
    period: int = 100,
    grain: select.Grain = select.weight,
    scope: select.Scope = select.leaf,
) -> Optimizer:
    """Returns pruning by magnitude along a cubic ramp, of single weights and leaf by leaf unless told otherwise.

    Source: Zhu, Gupta, To Prune, or Not to Prune, 2017.

    Args:
      inner: any optimizer.
      target: the sparsity to reach, see the head of the module.
      start: the first step at which the mask is looked at, at which nothing is pruned yet.
      end: the step at which the target is reached.
      period: steps between two looks.
      grain: what lives or dies as one, by its mean magnitude; see `sparsejax.select`.
      scope: who competes with whom.

    Returns:
      A transformation, see `sparsejax.sparsify`.

    >>> tx, params = gradual_magnitude(optax.adam(1e-3), 0.75, 0, 1000), {"kernel": jax.numpy.ones((4, 4))}
    >>> tx.init(params).mask["kernel"].shape
    (4, 4)
    """
    rule = prune_to(target, ramp=schedules.cubic(start, end), grain=grain, scope=scope)
    return sparsify(inner, rule, schedules.every(period, start, end))


def global_magnitude(inner: Optimizer, target: Target, start: int, end: int, period: int = 100) -> Optimizer:
    """Returns pruning by magnitude along a cubic ramp, all leaves in one competition.

    A leaf of small weights may die; `sparsejax.scores.lamp` instead of the magnitude avoids that.

    Args:
      inner: any optimizer.
      target: the sparsity to reach, see the head of the module.
      start: the first step at which the mask is looked at, at which nothing is pruned yet.
      end: the step at which the target is reached.
      period: steps between two looks.

    Returns:
      A transformation, see `sparsejax.sparsify`.

    >>> tx, params = global_magnitude(optax.adam(1e-3), 0.75, 0, 1000), {"kernel": jax.numpy.ones((4, 4))}
    >>> tx.init(params).mask["kernel"].shape
    (4, 4)
    """
    return gradual_magnitude(inner, target, start, end, period, scope=select.model)


def random_pruning(inner: Optimizer, target: Target, step: int = 0, seed: int = 0) -> Optimizer:
    """Returns pruning at random, leaf by leaf, at one step: what every other method must beat.

    Args:
      inner: any optimizer.
      target: the sparsity to reach, see the head of the module.
      step: the step at which it is pruned.
      seed: of the random numbers.

    Returns:
      A transformation, see `sparsejax.sparsify`.

    >>> tx, params = random_pruning(optax.sgd(0.1), 0.75), {"kernel": jax.numpy.ones((4, 4))}
    >>> tx.init(params).mask["kernel"].shape
    (4, 4)
    """
    return sparsify(inner, prune_to(target, scores.random), schedules.at(step), seed)


def snip(inner: Optimizer, target: Target, step: int = 0) -> Optimizer:
    """Returns pruning by the saliency of the first batch, all leaves in one competition.

    Source: Lee, Ajanthan, Torr, SNIP: Single-shot Network Pruning Based on Connection Sensitivity, 2019.

    Args:
      inner: any optimizer.
      target: the sparsity to reach, see the head of the module.
      step: the step at which it is pruned.

    Returns:
      A transformation, see `sparsejax.sparsify`.

    >>> tx, params = snip(optax.sgd(0.1), 0.75), {"kernel": jax.numpy.ones((4, 4))}
    >>> tx.init(params).mask["kernel"].shape
    (4, 4)
    """
    return sparsify(inner, prune_to(target, scores.saliency, scope=select.model), schedules.at(step))


def set_(
    inner: Optimizer,
    target: Target,
    end: int | None = None,
    period: int = 100,
    fraction: float = 0.3,
    seed: int = 0,
) -> Optimizer:
    """Returns sparse evolutionary training: sparse from the start, the smallest weights exchanged for random ones.

    Source: Mocanu et al., Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity, 2018;
    there with `target=partial(allocate.erdos_renyi, sparsity=...)`.

    Args:
      inner: any optimizer.
      target: the sparsity to reach, see the head of the module.
      end: the step of the last exchange; `None` goes on for ever.
      period: steps between two exchanges; the first is after that many.
      fraction: the share of the living that is exchanged each time.
      seed: of the random numbers.

    Returns:
      A transformation, see `sparsejax.sparsify`.

    >>> tx, params = set_(optax.sgd(0.1), 0.75), {"kernel": jax.numpy.ones((4, 4))}
    >>> tx.init(params).mask["kernel"].shape
    (4, 4)
    """
    rule = drop_and_grow(target, grow=scores.random, fraction=fraction)
    return sparsify(inner, rule, schedules.every(period, period, end), seed)


def rigl(
    inner: Optimizer, target: Target, end: int, period: int = 100, fraction: float = 0.3, seed: int = 0
) -> Optimizer:
    """Returns RigL: sparse from the start, the smallest weights exchanged for those with the largest gradients.

    Source: Evci, Gale, Menick, Castro, Elsen, Rigging the Lottery, 2020; there with
    `target=partial(allocate.erdos_renyi, sparsity=...)`.

    Args:
      inner: any optimizer.
      target: the sparsity to reach, see the head of the module.
      end: the step of the last exchange, three quarters of the training in the paper.
      period: steps between two exchanges; the first is after that many.
      fraction: the share of the living that is exchanged, at first; it falls to 0 along a cosine.
      seed: of the random numbers.

    Returns:
      A transformation, see `sparsejax.sparsify`.

    Raises:
      ValueError: `end` is before `period`, or `fraction` is out of its range.

    >>> tx, params = rigl(optax.sgd(0.1), 0.75, end=7500), {"kernel": jax.numpy.ones((4, 4))}
    >>> tx.init(params).mask["kernel"].shape
    (4, 4)
    """
    check_share("fraction", fraction)
    when, decay = schedules.every(period, period, end), optax.cosine_decay_schedule(fraction, end)
    rule = drop_and_grow(target, grow=scores.gradient, fraction=lambda step: decay(step.astype("float32")))
    return sparsify(inner, rule, when, seed)


def n_of_m(
    inner: Optimizer,
    n: int,
    m: int,
    start: int,
    end: int,
    period: int = 100,
    where: Where = None,
    axis: int = -2,
) -> Optimizer:
    """Returns N:M sparsity by magnitude, along a cubic ramp.

    Source: Mishra et al., Accelerating Sparse Deep Neural Networks, 2021 (2:4).

    Args:
      inner: any optimizer.
      n: how many survive of each group.
      m: how many weights are in a group, neighbours along `axis`.
      start: the first step at which the mask is looked at, at which nothing is pruned yet.
      end: the step at which the target is reached.
      period: steps between two looks.
      where: which leaves, as for `sparsejax.tree.select`; `m` must divide them along the axis.
      axis: along which a product sums: -2 for Flax's kernels.

    Returns:
      A transformation, see `sparsejax.sparsify`.

    Raises:
      ValueError: not `0 < n < m`.

    >>> tx, params = n_of_m(optax.sgd(0.1), 2, 4, 0, 1000), {"kernel": jax.numpy.ones((4, 4))}
    >>> tx.init(params).mask["kernel"].shape
    (4, 4)
    """
    if not 0 < n < m:
        raise ValueError(f"n={n} must be at least 1 and below m={m}: as many of every m survive; 2:4 is n=2, m=4")
    target = partial(allocate.uniform, sparsity=1 - n / m, where=where)
    return gradual_magnitude(inner, target, start, end, period, scope=select.groups_of(m, axis))


def block_magnitude(
    inner: Optimizer, target: Target, size: tuple[int, ...], start: int, end: int, period: int = 100
) -> Optimizer:
    """Returns pruning of whole blocks by the mean magnitude of their weights, leaf by leaf, along a cubic ramp.

    Args:
      inner: any optimizer.
      target: the sparsity to reach, see the head of the module.
      size: the lengths of a block along the last axes, which they must divide.
      start: the first step at which the mask is looked at, at which nothing is pruned yet.
      end: the step at which the target is reached.
      period: steps between two looks.

    Returns:
      A transformation, see `sparsejax.sparsify`.

    Raises:
      ValueError: `size` is no tuple of lengths.

    >>> tx, params = block_magnitude(optax.sgd(0.1), 0.75, (2, 2), 0, 1000), {"kernel": jax.numpy.ones((4, 4))}
    >>> tx.init(params).mask["kernel"].shape
    (4, 4)
    """
    return gradual_magnitude(inner, target, start, end, period, grain=_blocks(size))


def balanced_blocks(
    inner: Optimizer, target: Target, size: tuple[int, ...], start: int, end: int, period: int = 100
) -> Optimizer:
    """Returns pruning of whole blocks, as many in every block column, by mean magnitude along a cubic ramp.

    What is left is what `sparsejax.block_sparse` stores without waste: each output has the inputs of equally many
    blocks. Blocks of few inputs and many outputs, (8, 128) say, are fast and fine.

    Args:
      inner: any optimizer.
      target: the sparsity to reach, see the head of the module.
      size: the lengths of a block along the last axes, which they must divide.
      start: the first step at which the mask is looked at, at which nothing is pruned yet.
      end: the step at which the target is reached.
      period: steps between two looks.

    Returns:
      A transformation, see `sparsejax.sparsify`.

    Raises:
      ValueError: `size` is no tuple of lengths.

    >>> tx, params = balanced_blocks(optax.sgd(0.1), 0.75, (1, 2), 0, 1000), {"kernel": jax.numpy.ones((4, 4))}
    >>> tx.init(params).mask["kernel"].shape
    (4, 4)
    """
    return gradual_magnitude(inner, target, start, end, period, _blocks(size), select.per(-1))


def channel_magnitude(
    inner: Optimizer, target: Target, start: int, end: int, period: int = 100, axis: int = -1
) -> Optimizer:
    """Returns pruning of whole channels by the mean magnitude of their weights, leaf by leaf, along a cubic ramp.

    Only the kernel's weights become zero: a channel with a bias still has an output.

    Source: Li, Kadav, Durdanovic, Samet, Graf, Pruning Filters for Efficient ConvNets, 2017 (for the score).

    Args:
      inner: any optimizer.
      target: the sparsity to reach, see the head of the module.
      start: the first step at which the mask is looked at, at which nothing is pruned yet.
      end: the step at which the target is reached.
      period: steps between two looks.
      axis: the axis of the channels, -1 for the outputs of Flax's kernels.

    Returns:
      A transformation, see `sparsejax.sparsify`.

    >>> tx, params = channel_magnitude(optax.sgd(0.1), 0.75, 0, 1000), {"kernel": jax.numpy.ones((4, 4))}
    >>> tx.init(params).mask["kernel"].shape
    (1, 4)
    """
    return gradual_magnitude(inner, target, start, end, period, grain=select.channel(axis))


def wanda(params: Params, input_norms: Mapping[str, jax.Array], target: Target) -> Mask:
    """Returns the mask of a trained network by weight times input norm, each output's inputs in a competition.

    Source: Sun, Liu, Bair, Kolter, A Simple and Effective Pruning Approach for Large Language Models, 2024.

    Args:
      params: the parameters, whose kernels have their outputs along the last axis.
      input_norms: `{leaf name: l2 norm of each input over the calibration data}`, see `sparsejax.scores.wanda`.
      target: the sparsity, see the head of the module.

    Returns:
      A mask; `sparsejax.apply(mask, params)` prunes, and `sparsejax.rules.fixed(mask)` keeps it while fine-tuning.

    Raises:
      ValueError: as for the score, or as `sparsejax.select.leafwise`.

    >>> params = {"kernel": jax.numpy.array([[1.0, -3.0], [2.0, 1.0]])}
    >>> wanda(params, {"kernel": jax.numpy.array([4.0, 1.0])}, 0.5)["kernel"].tolist()
    [[True, True], [False, False]]
    """
    shares = shares_of(target, params)
    return select.leafwise(scores.wanda(params, input_norms=input_norms), shares, scope=select.per(-1))


def _blocks(size: tuple[int, ...]) -> select.Grain:
    if not isinstance(size, tuple | list):
        raise ValueError(f"size={size!r} must be a tuple, the lengths of a block along the last axes, such as (4, 4)")
    return select.block(*size)
