"""The files that the arguments of a command stand for, and how each is written."""

import os
from collections.abc import Sequence
from pathlib import Path

from adagrad.cli.errors import CliError

__all__ = ["COLUMNS", "CSV", "SVMLIGHT", "VW", "files_in", "form_of", "header_of"]

CSV, SVMLIGHT, VW = "csv", "svmlight", "vw"

COLUMNS = {SVMLIGHT: ["label", "qid", "features"], VW: ["label", "weight", "tag", "features"]}
"""The columns that rows without a header have."""

_ENDINGS = {".svm": SVMLIGHT, ".svmlight": SVMLIGHT, ".libsvm": SVMLIGHT, ".vw": VW}
_TEXTS = (".csv", ".tsv", *_ENDINGS)
_SUFFIXES = (*_TEXTS, *(f"{ending}.gz" for ending in _TEXTS), ".parquet", ".pq")


def form_of(path: str, given: str | None = None, usual: str = CSV) -> str:
    """How a text file is written: as ``given``, else as its name says, else as is ``usual``."""
    if given is not None:
        return given
    name = path.lower().removesuffix(".gz")
    return next((form for ending, form in _ENDINGS.items() if name.endswith(ending)), usual)


def header_of(paths: Sequence[str], given: str | None = None) -> list[str] | None:
    """The columns of text files that have no header; None if any of them has one, or they differ."""
    files = [file for path in paths for file in (files_in([path]) if os.path.isdir(path) else [path])]
    forms = {form_of(file, given) for file in files}
    return COLUMNS.get(forms.pop()) if len(forms) == 1 else None


def files_in(paths: Sequence[str]) -> list[str]:
    """The files that the arguments stand for; raises if there are none, or one does not exist."""
    if "-" in paths and len(paths) > 1:
        raise CliError("'-', standard input, can't be mixed with files")
    files: list[str] = []
    for path in paths:
        if path == "-" or os.path.isfile(path):
            files.append(path)
        elif os.path.isdir(path):
            found = _in_folder(Path(path))
            if not found:
                raise CliError(f"{path}: no file in this folder ends in {', '.join(_SUFFIXES)}")
            files += found
        elif os.path.exists(path):
            files.append(path)  # a named pipe or a device
        else:
            raise CliError(f"{path}: no such file or folder")
    return files


def _in_folder(folder: Path) -> list[str]:
    """The data files below a folder, by name; not the hidden ones, nor the results of trainings."""
    results = {file.parent for file in folder.rglob("model.safetensors")}
    found = []
    for file in sorted(folder.rglob("*")):
        inner = file.relative_to(folder)
        hidden = any(part.startswith((".", "_")) for part in inner.parts)
        result = any(folder / parent in results for parent in list(inner.parents)[:-1])
        result = result or (folder in results and str(inner) == "curve.csv")
        if file.name.lower().endswith(_SUFFIXES) and not hidden and not result and file.is_file():
            found.append(str(file))
    return found
