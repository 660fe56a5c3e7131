"""Write benchmarks.md, and its pictures, from what is stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import pictures
from bench.plan import SECTIONS, TITLES
from bench.stored import Case, Results, number, over_keras, targets

__all__ = ["write"]

_HEAD = """<!-- Written by `python -m bench`; change that, not this. -->
# Benchmarks

`make bench` installs the peers and times this package beside them; this page is what it wrote. Every comparison is a
ratio within one run: each library runs in a process of its own, with ours in it; in every round each candidate takes its
turn, in a new random order; the ratio is taken within the round. Shown are the median and, in brackets, the 10 % and 90 %
quantiles over the rounds. Times in milliseconds are there for orientation: on a shared or virtual machine they drift,
ratios less. All rounds are stored under `bench/results/`.

- Our threads are pinned to a processor each, PyTorch's by `OMP_PROC_BIND`; JAX and TensorFlow place theirs themselves.
- Every library's memory comes in huge pages (`glibc.malloc.hugetlb`), as NumPy's does by itself.
- The settings are matched: learning rate 0.01, accumulators from 0.1, epsilon 1e-7, inside the root or outside as the peer
  has it. Before it is timed, each peer is compared with ours, on small data over five steps and on the data that is timed;
  one that departs by more than its stated tolerance is not timed.
- Gradients are made beforehand; only the optimizer's step is timed.
"""


_ROWS_TEXT = """\
A float32 table of width 64 and a batch of 8,192 ids, other ids at every step. Zipf ids (exponent 1.2) repeat; uniform ones
hardly do. Each cell: the ratio to ours with as many threads, in the same process; below it the peer's milliseconds and ours.
A step that walks the whole table takes long, so that there are few rounds of it, three at least.
Keras gets what its training loop makes: a dense gradient of the table's size on PyTorch and JAX (making it is not timed),
`tf.IndexedSlices` on TensorFlow. FBGEMM's optimizer runs inside its backward pass, which is what is timed; its forward pass
is a line of its own. Row-wise Adagrad is set against ours with `row_wise=True`.
"""

_EMBEDDING_TEXT = """\
All of a step in PyTorch: rows are looked up, go through a linear layer to a loss and back, and the optimizer steps. Ours is
`Adagrad.as_torch`, which has the numbers of torch's optimizer. With dense gradients a step makes, and reads, one of the size of
the table. The distance is that of the table after two steps.
"""

_KERAS_TEXT = """\
`adagrad.keras.Adagrad` beside `keras.optimizers.Adagrad`, on models of equal weights: a call of `fit`, and the optimizer's
step alone, by the gradients that the training loop hands it. The embedding layer beside ours is `adagrad.keras.Embedding`.
*By rows* is a model on JAX whose training step is `adagrad.keras.row_train_step`; without it JAX, and without our layer
PyTorch, makes a gradient of the size of the table; Keras's layer on TensorFlow reads the whole table. The distance is that of
the weights after one batch, in units in the last place of the largest.
"""

_ARGUMENTS_TEXT = """\
Each argument beside a plain step of the same size, and beside it the bytes that it must read and write, relative to the
plain step's. Extra memory is the most that the process grew by during a step, in units of the parameter. A constraint runs
on a copy, since it may raise, and then nothing may have changed.
"""

_MEMMAP_TEXT = """\
The parameter lies in a file (`numpy.memmap`), the accumulators in memory. Out of the cache: the first step after all of the
file's pages have been written back and dropped (at most {left:.1%} of them stayed).
"""

_LINEAR_TEXT = """\
Two classes by log loss, online, one example a step. Every learner has one setting, the best of five by rows that are neither
learned from nor judged by; they are different algorithms, and the loss shows what each makes of the same rows. A pass is
`partial_fit` of ours and scikit-learn's over one matrix, Vowpal Wabbit's own driver over its binary cache and
`learn_one` of river over dicts. The time to a loss counts learning alone, over up to three passes; the loss is looked at twenty
times a pass, of Vowpal Wabbit after whole ones. It is one that all of them reach.
"""

_FILE_TEXT = """\
From a text file in Vowpal Wabbit's format, a million bytes of rows drawn and repeated, to a model on disk, in a new process:
`adagrad train` with its report and pictures, and Vowpal Wabbit.
"""

_FIRST_CALL_TEXT = """\
The first call of `apply` in a new process, in milliseconds: with an empty cache, so that the kernels are compiled; with the
kernels of an earlier process in the cache; and the second call.
"""


def write(results: Path, docs: Path) -> Path:
    """Write ``docs/benchmarks.md`` and ``docs/images/bench-*.png`` from the files in ``results``; returns the page."""
    stored = Results(results)
    images = pictures.draw(stored, docs / "images")
    lines = [_HEAD]
    if any(section["quick"] for section in stored.sections.values()):
        lines.append("**A quick run: its sizes are too small to measure anything.**\n")
    lines += _machine(stored)
    lines += [
        "## Targets\n",
        *_table(("target", "measured", ""), ([t["target"], t["measured"], t["verdict"]] for t in targets(stored))),
    ]
    for section in (name for name in SECTIONS if name in stored.sections):
        lines.append(f"## {TITLES[section]}\n")
        if section in images:
            lines.append(f"![{TITLES[section]}](images/{images[section]})\n")
        cases = stored.cases(section)
        lines += {
            "dense": _flat, "many": _flat, "rows": _rows, "embedding": _embedding, "keras": _keras, "arguments": _arguments,
            "memmap": _memmap, "linear": _linear, "startup": _startup,
        }[section](cases)  # fmt: skip
        lines += _left_out(cases, stored.failures(section))
    page = docs / "benchmarks.md"
    page.write_text("\n".join(lines).rstrip() + "\n")
    return page


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    found = ["| " + " | ".join(cells) + " |" for cells in rows]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *found, ""]


def _spread(ratio: dict[str, float]) -> str:
    return f"{number(ratio['median'])} [{number(ratio['p10'])} to {number(ratio['p90'])}]"


def _ms(entry: dict[str, Any]) -> str:
    return number(entry["milliseconds"]["median"])


def _machine(stored: Results) -> list[str]:
    found: dict[str, list[str]] = {}  # versions by date and machine: not every section needs every package
    for section in stored.sections.values():
        about = section["machine"]
        parts = [
            about["processor"],
            f"{about['processors']} processors ({', '.join(about['vector_extensions'])})",
            f"last-level cache {about['last_level_cache']}",
            f"{about['memory_gb']:.0f} GB of memory",
            f"{about['system']}, {about['c_library']}, huge pages {about['huge_pages']}",
            f"Python {about['python']}",
        ]
        versions = found.setdefault(f"Measured {section['date']} on: {', '.join(parts)}", [])
        versions += [text for name, version in section["versions"].items() if (text := f"{name} {version}") not in versions]
    return [*(f"{text}, {', '.join(versions)}." for text, versions in found.items()), ""]


def _worst(case: Case, name: str) -> str:
    """How far a peer was found from ours: the worst distance, and where it does not sum repeated ids, how it departs."""
    known = next((each for peer, each in case["agreement"].items() if name == peer or name.startswith(peer + ", ")), None)
    if known is None:
        return ""
    # Longer names first: "Keras on TensorFlow" begins "Keras on TensorFlow, XLA".
    known = case["agreement"].get(name, known)
    allowed = known["allowed_ulp"]
    inside = [each["ulp"] for each in known["found"].values() if each["ulp"] <= allowed]
    return f"{max(inside, default=0.0):.3g} of {allowed:g} ULP"


def _flat(cases: Sequence[Case]) -> list[str]:
    rows = []
    for case in cases:
        for entry in case["candidates"]:
            ratio = _spread(entry["ratio"]) if "ratio" in entry else "1"
            rows.append([case["process"], entry["name"], _ms(entry), ratio, _worst(case, entry["name"])])
    title = next((case["case"] for case in cases if case["candidates"]), "nothing")
    return [
        f"{title[:1].upper()}{title[1:]}, float32. The ratio is to ours with as many threads, in the same process (all threads "
        "where the peer has no such setting).\n",
        *_table(("process", "candidate", "ms", "times ours", "distance to ours"), rows),
        "The distance is the largest found, of what is allowed, in units in the last place of the parameter. Its causes:\n",
        *(f"- {', '.join(names)}: {why}" for why, names in _reasons(cases).items()),
        "",
    ]


def _reasons(cases: Sequence[Case]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for case in cases:
        for name, known in case["agreement"].items():
            found.setdefault(known["why"], []).append(name)
    return found


def _rows(cases: Sequence[Case]) -> list[str]:
    sized = [case for case in cases if "rows" in case]
    sizes = sorted({case["rows"] for case in sized})
    lines = [
        _ROWS_TEXT,
    ]
    for ids in ("zipf", "uniform"):
        names = dict.fromkeys(c["name"] for case in sized if case["ids"] == ids for c in case["candidates"] if "ratio" in c)
        unique = {case["rows"]: f"{case['unique_ids']:,}" for case in sized if case["ids"] == ids and "unique_ids" in case}
        head = [f"{ids} ids", *(f"{size:,} rows ({unique.get(size, '?')} different ids)" for size in sizes)]
        lines += _table(head, ([name, *(_cell(sized, name, size, ids) for size in sizes)] for name in names))
    for case in sized:
        for name, known in case["agreement"].items():
            departs = known["found"].get("repeated")
            if (
                not known["sums_repeated_ids"]
                and departs is not None
                and case is next(c for c in sized if name in c["agreement"])
            ):
                lines.append(
                    f"*{name}* does not sum repeated ids before it squares them: on small data with ids that repeat it departs "
                    f"from ours by up to {departs['off']:.2g} in five steps; where no id repeats it is within "
                    f"{known['found']['rows']['ulp']:.3g} ULP. It is timed all the same.\n"
                )
    lines += _grown(cases)
    return lines


def _cell(cases: Sequence[Case], name: str, size: int, ids: str) -> str:
    for case in cases:
        if case["rows"] == size and case["ids"] == ids:
            by_name = {entry["name"]: entry for entry in case["candidates"]}
            if name in by_name and "ratio" in by_name[name]:
                entry = by_name[name]
                return f"{_spread(entry['ratio'])}<br>{_ms(entry)} / {_ms(by_name[entry['against']])} ms"
    return "not timed"


def _grown(cases: Sequence[Case]) -> list[str]:
    rows = [
        [case["ids"], entry["name"], _ms(entry), _spread(entry["ratio"]) if "ratio" in entry else "1"]
        for case in cases
        if case.get("scaling")
        for entry in case["candidates"]
    ]
    return [
        "What grows with the table, ours alone, all sizes in turns:\n",
        *_table(("ids", "ours", "ms", "times the smallest"), rows),
    ]


def _embedding(cases: Sequence[Case]) -> list[str]:
    lines = [_EMBEDDING_TEXT]
    for case in cases:
        rows = [
            [e["name"], _ms(e), _spread(e["ratio"]) if "ratio" in e else "1", _worst(case, e["name"])]
            for e in case["candidates"]
        ]
        lines += [
            f"{case['case'][:1].upper()}{case['case'][1:]} ({case['unique_ids']:,} different):\n",
            *_table(("optimizer", "ms a step", "times ours", "distance to ours"), rows),
        ]
    return lines


def _keras(cases: Sequence[Case]) -> list[str]:
    lines = [_KERAS_TEXT]
    head = ("backend", "what", "optimizer", "ms, ours", "ms, Keras", "times ours", "distance")
    for title in dict.fromkeys(case["case"] for case in cases if case["candidates"]):
        rows = [
            [
                case["process"],
                way,
                mine["name"].split(", ")[0],
                _ms(mine),
                _ms(theirs),
                _spread(times),
                _worst(case, mine["name"]),
            ]
            for case in cases
            if case["case"] == title
            for way, mine, theirs, times in over_keras(case)
        ]
        lines += [f"{title[:1].upper()}{title[1:]}:\n", *_table(head, rows)]
    return [*lines, *(f"The distance: {why}.\n" for why in _reasons(cases))]


def _arguments(cases: Sequence[Case]) -> list[str]:
    lines = [
        _ARGUMENTS_TEXT,
    ]
    for case in cases:
        rows = [
            [
                entry["name"],
                _ms(entry),
                _spread(entry["ratio"]) if "ratio" in entry else "1",
                f"{entry['bytes_ratio']:.3g}",
                entry["bytes_why"],
                "unknown" if entry["extra_memory"] is None else f"{entry['extra_memory']:.2f}",
            ]
            for entry in case["candidates"]
        ]
        lines += [
            f"{case['case'][:1].upper()}{case['case'][1:]}:\n",
            *_table(("argument", "ms a call", "times plain", "bytes", "which", "extra memory"), rows),
        ]
    return lines


def _memmap(cases: Sequence[Case]) -> list[str]:
    rows = [
        [case["case"], entry["name"], _ms(entry), _spread(entry["ratio"]) if "ratio" in entry else "1"]
        for case in cases
        for entry in case["candidates"]
    ]
    left = max((case["resident_after_drop"] for case in cases), default=0.0)
    return [
        _MEMMAP_TEXT.format(left=left),
        *_table(("table", "where it is", "ms", "times in memory"), rows),
    ]


def _linear(cases: Sequence[Case]) -> list[str]:
    lines = [_LINEAR_TEXT]
    for case in (case for case in cases if "to_goal" in case):
        rows = []
        for entry in case["candidates"]:
            name, seconds = entry["name"], entry["milliseconds"]["median"] / 1e3
            ratio = _spread(entry["ratio"]) if "ratio" in entry else "1"
            if entry.get("against", "ours") != "ours":
                ratio = f"{ratio} of {entry['against']}"
            goal = case["to_goal"].get(name)
            rows.append(
                [
                    name,
                    case["settings"].get(name, ""),
                    _ms(entry),
                    f"{case['nonzeros'][name] / seconds / 1e6:.3g}",
                    ratio,
                    f"{case['log_loss'][name]:.4f}",
                    number(1e3 * float(np.median(goal))) if goal else "",
                ]
            )
        head = (
            "one pass",
            "setting",
            "ms",
            "million non-zeros a second",
            "times ours",
            "held-out log loss after it",
            f"ms of learning to a loss of {case['goal']:.4f}",
        )
        lines += [f"{case['case'][:1].upper()}{case['case'][1:]}, {case['rows']:,} learned from:\n", *_table(head, rows)]
        if "rolling" in case:
            rows = [
                [name, *(f"{loss:.4f}" for loss in found), f"{float(np.mean(found)):.4f}"]
                for name, found in case["rolling"].items()
            ]
            head = ("log loss of the month", "July", "August", "September", "October", "November", "December", "mean")
            lines += ["Each month judged by what was learned, in one pass, from all months before it:\n", *_table(head, rows)]
    lines += _text([case for case in cases if "megabytes" in case])
    return lines


def _text(cases: Sequence[Case]) -> list[str]:
    if not cases:
        return []
    rows, sizes, medians = [], [case["megabytes"] for case in cases], []
    for case in cases:
        ours, theirs = case["candidates"]
        medians.append([ours["milliseconds"]["median"], theirs["milliseconds"]["median"]])
        rows.append([case["case"], _ms(ours), _ms(theirs), _spread(theirs["ratio"])])
    lines = [_FILE_TEXT, *_table(("file", "adagrad train, ms", "Vowpal Wabbit, ms", "times ours"), rows)]
    if len(sizes) > 1:
        slopes, starts = np.polyfit(sizes, medians, 1)
        equal = (starts[0] - starts[1]) / (slopes[1] - slopes[0])
        if slopes[1] > slopes[0]:
            lines.append(f"By a straight line through these, ours is the faster from {number(max(equal, 0))} MB on.\n")
        else:
            lines.append("By a straight line through these, ours is the slower at every size.\n")
    return lines


def _startup(cases: Sequence[Case]) -> list[str]:
    lines = []
    for case in cases:
        if case["case"] == "a new process":
            rows = [[e["name"], _ms(e), _spread(e["ratio"]) if "ratio" in e else "1"] for e in case["candidates"]]
            lines += [
                "A process that does nothing but import:\n",
                *_table(("process", "ms", "times ours"), rows),
            ]
            continue
        kinds: dict[str, dict[str, str]] = {}
        for entry in case["candidates"]:
            kind, state = entry["name"].rsplit(": ", 1)
            kinds.setdefault(kind, {})[state] = _ms(entry)
        states = ("compiled", "cached", "second call")
        lines += [
            _FIRST_CALL_TEXT,
            *_table(("what is called", *states), ([kind, *(found[s] for s in states)] for kind, found in kinds.items())),
        ]
    return lines


def _left_out(cases: Sequence[Case], failures: Sequence[dict[str, Any]]) -> list[str]:
    found = [f"{each['name']} ({case['case']}): {each['reason']}" for case in cases for each in case["skipped"]]
    found += [f"the process {each['process']} {each['options']}: {each['reason']}" for each in failures]
    return ["Not timed:\n", *(f"- {text}" for text in dict.fromkeys(found)), ""] if found else []
