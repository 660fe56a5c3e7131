"""The checks of the Keras face, on the backend that KERAS_BACKEND names: a line for each, and a traceback where one fails.

python tests/keras_worker.py            # all
python tests/keras_worker.py name ...   # some
"""

import importlib
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

if __name__ == "__main__":  # not in the process that only asks which checks there are
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "docs" / "scripts")]

PARTS = ("keras_worker_steps", "keras_worker_state", "keras_worker_models")
BACKENDS = ("tensorflow", "jax", "torch")


def here(name: str, backend: str) -> bool:
    """Whether a check is for a backend: all are, but for those whose names begin with another one's."""
    first = name.split("_")[1]
    return first not in BACKENDS or first == backend


def main() -> int:
    import keras

    import adagrad

    adagrad.set_num_threads(1)
    failed = 0
    for part in PARTS:
        module = importlib.import_module(part)
        for name, check in list(vars(module).items()):
            if not name.startswith("check_") or check.__module__ != part or not here(name, keras.backend.backend()):
                continue
            if sys.argv[1:] and name not in sys.argv[1:]:
                continue
            start = time.process_time()
            try:
                keras.utils.set_random_seed(1)
                with warnings.catch_warnings():
                    warnings.simplefilter("error", UserWarning)
                    check()
                print(f"PASSED {name} {time.process_time() - start:.2f}", flush=True)
            except Exception:
                failed += 1
                traceback.print_exc(file=sys.stdout)
                print(f"FAILED {name}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(bool(main()))
