"""The report of `experiments.tradeoff`: accuracy by method and compression, claims, and what everything costs."""

from collections.abc import Sequence

import numpy as np

from experiments import latency, results
from experiments.latency import Times
from experiments.one_shot import CUT
from experiments.results import Claim, Measured, spread
from experiments.tradeoff_claims import EXCESS, Found, counts, errors


def describe(dataset: str, network: str, found: Found, checked: list[Claim], times: list[Times]) -> str:
    """Returns the report as Markdown."""
    others = [found.start, found.dense, *found.groups, *found.averaged]
    return (
        f"# Accuracy against compression: {network} on {dataset}\n\n{len(found.dense.accuracy)} seeds, mean ± standard "
        f'deviation. Every network saw the same number of epochs in all, but for "dense" and those "as cut", and has '
        f"the same recipe; the dense network of as many epochs has {spread(found.dense.accuracy)}%. Compression is all "
        f"parameters of the dense network to the non-zeros that are left, biases included. The test split was used "
        f"once, after training. Networks in brackets do not count: they kept over {EXCESS - 1:.0%} more parameters "
        f"than asked, or a loss was not finite.\n\n"
        f"{accuracies(found)}\n\nThe others choose their size themselves, or have none:\n\n"
        f"{results.network_table(others)}\n\n## How often a method is the best\n\nOf {len(found.compressions)} "
        f"compressions, and the factor of its test error to the best one's, as the median:\n\n{wins(found)}\n\n"
        f"## Claims\n\nOne method is ahead of another if its mean gain over the compressions at which it counts is "
        f"above 0 by more than two standard errors over seeds.\n\n{results.claims_table(checked)}\n\n"
        f"## Time\n\nA forward pass of one network, the median over {latency.ROUNDS} interleaved rounds. Zeros that "
        f"stay in place save nothing.\n\n{latency.describe(times)}\n\n"
        f"## Asked and reached\n\n{reached(found)}\n"
    )


def accuracies(found: Found) -> str:
    """Returns test accuracies, one row a method, one column a compression."""
    headers = ["test accuracy %", *(f"{compression:g}x" for compression in found.compressions)]
    rows = [[name, *(_cell(row[c], c) for c in found.compressions)] for name, row in found.rows.items()]
    return results.table(headers, rows)


def wins(found: Found) -> str:
    """Returns one row a method: at how many compressions it has the least error, and how far it is from that."""
    measured = errors(found)
    table = np.array([list(row.values()) for row in measured.values()])
    factors = _factors(table)
    order = np.argsort(np.median(factors, 1), kind="stable")
    names = list(measured)
    rows = [
        [names[i], int((factors[i] == 1).sum()), f"{np.median(factors[i]):.2f}", int(np.isinf(table[i]).sum())]
        for i in order
    ]
    return results.table(["method", "best at", "error / best", "does not count at"], rows)


def _factors(errors: np.ndarray) -> np.ndarray:
    """Returns errors, (methods, compressions), to the least of each compression; infinite where they do not count."""
    least = errors.min(0)
    compared = np.isfinite(least) & (least > 0)
    factors = np.where(np.isfinite(errors) & (errors == least), 1.0, np.inf)
    factors[:, compared] = errors[:, compared] / least[compared]
    return factors


def reached(found: Found) -> str:
    """Returns one row a network: what was asked, what was reached, what it cost."""
    headers = ["method", "asked", "compression", "non-zeros", "sparsity of pruned layers %"]
    headers += ["multiply-adds, dense / left", "validation %", "training s"]
    rows = [_counted(found, network, f"{asked:g}x") for row in found.rows.values() for asked, network in row.items()]
    rows += [_counted(found, network, "-") for network in found.groups + found.averaged]
    return results.table(headers, rows)


def _counted(found: Found, network: Measured, asked: str) -> Sequence[str]:
    return [
        network.name,
        asked,
        f"{network.compression.mean():.2f}x",
        f"{network.nonzeros.mean():,.0f}",
        spread(network.sparsity),
        f"{found.fewer_multiply_adds(network).mean():.2f}x",
        "-" if network.name.endswith(CUT) else f"{network.validation:.2f}",  # of the run, before the cut
        f"{network.run.seconds:.1f}",
    ]


def _cell(network: Measured, asked: float) -> str:
    accuracy = spread(network.accuracy)
    return accuracy if counts(network, asked) else f"({accuracy} at {network.compression.mean():.1f}x)"
