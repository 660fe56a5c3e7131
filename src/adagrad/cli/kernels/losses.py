"""Log losses, and the running shares of the classes."""

# mypy: allow-untyped-defs, no-check-untyped-defs, allow-untyped-decorators

import numpy as np

from adagrad.kernels.compiling import kernel

__all__ = ["follow_classes", "log_losses"]


@kernel
def log_losses(prediction, y, smallest, loss):
    """``-log`` of each row's probability of its class, which counts as at least ``smallest``."""
    for i in range(y.size):
        loss[i] = -np.log(max(prediction[i, y[i]], smallest))


@kernel
def follow_classes(y, weight, sums, total, means):
    """The share of each class before each row; ``sums`` moves on, and the new total is returned."""
    for i in range(y.size):
        for k in range(sums.size):
            means[i, k] = sums[k] / total
        sums[y[i]] += weight[i]
        total += weight[i]
    return total
