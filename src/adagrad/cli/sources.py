"""The files that the arguments of a command stand for."""

import os
from collections.abc import Sequence
from pathlib import Path

from adagrad.cli.errors import CliError

__all__ = ["files_in"]

_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".pq")


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
