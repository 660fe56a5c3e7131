"""Write docs/examples.md, the gallery, from the docstrings of examples/*.py: what each shows, its commands, its picture.

python docs/scripts/gallery.py
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "examples.md"
EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}
FACES = {"torch": "PyTorch", "jax": "JAX", "keras": "Keras", "sklearn": "scikit-learn"}
SEVERAL, NONE = "Several frameworks", "NumPy"

INTRODUCTION = """\
<!-- Written by `python docs/scripts/gallery.py` from the docstrings of examples/; change those, not this. -->
# Examples

Each is a script that `make test-all` runs. They need the libraries that they show:

```console
pip install '.[examples]'
```

## From a file

`make run` trains on real flights, one example a step, and judges the model by a month that it has not seen; it draws this.
[A model from a file](training.md#the-flights) says what it does.

![The loss of the model while it learns from the flights, beside a running mean's](images/flights.png)
"""


def page() -> str:
    """The text of the page."""
    imported = {name: _imports(path) for name, path in EXAMPLES.items()}
    helpers = {name for names in imported.values() for name in names if name in EXAMPLES}
    groups: dict[str, list[str]] = {group: [] for group in [*FACES.values(), SEVERAL, NONE]}
    for name, path in EXAMPLES.items():
        if name not in helpers:
            names = imported[name].union(*(imported[helper] for helper in helpers & imported[name]))
            groups[_group(names)].append(_entry(path))
    return "\n".join([INTRODUCTION, *("\n".join([f"## {group}\n", *parts]) for group, parts in groups.items() if parts)])


def _imports(path: Path) -> set[str]:
    """The modules that a script imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


def _group(names: set[str]) -> str:
    """The framework whose face is among the modules."""
    found = [label for face, label in FACES.items() if f"adagrad.{face}" in names]
    return SEVERAL if len(found) > 1 else found[0] if found else NONE


def _entry(path: Path) -> str:
    """One script: its docstring's first words are the title, lines that start with ``python`` the commands."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    first, *others = docstring.split("\n\n")
    title, colon, text = first.partition(": ")
    title, text = (title, text) if colon else (path.name, first)
    commands = [line for line in docstring.splitlines() if line.startswith("python ")] or [f"python examples/{path.name}"]
    commands = [re.sub(" +#", "  #", command) for command in commands]
    picture = re.search(r"docs/(images/[\w-]+\.png)", docstring)
    parts = [
        f"### {title}",
        text[:1].upper() + text[1:],
        _code("\n".join(commands)),
        *(_aligned(block) for block in others if not block.startswith("python ")),
        f"[`{path.name}`](../examples/{path.name})",
        *([f"![{title}]({picture[1]})"] if picture and (PAGE.parent / picture[1]).exists() else []),
    ]
    return "\n\n".join(parts) + "\n"


def _aligned(block: str) -> str:
    """The paragraph; as code if it is laid out in columns."""
    return _code(block) if re.search(r"\S {3,}\S", block) else block


def _code(text: str) -> str:
    return textwrap.indent(text, "    ")


if __name__ == "__main__":
    PAGE.write_text(page())
