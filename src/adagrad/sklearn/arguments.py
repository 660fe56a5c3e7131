"""What the docstrings of both estimators say alike."""

import inspect

__all__ = ["documented"]

_OPTIMIZER = """
    The arguments up to ``weight_decay_mode`` are those of `adagrad.Adagrad`, all of them; only the learning rate's default
    differs, 0.05, since 0.001 is too small for a single pass. A schedule is asked once a step. All stages act on two
    variables, the weights and the intercept, as they would on the equal dense gradient; weight decay acts on the
    intercept, too. Online, decay, moving average and penalty are applied lazily, to the weights that an example touches,
    which is the same in real arithmetic as moving all of them at every step; the rounding is better. Gradient accumulation,
    ``weight_decay_mode="l2"``, and a penalty beside decay or moving average have no lazy equal: with them an example is a
    mini-batch of one, which is slow.

    A penalty is no part of the gradient. It acts by the proximal step of Duchi, Hazan and Singer (2011) in the metric of
    the accumulator: after each step of the rule, with ``h = sqrt(a + epsilon)``, ``L1 = alpha*l1_ratio`` and
    ``L2 = alpha*(1 - l1_ratio)``, every weight but the intercept becomes
    ``sign(p) * max(|p| - lr*L1/h, 0) / (1 + lr*L2/h)``: exact zeros.

    Parameters
    ----------
    learning_rate, ..., weight_decay_mode
        See `adagrad.Adagrad`.
"""

_SHARED = """
    penalty : None, "l2", "l1" or "elasticnet"
        ``alpha * (l1_ratio*|w| + (1 - l1_ratio)*w**2/2)``, at every step; ``l1_ratio`` is that of "elasticnet".
    alpha, l1_ratio : float
    batch_size : int or None
        None: online, one example a step. A number: mini-batches of so many rows (fewer at the end of the data), with the
        mean of their gradients.
    epochs : int
        Passes of `fit` over the data; with ``early_stopping``, at most.
    shuffle : bool
        Whether `fit` shuffles the rows before each pass, by ``random_state``.
    random_state : int, RandomState or None
        For ``shuffle``, and the rows that ``early_stopping`` holds out.
    fit_intercept : bool
    warm_start : bool
        Whether `fit` goes on from what was learned before.
    verbose : int
        Above 0, `fit` prints the online loss of each pass (every row predicted before it is learned), and on a terminal
        shows a bar while it goes on.
    early_stopping : bool
        Whether `fit` holds out ``validation_fraction`` of the rows, judges by their mean loss after each pass, ends when
        ``n_iter_no_change`` passes in a row have not bettered the best by ``tol`` (None: never), and keeps the best.
    validation_fraction, n_iter_no_change, tol
        See ``early_stopping``.

    Attributes
    ----------
    coef_, intercept_ : arrays, as scikit-learn shapes them
    n_features_in_, feature_names_in_ : what `fit` saw
    n_iter_ : passes of the last `fit`
    t_ : steps so far
    validation_losses_ : after `fit` with ``early_stopping``, the mean loss of the held-out rows after each pass
    progressive_prediction_ : after `partial_fit`, the prediction for each of its rows from before the row was learned
"""


def documented(text: str) -> str:
    """The docstring with what both say alike in its places, flush left, as Python 3.13 compiles every docstring."""
    text = inspect.cleandoc(text)
    return text.replace("{optimizer}", inspect.cleandoc(_OPTIMIZER)).replace("{shared}", inspect.cleandoc(_SHARED))
