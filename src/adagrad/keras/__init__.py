"""Adagrad for Keras 3, on TensorFlow, JAX and PyTorch: ``from adagrad.keras import Adagrad``."""

from adagrad.keras.optimizer import Adagrad

__all__ = ["Adagrad"]
