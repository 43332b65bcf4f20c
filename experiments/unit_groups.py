"""Which axes of which leaves carry the channels and neurons of our plain networks, written out by hand."""

import itertools

import chex
import flax.linen as nn

import sparsejax as sj
from experiments import models
from sparsejax.groups import Group, Groups, Member

CHAINS = {
    models.LeNet300100: ["Dense_0", "Dense_1", "Dense_2"],
    models.LeNet5: ["Conv_0", "Conv_1", "Dense_0", "Dense_1"],
}


def chain(params: chex.ArrayTree, layers: list[str]) -> Groups:
    """Returns the units between the layers of a chain, keyed by the name of the layer that computes them.

    Every layer reads all units of the one before, its input axis being the last but one of its kernel. Where that is
    longer, as behind a flattened map of (h, w, c) channels, the units repeat along it.

    Args:
      params: the network's parameters, or their shapes.
      layers: the names of the layers with a kernel, in order; those of the last one are the outputs and stay.

    Returns:
      `{layer: group}` for all layers but the last.

    Raises:
      ValueError: a layer has no kernel, or does not read the one before it.
    """
    leaves = sj.tree.named(params)
    groups = {}
    for layer, reader in itertools.pairwise(layers):
        size, inputs = leaves[f"{layer}/kernel"].shape[-1], leaves[f"{reader}/kernel"].shape[-2]
        if inputs % size:
            raise ValueError(f"{reader!r} has {inputs} inputs, which {layer!r} with its {size} units does not fill")
        repeated = None if inputs == size else tuple(range(size)) * (inputs // size)
        computing = [Member(f"{layer}/kernel", -1)]
        computing += [Member(name, 0) for name in leaves if name == f"{layer}/bias"]
        groups[layer] = Group(size, (*computing, Member(f"{reader}/kernel", -2, repeated, reads=True)))
    return groups


def of(model: nn.Module, params: chex.ArrayTree) -> Groups:
    """Returns the units of a LeNet, whose layers are a chain.

    Args:
      model: LeNet-300-100 or LeNet-5.
      params: its parameters, or their shapes.

    Returns:
      Groups for `sparsejax.unit_gates`.

    Raises:
      ValueError: another network.
    """
    layers = CHAINS.get(type(model))
    if layers is None:
        listed = ", ".join(network.__name__ for network in CHAINS)
        raise ValueError(f"the units of {type(model).__name__} are not written out; those of {listed} are")
    return chain(params, layers)
