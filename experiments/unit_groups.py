"""The channels and neurons of our networks, found by tracing, as groups of axes of their trainable parameters."""

import dataclasses
import functools

import flax.linen as nn

import sparsejax as sj
from experiments import models
from sparsejax.groups import Groups
from sparsejax.units import UnitGraph

PREFIX = "params/"


@functools.cache
def graph(model: nn.Module, image_shape: tuple[int, int, int]) -> UnitGraph:
    """Returns the units of a network on images (h, w, c), as a function of all its variables."""
    return sj.units.trace(model.apply, *models.variable_shapes(model, image_shape))


@functools.cache
def of(model: nn.Module, image_shape: tuple[int, int, int]) -> Groups:
    """Returns the units of a network that can be removed without changing what the others compute.

    Running statistics carry units too, but no gate acts on them and no optimizer moves them: they are left out.

    Args:
      model: the network.
      image_shape: (h, w, c).

    Returns:
      Groups of axes of the model's parameters, for `sparsejax.unit_gates`.

    Raises:
      ValueError: no unit of the network can be removed; the message has the reasons.
    """
    units = graph(model, image_shape)
    if not units.groups:
        raise ValueError(f"no unit of {type(model).__name__} can be removed:\n{units}")
    return {name.removeprefix(PREFIX): _of_parameters(group) for name, group in units.groups.items()}


def _of_parameters(group: sj.groups.Group) -> sj.groups.Group:
    members = [
        dataclasses.replace(member, leaf=member.leaf.removeprefix(PREFIX))
        for member in group.members
        if member.leaf.startswith(PREFIX)
    ]
    return dataclasses.replace(group, members=tuple(members))
