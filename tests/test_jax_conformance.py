"""The JAX face on the rows of the capability table: bounded, not bitwise (`jax_tools.BOUNDED`)."""

import inspect

import pytest

import adagrad
from adagrad.jax import Adagrad
from adagrad.jax import adagrad as transformation
from capability import ARGUMENTS, CASES, measure, rows
from jax_tools import BOUNDED, EagerJaxFace, JaxFace


def chosen(face, dtype, case, kind):
    """A compilation takes about a second, and each pattern of gradients has its own: not every row is worth it.

    In "rows" one variable is a scalar, whose gradient is dense; "mixed" has None, too.
    """
    if dtype != "float32":
        return face is JaxFace and kind == "rows" and case.name in ("clipvalue, decay", "clipnorm, l2, loss scale")
    if face is EagerJaxFace:
        return kind == "rows" and case.name in ("clipvalue, decay", "ema_overwrite_frequency=2")
    return kind == ("mixed" if case.name in ("gradient_accumulation_steps=3", "use_ema=True") else "rows")


ROWS = [(face, *row) for face in (JaxFace, EagerJaxFace) for row in rows(face) if chosen(face, *row)]


@pytest.mark.parametrize(
    ("face", "dtype", "case", "kind"), ROWS, ids=[f"{f.name}-{d}-{c.name}-{k}".replace(" ", "_") for f, d, c, k in ROWS]
)
def test_row(face, dtype, case, kind):
    measured, allowed = measure(face, dtype, case, kind), BOUNDED[dtype].distances
    assert measured.distances.parameters <= allowed.parameters
    assert measured.distances.averages <= allowed.averages
    assert measured.distances.sums <= allowed.sums


def test_every_argument_has_a_row():
    met = {case.name for _, _, case, _ in ROWS}
    assert met == {case.name for case in CASES}
    assert {case.name for case in ARGUMENTS} <= met


def test_the_signatures_are_those_of_the_page_and_of_optax():
    page = inspect.signature(adagrad.Adagrad).parameters
    ours = inspect.signature(Adagrad).parameters
    for name, parameter in page.items():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            assert (ours[name].default, ours[name].kind) == (parameter.default, parameter.kind), name
    assert set(ours) - set(page) == {"weight_decay_mask", "constraints"}
    theirs = inspect.signature(transformation).parameters
    assert list(theirs)[:3] == ["learning_rate", "initial_accumulator_value", "eps"]
    assert all(p.kind is p.KEYWORD_ONLY for p in list(theirs.values())[3:])
    assert set(theirs) - {"eps"} == set(ours) - {"epsilon", "constraints"}
    for name in set(theirs) - {"eps", "learning_rate"}:
        assert theirs[name].default == ours[name].default, name
