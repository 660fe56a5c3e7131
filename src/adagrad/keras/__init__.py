"""Adagrad for Keras 3, on TensorFlow, JAX and PyTorch: ``from adagrad.keras import Adagrad``.

`Adagrad` and `LossScaleOptimizer` are Keras optimizers; `Embedding` is a layer whose gradients are rows, and
`row_train_step` makes them so on JAX; `load_model`, `adopt` and `release` change Keras's Adagrad for ours and back.
"""

from adagrad.keras.embedding import Embedding
from adagrad.keras.loss_scaling import LossScaleOptimizer
from adagrad.keras.models import adopt, load_model, release
from adagrad.keras.optimizer import Adagrad
from adagrad.keras.taps import row_train_step

__all__ = ["Adagrad", "Embedding", "LossScaleOptimizer", "adopt", "load_model", "release", "row_train_step"]
