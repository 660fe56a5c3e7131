"""The documentation site: it is built strictly, and what was built is whole, needs no network and names every public name."""

import ast
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import gallery
import pytest

pytest.importorskip("mkdocs")

ROOT = Path(__file__).resolve().parent.parent
# Each module with a public list, and the page that shows its names.
MODULES = {
    "adagrad": "numpy",
    "adagrad.schedules": "schedules",
    "adagrad.rule": "rule",
    "adagrad.torch": "torch",
    "adagrad.jax": "jax",
    "adagrad.keras": "keras",
    "adagrad.sklearn": "sklearn",
    "adagrad.cli": "cli",
}
# Names that stand elsewhere than on their module's page, under a name of their own.
ELSEWHERE = {"adagrad.schedules": "schedules", "adagrad.jax.IndexedSlices": "numpy"}
LOADED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "object": "data"}


@dataclass
class Html(HTMLParser):
    """What a page has and refers to: ids, links, what it loads by itself, and its text outside of code."""

    path: Path
    ids: Counter[str] = field(default_factory=Counter)
    links: set[str] = field(default_factory=set)
    loads: set[str] = field(default_factory=set)
    words: list[str] = field(default_factory=list)
    quiet: int = 0  # open elements whose text is no prose

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.ids[given["id"]] += 1
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        if tag == "link":  # a style, an icon, a page to fetch ahead
            self.loads.add(given["href"])
        if given.get(LOADED.get(tag, "")):
            self.loads.add(given[LOADED[tag]])
        self.quiet += tag in ("pre", "code", "script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.quiet -= tag in ("pre", "code", "script", "style")

    def handle_data(self, data: str) -> None:
        if not self.quiet:
            self.words.append(data)

    @cached_property
    def text(self) -> str:
        return "".join(self.words)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Html]:
    """Every page of the site, by its path; a warning of the build is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {path: Html(path) for path in sorted(folder.rglob("*.html"))}


def test_no_link_is_broken(site: dict[Path, Html]) -> None:
    broken = []
    for page in site.values():
        if page.path.name == "404.html":  # is shown at any address, so its links begin at the root of a server
            continue
        for link in page.links | page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = page.path if not parts.path else (page.path.parent / unquote(parts.path)).resolve()
            if not target.is_file():
                broken.append(f"{page.path.name}: {link} leads nowhere")
            elif parts.fragment and target in site and unquote(parts.fragment) not in site[target].ids:
                broken.append(f"{page.path.name}: {link} has no such anchor")
    assert not broken, "\n".join(broken)
    assert len(site) > 30


def test_no_anchor_stands_twice(site: dict[Path, Html]) -> None:
    twice = {page.path.name: [name for name, count in page.ids.items() if count > 1] for page in site.values()}
    assert not {page: names for page, names in twice.items() if names}


def test_nothing_is_loaded_from_elsewhere(site: dict[Path, Html]) -> None:
    for page in site.values():
        foreign = [address for address in page.loads if urlsplit(address).netloc]
        assert not foreign, f"{page.path.name} loads {foreign}"
    (folder,) = {path.parent for path in site if path.name == "404.html"}
    for style in folder.rglob("*.css"):
        assert not re.search(r"(url\(|@import)[\"' ]*(https?:)?//", style.read_text()), style.name


def test_every_public_name_is_in_the_api(site: dict[Path, Html]) -> None:
    pages = {path.stem: page for path, page in site.items() if path.parent.name == "api"}
    for module, page in MODULES.items():
        for name in public_names(module):
            path = f"{module}.{name}"
            if path == "adagrad.schedules":
                assert "schedules" in pages
            elif path in ELSEWHERE:
                assert f"adagrad.{name}" in pages[ELSEWHERE[path]].ids
                assert path in pages[page].path.read_text(), f"{path} is not named"
            else:
                assert path in pages[page].ids, f"{path} is not in the API"
            if module not in ("adagrad.rule", "adagrad.cli") and name not in ("schedules", "__version__"):
                assert f"<code>{name}</code>" in pages["index"].path.read_text(), f"{path} is not in the list of names"


def test_every_module_with_public_names_is_known() -> None:
    """A face that is added gets a page."""
    packages = {path.parent.name for path in (ROOT / "src" / "adagrad").glob("*/__init__.py")}
    inside = {"arrays", "kernels", "linear"}  # the inside of the house
    assert packages - inside == {module.split(".")[1] for module in MODULES if "." in module} - {"schedules", "rule"}


def test_docstrings_are_shown_as_they_are_meant(site: dict[Path, Html]) -> None:
    pages = {path.stem: page for path, page in site.items() if path.parent.name == "api"}
    for name, page in pages.items():
        for mark in ("---", "{shared}", "{optimizer}", ".. math", "::\n", "``", "<autoref", r"\*"):
            assert mark not in page.text, f"{name} shows {mark!r}"
        text = page.path.read_text()
        wrong = re.search("<blockquote|<h[1-6][^>]*>(Parameters|Attributes|Raises)", text)
        assert not wrong, f"{name} has {wrong[0]}: a doctest that is no code, a section that is no list"
        assert '<span title="adagrad' not in text
    said_of_both = re.sub("<[^>]*>", "", pages["sklearn"].path.read_text()).count("Passes of fit over the data")
    assert said_of_both == 2  # put in when the estimators are imported


def test_formulas_are_mathml(site: dict[Path, Html]) -> None:
    (rule,) = (page for path, page in site.items() if path.name == "rule.html" and path.parent.name != "api")
    formulas = rule.path.read_text().count("<math")
    assert formulas > 20
    left = [page.path.name for page in site.values() if re.search('<(span|div) class="arithmatex"', page.path.read_text())]
    assert not left


def test_the_gallery_is_what_the_examples_say() -> None:
    assert gallery.PAGE.read_text() == gallery.page(), "run python docs/scripts/gallery.py"
    scripts = {path.name: path.read_text() for path in (ROOT / "examples").glob("*.py")}
    for name in scripts:
        helper = any(f"from {name.removesuffix('.py')} import" in text for text in scripts.values())
        assert helper or f"(../examples/{name})" in gallery.page(), f"{name} is not in the gallery"


def public_names(module: str) -> list[str]:
    """The public list of a module, read and not run: no framework is imported."""
    path = ROOT / "src" / Path(*module.split("."))
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    )
    return names
