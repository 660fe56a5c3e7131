"""The command line: ``adagrad train``, ``predict``, ``inspect`` and ``demo``."""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (that of the process, if none is given) and return its exit status."""
    try:
        from adagrad.cli.app import run

        return run(arguments)
    except ModuleNotFoundError as error:
        print(f"adagrad: the command line needs the packages of the extra 'cli': {error.name} is missing", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before there was anything to stop
        print("adagrad: stopped", file=sys.stderr)
        return 130
