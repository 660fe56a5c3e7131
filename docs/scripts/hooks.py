"""What mkdocs is told beside mkdocs.yml, as its hooks: links that leave docs/, pages from outside of it, and formulas.

In the repository a page links to any file, ``../src/adagrad/rule.py``; so that the link works on the site too, the file gets
a page there, under ``source/``. Formulas are written in TeX between dollars and become MathML, which browsers show by
themselves.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}  # pages whose text is not in docs/
LINK = re.compile(r"(?<=\]\()[^)#\s]+")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
PICTURE = re.compile(r'<img [^>]*src="([^"]+)"[^>]*>')
NO_REFERENCE = re.compile(r'<span title="[^"]*">(<code>[^<]*</code>)</span>')  # a name in a docstring that leads nowhere
LANGUAGES = {".py": "python", ".json": "json", ".toml": "toml"}


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are not in docs/, and those of the files that any page links to."""
    for path, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    linked = {
        _in_repository(target, file.src_uri)
        for file in list(files.documentation_pages())
        for target in LINK.findall(file.content_string)
        if "://" not in target
    }
    for path in sorted(linked):
        if not _is_page(path) and path not in OUTSIDE:
            files.append(File.generated(config, f"source/{path}.md", content=_source_page(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Turn links that leave docs/ to where they lead on the site."""
    here = page.file.src_uri
    if here.startswith("source/"):
        return markdown
    return LINK.sub(lambda found: found[0] if "://" in found[0] else _on_site(found[0], here), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Make MathML of the formulas, and of each picture a link to itself, to be seen larger."""
    content = PICTURE.sub(r'<a href="\1">\g<0></a>', content)
    return FORMULA.sub(
        lambda found: convert(html.unescape(found[2]), display="block" if found[1] == "div" else "inline"), content
    )


def on_post_page(output: str, **_: Any) -> str:
    """Take away the tooltips of names that are no links."""
    return NO_REFERENCE.sub(r"\1", output)


def _is_page(path: str) -> bool:
    """Whether a file of the repository is on the site by itself, as a page or a picture."""
    return path.startswith("docs/") and not path.startswith("docs/scripts/")


def _in_repository(target: str, page: str) -> str:
    """The path of what a page links to, from the root of the repository."""
    home = next((path for path, uri in OUTSIDE.items() if uri == page), f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(home), target))


def _on_site(target: str, page: str) -> str:
    """The same link, relative to the page, on the site."""
    path = _in_repository(target, page)
    there = path.removeprefix("docs/") if _is_page(path) else OUTSIDE.get(path, f"source/{path}.md")
    return posixpath.relpath(there, posixpath.dirname(page) or ".")


def _source_page(path: str) -> str:
    """A file of the repository as a page, which the search leaves out."""
    text = (ROOT / path).read_text().rstrip("\n")
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"---\nhide: [toc]\nsearch: {{exclude: true}}\n---\n# `{path}`\n\n`````{language}\n{text}\n`````\n"
