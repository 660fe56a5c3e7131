"""FBGEMM's tables on the CPU: the optimizer runs inside the backward pass, so what is timed is that pass.

The forward pass, which looks the rows up, is timed apart. FBGEMM imports Triton: never in one process with TensorFlow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen

from bench.peers import SETTINGS, Peer
from bench.peers_torch import torch_threads

__all__ = ["Exact", "ExactRowwise"]


class Exact(Peer):
    """``EXACT_ADAGRAD``: an accumulator for each element, repeated ids summed first."""

    epsilon_placement = "outside"
    row_form = "bags of one id"
    optimizer = EmbOptimType.EXACT_ADAGRAD

    def __init__(self, parameters: Sequence[np.ndarray]) -> None:
        (start,) = parameters
        self.table = SplitTableBatchedEmbeddingBagsCodegen(
            [(*start.shape, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            optimizer=self.optimizer,
            pooling_mode=PoolingMode.SUM,
            learning_rate=SETTINGS["learning_rate"],
            eps=SETTINGS["epsilon"],
        )
        ((self.weights,), ((state,),)) = self.table.split_embedding_weights(), self.table.split_optimizer_states()
        self.weights.copy_(torch.from_numpy(start))
        state.fill_(SETTINGS["initial_accumulator_value"])

    def rows(self, values: np.ndarray, ids: np.ndarray) -> Any:
        """The output of the forward pass, and its gradient."""
        return self.forward(ids), torch.from_numpy(values)

    def forward(self, ids: np.ndarray) -> torch.Tensor:
        """Look up the rows."""
        found: torch.Tensor = self.table(torch.from_numpy(ids), torch.arange(len(ids) + 1))
        return found

    def step(self, gradient: Any) -> None:
        """The backward pass from the output."""
        output, values = gradient
        output.backward(values)

    def read(self, number: int, rows: np.ndarray | None = None) -> np.ndarray:
        """The table's memory, or some rows."""
        found: np.ndarray = self.weights.detach().numpy()
        return found if rows is None else found[rows]

    def turn(self, threads: int) -> contextlib.AbstractContextManager[object]:
        """With ``torch.set_num_threads``."""
        return torch_threads(threads)


class ExactRowwise(Exact):
    """``EXACT_ROWWISE_ADAGRAD``: an accumulator for each row."""

    row_wise = True
    optimizer = EmbOptimType.EXACT_ROWWISE_ADAGRAD
