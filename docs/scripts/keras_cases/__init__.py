"""The cases of docs/keras-differences.md: each a small function that is run on every face, and a sentence on why.

`face` is Keras on one of its backends, or this package, or the float64 reference; keras_differences.py runs them. A
function returns a number, a list of numbers or a string. What it raises is a result too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A case; `true` is what is right: a value, "reference" to compute it in float64, or None where there is none."""

    section: str
    title: str
    run: Callable[[Any], Any]
    why: str
    true: Any = "reference"
    digits: int = 6


CASES: list[Case] = []
_sections = [""]


def section(title: str) -> None:
    """Begin a section of the page: it holds the cases that follow."""
    _sections.append(title)


def case(title: str, why: str, **keywords: Any) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Add the decorated function to `CASES`; keywords are those of `Case`."""

    def register(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        CASES.append(Case(_sections[-1], title, function, why, **keywords))
        return function

    return register


for _module in ("gradients", "arithmetic", "around"):  # in the order of the page
    importlib.import_module(f"{__name__}.{_module}")
