"""The training run: chunks in, model out; with held-out rows, shuffling, passes, checkpoints and all that is measured.

The unit of work is a window: one chunk of 65,536 rows (of a whole batch, if that is more), or as many chunks as the shuffle
buffer holds. Nothing depends on time or on how the rows are stored, so a run taken up at a window's end goes on bit for bit as
if it had never stopped.
"""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from adagrad import state
from adagrad.cli.bad import BadRows
from adagrad.cli.blocks import Chunk
from adagrad.cli.errors import CliError, explain
from adagrad.cli.holdout import Holdout
from adagrad.cli.judging import Baseline
from adagrad.cli.labels import LARGEST
from adagrad.cli.model import Model
from adagrad.cli.online import Online
from adagrad.cli.options import TrainOptions, spelled
from adagrad.cli.reading import Reader

__all__ = ["CHUNK", "Encoded", "Run", "Watch", "chunk_rows", "encode", "open_reader"]

CHUNK = 65_536

Watch = Callable[["Run", int], None]


@dataclasses.dataclass
class Encoded:
    """A chunk ready to learn from: ``chunk`` without its bad rows, matrix, labels, weights (None: all 1), rows left out."""

    chunk: Chunk
    x: sparse.csr_matrix
    y: np.ndarray
    weight: np.ndarray | None
    bad: int

    @property
    def weights(self) -> np.ndarray:
        """The weights, ones if there are none."""
        return np.ones(len(self.y)) if self.weight is None else self.weight


def encode(model: Model, chunk: Chunk, skip_bad: bool, *, observe: bool = False) -> Encoded:
    """The chunk as matrix and labels; with ``observe`` the model's statistics and counts take its rows in first."""
    features = model.features
    bad = BadRows(chunk)
    values = features.values(chunk, bad)
    y, weight = model.labels.values(chunk, bad)
    if not skip_bad:
        bad.refuse()
    dropped = int(bad.mask.sum())
    if dropped:
        keep = ~bad.mask
        chunk, values, y = chunk.select(keep), values.select(keep), y[keep]
        weight = None if weight is None else weight[keep]
    if observe:
        features.observe(values)
    return Encoded(chunk, features.matrix(values), y, weight, dropped)


class Run:
    """One training run, from its first row or from a checkpoint.

    Attributes
    ----------
    model, online, holdout
        See their classes.
    judged : bool
        Whether there are rows to judge by.
    baseline : Baseline or None
        scikit-learn's model beside ours, if there are and it is wanted.
    epoch, position : int
        Passes done, and rows read in this one (held-out and bad ones too).
    bad : int
        Rows of the first pass left out for a bad value.
    ragged : int
        Rows of the first pass left out for their number of columns.
    seconds, timed : float, int
        Spent reading and training, without the baseline's, and rows learned from in them. The first window of a process,
        for which kernels may have to be compiled, is in neither.
    saved : (int, int) or None
        Epoch and position of the last checkpoint.
    resumed : bool
        Whether it was taken up from a checkpoint.
    files : list of (str, int, str)
        What `Reader.fingerprints` says of the files.
    """

    def __init__(self, options: TrainOptions, model: Model, holdout: Holdout) -> None:
        self.options, self.model, self.holdout = options, model, holdout
        self.online = Online(model.labels)
        self.judged = options.judged
        self.baseline = Baseline(model.labels) if self.judged and options.baseline else None
        self.epoch = self.position = self.bad = self.ragged = 0
        self.rows_before = model.rows
        self.seconds, self.timed = 0.0, 0
        self._aside: float | None = None  # seconds of the window that the baseline took; None before the first window
        self.saved: tuple[int, int] | None = None
        self.resumed = False
        self.files: list[list[Any]] = []
        self._since = 0  # rows since the last checkpoint

    @property
    def rows(self) -> int:
        """Rows learned from, each counted once a pass."""
        return self.model.rows - self.rows_before

    @property
    def rows_a_second(self) -> float | None:
        """Rows learned from in a second; None if there was but one window."""
        return self.timed / self.seconds if self.timed else None

    # ---- the pass ----------------------------------------------------------------------------------------------------

    def learn(self, chunks: Iterator[Chunk], watch: Watch) -> None:
        """One pass, or the rest of one, over ``chunks``."""
        start = time.perf_counter()
        for window in self._windows(chunks):
            before, warm, self._aside = self.rows, self._aside is not None, 0.0
            self._learn_window(window)
            self.position += sum(len(chunk) for chunk in window)
            now = time.perf_counter()
            if warm:
                self.seconds += now - start - self._aside
                self.timed += self.rows - before
            start = now
            watch(self, window[-1].position)
            self._since += sum(len(chunk) for chunk in window)
            if self.options.checkpoint and self._since >= self.options.every:
                self.save_checkpoint()
                self._since = 0
        self.epoch, self.position = self.epoch + 1, 0

    def _windows(self, chunks: Iterator[Chunk]) -> Iterator[list[Chunk]]:
        """Chunks in groups that fill the shuffle buffer, up to where the held-out end of the rows begins."""
        group = _chunks_a_window(self.options.shuffle)
        boundary = self.holdout.boundary
        if boundary is not None:
            chunks = itertools.takewhile(lambda chunk: chunk.first < boundary, chunks)
        while window := list(itertools.islice(chunks, group)):
            yield window

    def _learn_window(self, window: list[Chunk]) -> None:
        model, first_pass = self.model, self.epoch == 0
        parts = []
        for chunk in window:
            if self.holdout.some:
                held = self.holdout.mask(chunk.first, len(chunk))
                chunk = chunk.select(~held) if held.any() else chunk
            if len(chunk):
                parts.append(encode(model, chunk, self.options.bad_rows == "skip", observe=first_pass))
                model.counted += len(parts[-1].y) if first_pass else 0
                self.bad += parts[-1].bad if first_pass else 0
        if first_pass:
            self.ragged = window[-1].dropped
        parts = [part for part in parts if len(part.y)]
        if not parts:
            return
        x, y = parts[0].x, parts[0].y
        weight = parts[0].weight
        if len(parts) > 1:
            x, y = sparse.vstack([part.x for part in parts], format="csr"), np.concatenate([part.y for part in parts])
            weight = None if weight is None else np.concatenate([part.weights for part in parts])
        if self.options.shuffle:
            order = _order(len(y), self.options.shuffle, [self.options.seed, self.epoch, window[0].first])
            x, y, weight = x[order], y[order], None if weight is None else weight[order]
        before = model.learn(x, y, weight)
        if not (np.abs(before) < LARGEST).all():
            raise CliError("the model ran away, its predictions are no longer finite numbers; try a smaller --learning-rate")
        if first_pass:
            self.online.add(before, y, np.ones(len(y)) if weight is None else weight)
            last = parts[-1]
            model.strongest.look(last.chunk, last.x)
        if self.baseline is not None:
            start = time.perf_counter()
            self.baseline.learn(x, model.labels.scaled(y), weight)
            self._aside = time.perf_counter() - start

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Write the checkpoint file, in one step."""
        path = str(self.options.checkpoint)
        arrays = self.model.arrays()
        if self.baseline is not None:
            arrays |= {f"baseline/{name}": array for name, array in self.baseline.state().items()}
        content = {
            "kind": "adagrad-cli-checkpoint",
            "options": self.options.identity(),
            "model": self.model.description(),
            "online": self.online.state(),
            "progress": [self.epoch, self.position, self.bad, self.ragged, self.rows_before],
            "timed": [self.seconds, self.timed],
            "boundary": self.holdout.boundary,
            "judged": self.judged,
            "files": self.files,
        }
        place = (self.epoch, self.position)
        try:
            state.write(path, arrays, content)
            self.saved = place
        except OSError as error:
            raise CliError(explain(error, path)) from error
        except KeyboardInterrupt:  # the file may have been in its place already
            with contextlib.suppress(OSError, state.StateFileError):
                if tuple(state.read(path)[1].get("progress", ())[:2]) == place:
                    self.saved = place
            raise

    @classmethod
    def resume(cls, options: TrainOptions, reader: Reader) -> "Run":
        """The run that wrote the checkpoint file; raises if the options or the files of ``reader`` have changed since."""
        path = str(options.checkpoint)
        try:
            arrays, content = state.read(path)
        except OSError as error:
            raise CliError(explain(error, path)) from error
        except state.StateFileError as error:
            raise CliError(str(error)) from error
        if content.get("kind") != "adagrad-cli-checkpoint":
            raise CliError(f"{path} is a state file, but not a checkpoint of 'adagrad train'")
        before, now = content["options"], options.identity()
        changed = [name for name in {**now, **before} if now.get(name) != before.get(name)]
        if changed or options.judged != content["judged"]:
            what = spelled(changed[0]) if changed else "--test"
            raise CliError(
                f"--resume: {path} was made with another {what}; only --out, the files of "
                "--test, --checkpoint and --checkpoint-every may change"
            )
        files = reader.fingerprints()
        if files != content["files"]:
            was = {name: rest for name, *rest in content["files"]}
            known = {name: rest for name, *rest in files}
            name = next((name for name in {**was, **known} if was.get(name) != known.get(name)), files[0][0])
            raise CliError(f"--resume: {name} is not the file that {path} had learned from")
        model = Model.restore(path, {k: v for k, v in arrays.items() if not k.startswith("baseline/")}, content["model"])
        run = cls(options, model, Holdout(content["boundary"], options.holdout_random, options.seed))
        run.online.load(content["online"])
        run.epoch, run.position, run.bad, run.ragged, run.rows_before = content["progress"]
        run.seconds, run.timed = content["timed"]
        run.resumed, run.saved, run.files = True, (run.epoch, run.position), files
        if run.baseline is not None:
            run.baseline.load({k.partition("/")[2]: v for k, v in arrays.items() if k.startswith("baseline/")})
        return run


def open_reader(options: TrainOptions, paths: Sequence[str], **more: Any) -> Reader:
    """A reader of some of the run's files."""
    return Reader(paths, form=options.format, delimiter=options.delimiter, skip_bad=options.bad_rows == "skip", **more)


def chunk_rows(shuffle: int | None, batch_size: int | None) -> int:
    """Rows a chunk, so that whole chunks fill the shuffle buffer, or whole buffers or batches a chunk."""
    if shuffle and batch_size and batch_size > max(shuffle, CHUNK):
        raise CliError(f"--batch-size {batch_size} needs a --shuffle of as many rows or more, got {shuffle}")
    if shuffle is None:
        return max(1, CHUNK // batch_size) * batch_size if batch_size else CHUNK
    if shuffle < CHUNK:
        return CHUNK // shuffle * shuffle
    return -(-shuffle // _chunks_a_window(shuffle))


def _chunks_a_window(shuffle: int | None) -> int:
    return 1 if shuffle is None else -(-shuffle // CHUNK)


def _order(rows: int, buffer: int, seed: Sequence[int]) -> np.ndarray:
    """A permutation that keeps each row within its own ``buffer`` rows, if so many fit, else among all."""
    random = np.random.default_rng(list(seed))
    if buffer >= CHUNK:
        return random.permutation(rows)
    return np.concatenate([start + random.permutation(min(buffer, rows - start)) for start in range(0, rows, buffer)])
