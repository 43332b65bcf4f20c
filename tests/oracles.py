"""What the library should compute, written again in NumPy and plain loops from the papers. Shares no code with it."""

import math

import numpy as np

erf = np.vectorize(math.erf)


def erfinv(share, halvings=200):
    """Inverse of `math.erf` on [0, 1), by bisection in float64."""
    low, high = 0.0, 6.0
    for _ in range(halvings):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if math.erf(middle) < share else (low, middle)
    return 0.5 * (low + high)


def hard(w, threshold):
    """Keeps an entry iff its magnitude exceeds the threshold."""
    out = np.zeros_like(w)
    for i in np.ndindex(w.shape):
        if abs(w[i]) > threshold:
            out[i] = w[i]
    return out


def soft(w, threshold):
    """The minimiser of 1/2 (x - w)^2 + threshold |x|, found by comparing its candidates for every entry."""
    out = np.zeros_like(w)
    for i in np.ndindex(w.shape):
        candidates = [0.0]
        candidates += [x for x in (w[i] - threshold,) if x > 0]
        candidates += [x for x in (w[i] + threshold,) if x < 0]
        out[i] = min(candidates, key=lambda x: 0.5 * (x - w[i]) ** 2 + threshold * abs(x))
    return out


def centred_statistics(w):
    """Mean, and standard deviation with n - 1, in float64 loops."""
    flat = [float(x) for x in np.ravel(w)]
    mean = sum(flat) / len(flat)
    return mean, math.sqrt(sum((x - mean) ** 2 for x in flat) / (len(flat) - 1))


def shrink(w, bound, center=True):
    """Pruned layer and its absolute threshold, in float64."""
    w = np.asarray(w, np.float64)
    mean, sigma = centred_statistics(w)
    moved = w - mean if center else w
    return hard(moved, bound * sigma), bound * sigma


def bound_gradient(w, bound, g, center=True):
    """Eq. 18 as a loop: the sum over weights of (out - w) / b times the incoming gradient."""
    w = np.asarray(w, np.float64)
    out, _ = shrink(w, bound, center)
    moved = w - centred_statistics(w)[0] if center else w
    return sum((out[i] - moved[i]) / bound * float(g[i]) for i in np.ndindex(w.shape))


def share_below(w, bound):
    """Eq. 2's share of weights whose magnitude is below a bound."""
    return sum(abs(float(x)) < bound for x in np.ravel(w)) / np.size(w)


def nearest_share(w, sparsity):
    """The attainable share of Eq. 2 nearest to the wanted one: a bound falls between two magnitudes or outside all."""
    ordered = sorted(abs(float(x)) for x in np.ravel(w))
    n = len(ordered)
    gaps = [i for i in range(1, n) if ordered[i - 1] < ordered[i]]
    return min((i / n for i in [0, *gaps, n]), key=lambda share: abs(share - sparsity))


def densities(bounds):
    """1 - erf(b / sqrt 2) in float64."""
    return [1 - math.erf(b / math.sqrt(2)) for b in bounds]


def pack(mask):
    """Bits of a bool array in order, highest bit first, as a list of bytes."""
    flat = [bool(x) for x in np.ravel(mask)]
    flat += [False] * (-len(flat) % 8)
    return [sum(bit << (7 - i) for i, bit in enumerate(flat[j : j + 8])) for j in range(0, len(flat), 8)]


def zhu_gupta(step, start, end, initial, final):
    """Eq. 1 of Zhu and Gupta, clipped to its ends."""
    if step <= start:
        return initial
    if step >= end:
        return final
    return final + (initial - final) * (1 - (step - start) / (end - start)) ** 3
