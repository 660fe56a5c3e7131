"""The docstrings as Markdown, for the API pages: an extension of Griffe, which reads the package for mkdocstrings.

They are numpydoc's, with plain text after the sections and several names to one description, which its parsers don't take.
Here a section becomes a list and the rest stays as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

_CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
_NAME = re.compile(r"`([A-Za-z_][\w.]*)`")
_EMPHASIS = re.compile(r"(?<![\w*])(\*\w+\*)(?![\w*])")


class Docstrings(griffe.Extension):
    """Rewrites every docstring of a package when it has been read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite them."""
        for obj in _objects(pkg):
            if obj.docstring is None:
                continue
            text = obj.docstring.value
            if "{shared}" in text:  # the estimators put in what they say alike when they are imported
                from adagrad.sklearn.arguments import documented

                text = documented(text)
            scope = obj if obj.is_class or obj.parent is None else obj.parent
            obj.docstring.value = markdown(text, scope.path, _face_of(obj, pkg))


def _objects(obj: Any) -> Iterator[Any]:
    yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from _objects(member)


def _face_of(obj: Any, package: griffe.Module) -> Any:
    """The module with a public list that an object belongs to."""
    parts = obj.path.split(".")
    module = package.members.get(parts[1]) if len(parts) > 1 else None
    return module if module is not None and module.is_module and module.is_init_module else package


def markdown(text: str, scope: str, face: Any) -> str:
    """The docstring ``text`` as Markdown; `names` in it are links to public names of ``face`` or members of ``scope``."""
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", text.strip("\n"))]
    out: list[str] = []
    while blocks:
        block = blocks.pop(0)
        if len(block) > 1 and re.fullmatch("-{3,}", block[1]):
            lines = block[2:]
            while blocks and blocks[0][0].startswith(" "):  # of an item of several paragraphs
                lines += ["", *blocks.pop(0)]
            out.append(f"**{block[0]}**\n\n{_list(lines, scope, face, breaks=block[0] != 'Attributes')}")
        elif block[0].startswith(">>>"):
            code = "\n".join(block)
            out.append("```pycon\n" + re.sub(r" *# doctest:.*", "", code) + "\n```")
        elif block[0].startswith(".. math::"):
            out.append(f"$$\n{' '.join(block).removeprefix('.. math::').strip()}\n$$")
        elif block[0].startswith("    "):
            out.append("\n".join(block))
        else:
            out.append(_inline(re.sub("::$", ":", "\n".join(block)), scope, face))
    return "\n\n".join(out)


def _list(lines: list[str], scope: str, face: Any, breaks: bool) -> str:
    """The items of a section; with ``breaks`` what an item is, and what is said of it, stand on lines of their own."""
    items: list[list[str]] = []
    for line in lines:
        if line.startswith(" ") or not line:
            items[-1].append(line)
            continue
        names, colon, kind = line.partition(" : ")
        marked = ", ".join(f"``{name}``" if name.isidentifier() else name for name in names.split(", "))
        items.append([f"- {marked}{colon}{kind}"])
    for item in items:
        if breaks and len(item) > 1:
            item[0] += "  "
    return "\n".join(_inline("\n".join(item), scope, face) for item in items)


def _inline(text: str, scope: str, face: Any) -> str:
    """Names in single backticks as links, if they lead anywhere, and asterisks that multiply as they stand."""
    parts = _CODE.split(text)
    for place, part in enumerate(parts):
        name = _NAME.fullmatch(part)
        if name:
            head = name[1].split(".")[0]
            path = name[1] if head == "adagrad" else f"{face.path if head in (face.exports or ()) else scope}.{name[1]}"
            parts[place] = f'<autoref identifier="{path}" optional><code>{name[1]}</code></autoref>'
        elif place % 2 == 0:
            words = _EMPHASIS.split(part)
            parts[place] = "".join(word if k % 2 else word.replace("*", r"\*") for k, word in enumerate(words))
    return "".join(parts)
