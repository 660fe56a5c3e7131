"""The one error that the commands raise on purpose, and the one line that stands for any other one a user can cause."""

import errno

__all__ = ["CliError", "explain"]


class CliError(Exception):
    """What the user gave can't be used; the message is one line that says what, where, and what would do.

    ``code`` is the exit status: 1, or 130 after Ctrl-C.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def explain(error: OSError, path: object = None) -> str:
    """One line for an error of the file system, naming the file."""
    name = error.filename if error.filename is not None else path
    reason = {errno.ENOENT: "no such file or folder", errno.ENOSPC: "the disk is full"}.get(error.errno or 0)
    reason = reason or (error.strerror or str(error)).lower().split("\n")[0]
    return f"{name}: {reason}" if name is not None else reason
