"""The command line: ``adagrad train``, ``predict``, ``inspect`` and ``demo``."""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (that of the process, if none is given) and return its exit status."""
    try:
        import typer  # noqa: F401
    except ModuleNotFoundError:
        print("adagrad: the command line needs the packages of the extra 'cli'", file=sys.stderr)
        return 1
    from adagrad.cli.app import run

    return run(arguments)
