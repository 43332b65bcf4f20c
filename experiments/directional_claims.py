"""What `experiments.directional_pruning` finds, and which claims of *Directional Pruning* hold of it."""

from typing import NamedTuple

import numpy as np

from experiments import results
from experiments.geometry import Landscape, Projection, Way
from experiments.results import Claim, Measured, spread


class Found(NamedTuple):
    """Everything that the figures and the claims are made from."""

    descent: Measured
    """SGD."""
    averaged: dict[float, Measured]
    """gRDA, by mu."""
    cut: dict[float, Measured]
    """SGD's networks with the smallest of all their weights set to zero, as many as gRDA's networks have zeros."""
    losses: dict[str, np.ndarray]
    """Loss on the whole training split, by name, (seeds,)."""
    tests: dict[str, np.ndarray]
    """Test accuracy in percent at the snapshots, by name, (snapshots, seeds)."""
    chosen: float
    """The mu whose network is looked at closely."""
    projection: Projection
    """Of gRDA's displacements from SGD, by name."""
    ways: dict[float, Way]
    """From gRDA's network to SGD's, by mu."""
    landscape: Landscape
    """Of the chosen network, SGD's and the curve between them."""
    erk: dict[str, float]
    """Sparsity in percent that the Erdos-Renyi-kernel rule gives each kernel at the sparsity of the chosen ones."""

    @property
    def networks(self) -> dict[str, Measured]:
        """The trained networks, by name, SGD's first."""
        return {network.name: network for network in (self.descent, *self.averaged.values())}


def claims(found: Found, margin: float) -> list[Claim]:
    """Returns the paper's statements beside what was measured; differences of accuracy are paired by seed."""
    descent, network, cut = found.descent, found.averaged[found.chosen], found.cut[found.chosen]
    mus = sorted(found.averaged)
    names = [found.averaged[mu].name for mu in mus]
    gained = network.accuracy - descent.accuracy
    sparsities = [found.averaged[mu].sparsity.mean() for mu in mus]
    risen = [float(np.mean(found.losses[name] - found.losses[descent.name])) for name in names]
    barriers, walls = ([getattr(found.ways[mu], what) for mu in mus] for what in ("barrier", "wall"))
    shares = [found.projection.shares[name] for name in names]
    ratios = [float(np.mean(n.run.history[-1]["norm_ratio"])) for n in found.networks.values()]
    listed = ", ".join(f"{mu:g}" for mu in mus)
    return [
        Claim(
            f"90% of all parameters can go at no loss of accuracy (at most {margin:g} points)",
            "90.48% at +0.04 points (VGG16, mu 0.6)",
            f"mu {found.chosen:g}: {spread(network.sparsity)}% at {gained.mean():+.2f} points "
            f"({spread(network.accuracy)} against {spread(descent.accuracy)})",
            bool(network.sparsity.mean() >= 90 and gained.mean() >= -margin),
        ),
        Claim(
            "cutting as many of the smallest weights of SGD's network costs more (by 1 point or more)",
            "-",
            f"mu {found.chosen:g}: {spread(cut.accuracy)}",
            bool((network.accuracy - cut.accuracy).mean() >= 1),
        ),
        Claim(
            f"the larger mu, the sparser (mu {listed})",
            "24.45, 61.41, 90.48, 97.2% (VGG16)",
            f"{_listed(sparsities, '.2f')}%",
            bool(np.all(np.diff(sparsities) > 0)),
        ),
        Claim(
            f"the training loss is preserved (at most 0.01 more than SGD's; mu {listed})",
            "2e-5, 0, 7e-5, 1.5e-4 more (VGG16)",
            f"{_listed(risen, '.4f')} more than {spread(found.losses[descent.name], 4)}",
            max(risen) <= 0.01,
        ),
        Claim(
            f"both ends lie in one valley (the curve rises at most 0.01 above its higher end; mu {listed})",
            "its maximum is 0.0024, 0.0041, 0.0022, 0.0321 (VGG16)",
            f"{_listed(barriers, '.4f')}; the straight line {_listed(walls, '.4f')}",
            max(barriers) <= 0.01,
        ),
        Claim(
            f"little of the displacement is steep (a share of at most 0.05 in the end; mu {listed})",
            "3.4e-3, 2.7e-3, 2.1e-3 (VGG16, mu 0.51, 0.6, 0.7)",
            f"{_listed([share[-1] for share in shares], '.4f')}; a random one has {found.projection.chance:.4f}",
            max(share[-1] for share in shares) <= 0.05,
        ),
        Claim(
            "that share falls while training",
            "from 2e-3..7e-2 to 1e-3 (WRN-28x10)",
            ", ".join(f"{share[0]:.4f} to {share[-1]:.4f}" for share in shares),
            all(bool(share[-1] < share[0]) for share in shares),
        ),
        Claim(
            "the ratio of the norms l2 and l1 ends above SGD's",
            "6.19e-4 against 3.53e-4 (VGG16)",
            f"{_listed(ratios[1:], '.2e')} against {ratios[0]:.2e}",
            min(ratios[1:]) > ratios[0],
        ),
    ]


def _listed(values: list[float], style: str) -> str:
    return ", ".join(f"{value:{style}}" for value in values)


def describe(subject: str, found: Found, networks: list[Measured], checked: list[Claim]) -> str:
    """Returns the report: one row a network, losses of the curves, and the claims."""
    curves = [
        [f"gRDA {mu:g}", f"{p.curve[0]:.4f}", f"{p.curve[-1]:.4f}", f"{p.curve.max():.4f}", f"{p.segment.max():.4f}"]
        for mu, p in found.ways.items()
    ]
    headers = ["training loss, first seed", "gRDA's end", "SGD's end", "highest on the curve", "on the straight line"]
    return (
        f"# Directional pruning on {subject}\n\n"
        f"{len(found.descent.accuracy)} seeds, mean ± standard deviation; sparsity is that of all trainable "
        f"parameters. Choices were made on the validation split. Nothing was retrained.\n\n"
        f"{results.network_table(networks)}\n\n{results.table(headers, curves)}\n\n"
        f"## Claims of the paper\n\n{results.claims_table(checked)}\n"
    )
