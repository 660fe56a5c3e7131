"""Our rows beside numbers that FBGEMM's fused CPU optimizers computed; goldens/make_fbgemm.py made them and says how."""

import json
from pathlib import Path

import numpy as np
import pytest

import adagrad

GOLDENS = json.loads(Path(__file__).with_name("goldens").joinpath("fbgemm.json").read_text())

# Worst measured, in ULP at the largest size that an entry has had. FBGEMM sums a row's squares and divides in float32 and
# contracts multiply and add; ours sums in double.
ULP = {"weights": 2.0, "state": 1.0}


@pytest.mark.parametrize("face", ["numpy", "torch"])
@pytest.mark.parametrize("name", GOLDENS["cases"])
def test_the_fused_optimizers_of_fbgemm(name, face):
    case = GOLDENS["cases"][name]
    settings = {"initial_accumulator_value": 0.0, "epsilon_placement": "outside", "row_wise": "ROWWISE" in name}
    table = np.array(GOLDENS["start"], np.float32)
    if face == "torch":
        torch = pytest.importorskip("torch")
        from adagrad.torch import Adagrad

        parameter = torch.nn.Parameter(torch.from_numpy(table))
        in_torch = Adagrad([parameter], case["learning_rate"], eps=case["eps"], **settings)
        state = in_torch.state[parameter]["sum"].numpy()
    else:
        on_numpy = adagrad.Adagrad(case["learning_rate"], epsilon=case["eps"], **settings)
        on_numpy.build([table])
        state = on_numpy.variables[-1]
    largest = {"weights": np.abs(table), "state": np.zeros_like(state)}
    worst = dict.fromkeys(largest, 0.0)
    for step, expected in zip(GOLDENS["steps"], case["calls"], strict=True):
        ids, values = np.array(step["ids"]), np.array(step["gradient"], np.float32)
        if face == "torch":
            indices = torch.from_numpy(ids)[None]
            parameter.grad = torch.sparse_coo_tensor(indices, torch.from_numpy(values), table.shape, check_invariants=False)
            in_torch.step()
        else:
            on_numpy.apply([adagrad.IndexedSlices(values, ids)], [table])
            state = on_numpy.variables[-1]
        for kind, array in {"weights": table, "state": state}.items():
            target = np.array(expected[kind], np.float32)
            assert array.shape == target.shape
            assert np.isfinite(array).all()
            largest[kind] = np.maximum(largest[kind], np.abs(target))
            unit = np.spacing(np.maximum(largest[kind], np.finfo(np.float32).tiny))
            worst[kind] = max(worst[kind], float((np.abs(array.astype(np.float64) - target) / unit).max()))
    for kind, bound in ULP.items():
        assert worst[kind] <= bound, kind
