"""Write fbgemm.json: what FBGEMM's fused optimizers make of a table, the numbers that ours are held against.

pip install torch==2.13.0 fbgemm-gpu-cpu==1.8.0
python tests/goldens/make_fbgemm.py

The table is FBGEMM's own, on the CPU; its optimizer runs inside the backward pass. Each step looks up single rows (bags of
one id, ids repeated) and hands in their gradients. FBGEMM's weight decay has no effect there in this version, so there is
none in the cases. It imports Triton, which TensorFlow does not survive in one process.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import fbgemm_gpu
import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen

OUT = Path(__file__).with_name("fbgemm.json")
ROWS, WIDTH, IDS, STEPS = 11, 8, 9, 6

CASES: dict[str, dict[str, Any]] = {
    "EXACT_ADAGRAD": {"learning_rate": 0.25, "eps": 1e-8},
    "EXACT_ADAGRAD, a large eps": {"learning_rate": 0.3, "eps": 0.5},
    "EXACT_ROWWISE_ADAGRAD": {"learning_rate": 0.25, "eps": 1e-8},
    "EXACT_ROWWISE_ADAGRAD, a large eps": {"learning_rate": 0.3, "eps": 0.5},
}


def numbers(array: torch.Tensor) -> Any:
    """A float32 tensor as nested lists of the shortest decimals that give each number back."""
    array = array.detach().numpy()
    assert array.dtype == np.float32
    return [float(str(x)) for x in array] if array.ndim == 1 else [[float(str(x)) for x in row] for row in array]


def run(name: str, arguments: dict[str, Any], start: torch.Tensor, steps: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """The table and the state after each step."""
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(ROWS, WIDTH, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType[name.split(",")[0]],
        pooling_mode=PoolingMode.SUM,
        **arguments,
    )
    (weights,), ((state,),) = table.split_embedding_weights(), table.split_optimizer_states()
    weights.copy_(start)
    calls = []
    for ids, gradient in steps:
        table(ids, torch.arange(IDS + 1)).backward(gradient)
        calls.append({"weights": numbers(weights), "state": numbers(state)})
    return {**arguments, "calls": calls}


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(ROWS, WIDTH, generator=generator)
    steps = [
        (torch.randint(0, ROWS, (IDS,), generator=generator), torch.randn(IDS, WIDTH, generator=generator))
        for _ in range(STEPS)
    ]
    written = {
        "made_by": "tests/goldens/make_fbgemm.py",
        "versions": {
            "fbgemm_gpu": fbgemm_gpu.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
        },
        "start": numbers(start),
        "steps": [{"ids": ids.tolist(), "gradient": numbers(gradient)} for ids, gradient in steps],
        "cases": {name: run(name, arguments, start, steps) for name, arguments in CASES.items()},
    }
    text = json.dumps(written, separators=(",", ":"), allow_nan=False)
    for before in ('"versions":', '"start":', '"steps":', '{"ids":', '"cases":', '"EXACT', '{"weights":'):
        text = text.replace(before, "\n" + before)
    assert json.loads(text) == written
    OUT.write_text(text + "\n")
    print(f"{len(CASES)} cases -> {OUT.name} ({len(text)} bytes)", file=sys.stderr)


if __name__ == "__main__":
    main()
