"""Write keras_<backend>.keras, a model with Keras's own Adagrad saved by each backend, and keras_files.json, their state.

python tests/goldens/make_keras_files.py       # needs keras, tensorflow, jax, torch
"""

import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
BACKENDS = ("tensorflow", "jax", "torch")


def save(backend):
    """Save the backend's file, in this process, and print the state."""
    os.environ["KERAS_BACKEND"] = backend
    import keras
    import numpy as np

    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adagrad(0.1, use_ema=True, gradient_accumulation_steps=2), "mse")
    for _ in range(3):
        model.train_on_batch(np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32))
    model.save(FOLDER / f"keras_{backend}.keras")
    variables = [keras.ops.convert_to_numpy(v.value) for v in model.optimizer.variables]
    print(json.dumps([int(variables[0]), *[v.astype(float).reshape(-1).tolist() for v in variables[2:]]]))


def main():
    """Save all."""
    found = {}
    for backend in BACKENDS:
        done = subprocess.run([sys.executable, __file__, backend], capture_output=True, text=True, check=True)
        found[backend] = json.loads(done.stdout.splitlines()[-1])
    (FOLDER / "keras_files.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    save(sys.argv[1]) if sys.argv[1:] else main()
