"""What the library should compute, written again in NumPy and plain loops from the papers. Shares no code with it."""

import math
from fractions import Fraction

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


def fill(costs, ratios, floors, wanted, halvings=200):
    """Densities clip(e r, floor, 1) whose costs add up to what is wanted, e by bisection in float64."""

    def densities(e):
        return [min(1.0, max(floor, e * ratio)) for ratio, floor in zip(ratios, floors, strict=True)]

    low, high = 0.0, 1 / min(ratios)
    for _ in range(halvings):
        middle = 0.5 * (low + high)
        spent = math.fsum(cost * density for cost, density in zip(costs, densities(middle), strict=True))
        low, high = (middle, high) if spent < wanted else (low, middle)
    return densities(high)


def erdos_renyi_kernel(shapes, sparsity):
    """The iteration of the RigL authors' code: make dense, for good, each layer whose density exceeds one."""
    dense = set()
    while True:
        free = [name for name in shapes if name not in dense]
        kept = sum(math.prod(shapes[name]) for name in free) * (1 - sparsity)
        kept -= sum(math.prod(shapes[name]) * sparsity for name in dense)
        e = kept / sum(sum(shapes[name]) for name in free)
        densities = {name: e * sum(shapes[name]) / math.prod(shapes[name]) for name in free}
        over = [name for name in free if densities[name] > 1]
        if not over:
            return {name: 0.0 if name in dense else 1 - densities[name] for name in shapes}
        dense.update(over)


def kept(sparsity, n):
    """round((1 - s) n), a half to even, and at least one while s < 1; s as the decimal it was written as."""
    share = Fraction(str(sparsity)) if isinstance(sparsity, float) else Fraction(sparsity)
    return n - n * (share == 1) if share == 0 else 0 if share == 1 else max(1, round((1 - share) * n))


def best(scores, count):
    """The mask of the largest scores by a stable sort: ties to the lower index, NaN never."""
    flat = np.asarray(scores, np.float64).ravel()
    numbers = [i for i in range(flat.size) if not np.isnan(flat[i])]
    numbers.sort(key=lambda i: -flat[i])  # stable
    mask = np.zeros(flat.size, bool)
    mask[numbers[:count]] = True
    return mask.reshape(np.shape(scores))


def best_within(scores, group, sparsity):
    """`best` within the entries of each group; `group` has the shape of the scores."""
    scores, mask = np.asarray(scores), np.zeros(np.shape(scores), bool)
    for one in np.unique(group):
        inside = group == one
        mask[inside] = best(scores[inside], kept(sparsity, int(inside.sum())))
    return mask


def best_grains(scores, grain, sparsity):
    """The mask of the best grains by the mean of their scores; `grain` numbers them in order."""
    scores = np.asarray(scores, np.float64)
    names = np.unique(grain)
    alive = best([scores[grain == one].mean() for one in names], kept(sparsity, len(names)))
    return np.isin(grain, names[alive])


def blocks(shape, size):
    """The number of the block, along the last axes, that each entry is in; in row-major order of blocks."""
    size = (1,) * (len(shape) - len(size)) + tuple(size)
    counts = [n // m for n, m in zip(shape, size, strict=True)]
    number = np.zeros(shape, int)
    for index in np.ndindex(shape):
        number[index] = np.ravel_multi_index([i // m for i, m in zip(index, size, strict=True)], counts)
    return number


def groups(shape, m, axis):
    """The number of the group of m neighbours along an axis that each entry is in."""
    size = [1] * len(shape)
    size[axis] = m
    return blocks(shape, size)


def lamp(w):
    """Eq. 4 of Lee et al.: each square over the sum of those that are not before it in rising order."""
    flat = [float(x) ** 2 for x in np.ravel(w)]
    rising = sorted(range(len(flat)), key=lambda i: (flat[i], -i))
    scores, left = [0.0] * len(flat), math.fsum(flat)
    for i in rising:
        scores[i] = flat[i] / left
        left -= flat[i]
    return np.reshape(scores, np.shape(w))


class MaskedAdam:
    """Adam with decoupled decay in float64 loops of NumPy, under a mask: dead weights are zero and forgotten."""

    def __init__(self, weights, rate, decay, b1=0.9, b2=0.999, eps=1e-8):
        self.weights, self.rate, self.decay, self.b1, self.b2, self.eps = (
            weights.astype(np.float64),
            rate,
            decay,
            b1,
            b2,
            eps,
        )
        self.mean, self.square, self.count = np.zeros(weights.shape), np.zeros(weights.shape), 0

    def update(self, gradient, mask):
        self.count += 1
        for i in np.ndindex(mask.shape):
            g = float(gradient[i]) if mask[i] else 0.0
            self.mean[i] = self.b1 * self.mean[i] + (1 - self.b1) * g
            self.square[i] = self.b2 * self.square[i] + (1 - self.b2) * g * g
            mean, square = self.mean[i] / (1 - self.b1**self.count), self.square[i] / (1 - self.b2**self.count)
            self.weights[i] -= self.rate * (mean / (math.sqrt(square) + self.eps) + self.decay * self.weights[i])
            if not mask[i]:
                self.weights[i] = self.mean[i] = self.square[i] = 0.0


def drop_and_grow(mask, weights, gradients, fraction):
    """Algorithm 1 of RigL in lists: drop the smallest living weights, grow the largest gradients of all others."""
    living = [i for i in np.ndindex(mask.shape) if mask[i]]
    stay = round((1 - fraction) * len(living))
    by_weight = sorted(living, key=lambda i: -abs(float(weights[i])))
    survivors = by_weight[:stay]
    others = [i for i in np.ndindex(mask.shape) if i not in set(survivors)]
    born = sorted(others, key=lambda i: -abs(float(gradients[i])))[: len(living) - stay]
    out = np.zeros(mask.shape, bool)
    for i in survivors + born:
        out[i] = True
    return out


def convolve(images, kernels, stride, pad):
    """A convolution of NHWC images with HWIO kernels, in float64 loops."""
    n, height, width, _ = images.shape
    size = kernels.shape[0]
    padded = np.zeros((n, height + 2 * pad, width + 2 * pad, images.shape[3]))
    padded[:, pad : pad + height, pad : pad + width] = images
    rows, columns = ((side + 2 * pad - size) // stride + 1 for side in (height, width))
    out = np.zeros((n, rows, columns, kernels.shape[3]))
    for i in range(rows):
        for j in range(columns):
            window = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = np.tensordot(window, kernels, 3)
    return out
