"""Adagrad for PyTorch: ``from adagrad.torch import Adagrad``."""

from adagrad.torch.optimizer import Adagrad

__all__ = ["Adagrad"]
