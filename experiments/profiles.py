"""Performance profiles: in how many of many measurements a method is near the best one."""

import numpy as np


def performance(values: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """Returns the share of measurements in which each method is below a threshold between the best and the worst.

    P_i(tau) = mean_j [d_ij < t_j(tau)] with t_j = tau min_i d_ij + (1 - tau) max_i d_ij: at tau near 1 a method counts
    where it is nearly the best, at 0 where it is not the worst. At 1 nothing is below the best, so that P is 0 there.

    *Mean Replacement Pruning*, submitted to ICLR 2019, section 4.3; after Dolan and More, *Benchmarking Optimization
    Software with Performance Profiles*, 2001.

    Args:
      values: (methods, measurements), lower is better.
      taus: (points,), in [0, 1].

    Returns:
      (methods, points), in [0, 1].
    """
    best, worst = values.min(0), values.max(0)
    thresholds = taus[:, None] * best + (1 - taus[:, None]) * worst
    return (values[:, None, :] < thresholds).mean(-1)


def within(errors: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """Returns the share of problems on which each method's error is within a factor of the best one's.

    P_i(tau) = mean_j [e_ij <= tau min_i e_ij]: at 1 it is how often a method is the best one, as many as share it; far
    out, on how many problems it works at all. Problems that no method solves are left out.

    Dolan and More, *Benchmarking Optimization Software with Performance Profiles*, 2001.

    Args:
      errors: (methods, problems), >= 0; infinite where a method failed.
      taus: (points,), >= 1.

    Returns:
      (methods, points), in [0, 1].
    """
    best = errors.min(0)
    solved = np.isfinite(best)
    return (errors[:, None, solved] <= taus[:, None] * best[solved]).mean(-1)
