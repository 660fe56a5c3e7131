"""The JAX face on the rows of the capability table: bounded, not bitwise (`faces.BY_XLA`)."""

import inspect

import capabilities
import pytest

import adagrad
from adagrad.jax import Adagrad
from adagrad.jax import adagrad as transformation
from capability import check, check_coverage, rows
from jax_tools import EagerJaxFace, JaxFace

ROWS = [(face, *row) for face in (JaxFace, EagerJaxFace) for row in rows(face, tested=True)]


def param(face, dtype, case, kind):
    """A row compiles a program: those in half precision, and not jitted, are left to `make test-all`."""
    name = f"{face.name}-{dtype}-{case.name}-{kind}".replace(" ", "_")
    slow = [pytest.mark.slow] if face is EagerJaxFace or dtype.endswith("float16") else []
    return pytest.param(face, dtype, case, kind, id=name, marks=slow)


@pytest.mark.parametrize(("face", "dtype", "case", "kind"), [param(*row) for row in ROWS])
def test_row(face, dtype, case, kind):
    check(face, dtype, case, kind)


def test_every_argument_has_a_row():
    check_coverage(JaxFace, EagerJaxFace)


@pytest.mark.parametrize("face", [JaxFace, EagerJaxFace], ids=lambda face: face.name)
def test_page(face):
    assert capabilities.is_on_page(face)


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
