"""How much memory a model needs, and whether there is so much, before anything is learned."""

import os
from pathlib import Path
from typing import Any

from adagrad.cli.errors import CliError

__all__ = ["available", "check_memory", "needed"]


def needed(classes: int, bits: int, settings: dict[str, Any], baseline: bool) -> int:
    """Bytes of what has an entry a weight: weights, accumulators, averages, sums of gradients, and scikit-learn's weights.

    ``classes`` is 0 for a number to learn.
    """
    models = classes if classes > 2 else 1
    arrays = 2 + bool(settings.get("use_ema")) + bool(settings.get("gradient_accumulation_steps")) + baseline
    lazy = 8 * bool(settings.get("penalty"))  # up to which step a weight is shrunk
    if (settings.get("use_ema") or settings.get("weight_decay")) and not settings.get("gradient_accumulation_steps"):
        lazy += 24  # up to which step one example at a time has moved and decayed it
    return 2**bits * (8 + lazy + 4 * models * arrays)  # 8 for what is counted of a slot


def available() -> int | None:
    """Bytes of memory that are free or can be freed, within the limit of the control group; None if that can't be told."""
    found = []
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(1024 * int(lines["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        if "SC_PHYS_PAGES" in os.sysconf_names:
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    group = Path("/sys/fs/cgroup")
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat["file"])
        found.append(int((group / "memory.max").read_text()) - used)
    except (OSError, KeyError, ValueError):  # no such group, or no limit
        pass
    return min(found, default=None)


def check_memory(classes: int, bits: int, settings: dict[str, Any], baseline: bool) -> None:
    """Raise `CliError` if the model needs more than there is."""
    wanted, free = needed(classes, bits, settings, baseline), available()
    if free is None or wanted <= free:
        return
    what = f"{classes:,} classes with 2**{bits} weights each" if classes > 2 else f"2**{bits} weights"
    others = "; --no-baseline would leave out scikit-learn's part" if baseline else ""
    raise CliError(
        f"{what} need {wanted / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB are free: lower --bits{others}"
        f"{' or learn fewer classes' if classes > 2 else ''}"
    )
