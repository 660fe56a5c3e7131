"""Whatever a user gets wrong ends in one line on standard error and a status that is not zero; nothing is half written."""

import contextlib
import io
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
from pyarrow import parquet

from adagrad import state
from adagrad.cli import main
from cli_tools import clicks, fast_pictures, run, succeed, write_csv  # noqa: F401

SMALL = ["--bits", "10"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a model and some broken files, in which all commands of this module run."""
    folder = tmp_path_factory.mktemp("errors")
    write_csv(folder / "good.csv", clicks(300))
    table = clicks(300)
    table["price"][199] = "cheap"
    table["when"][250] = "yesterday"
    write_csv(folder / "bad.csv", table)
    write_csv(folder / "gap.csv", {**clicks(300), "click": [*clicks(300)["click"][:120], None, *clicks(300)["click"][121:]]})
    write_csv(folder / "weights.csv", {**clicks(300), "w": [1.0] * 50 + [-1.0] + [1.0] * 249})
    write_csv(folder / "target.csv", {**clicks(300), "w": [0.5] * 48 + ["inf"] + [1.5] * 251})
    write_csv(folder / "one.csv", {**clicks(300), "click": [1] * 300})
    (folder / "empty.csv").write_text("")
    (folder / "header.csv").write_text("click,site\n")
    (folder / "ragged.csv").write_text("click,site\n1,a\n0,b\n1\n0,c,d\n")
    (folder / "semi.csv").write_text("click;site\n1;a\n0;b\n")
    (folder / "comma.csv").write_text("click;price\n1;0,5\n0;1,5\n")
    (folder / "pipe.csv").write_text("click|site\n1|a\n")
    (folder / "nested").mkdir()
    succeed("train", folder / "good.csv", "--target", "click", "--out", folder / "model", *SMALL)
    shutil.copytree(folder / "model", folder / "damaged")
    data = (folder / "damaged" / "model.safetensors").read_bytes()
    (folder / "damaged" / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return folder


TRAIN = ["train", "good.csv", "--target", "click"]
LEAVE_OUT = "(--bad-rows skip leaves such rows out)"

CASES: list[tuple[list[str], int, str]] = [
    # flags
    (["train", "good.csv"], 1, "--target COLUMN is needed: the column to learn"),
    ([*TRAIN, "--bits", "31"], 1, "--bits must be from 1 to 30, got 31"),
    ([*TRAIN, "--epochs", "0"], 1, "--epochs must be a whole number of at least 1, got 0"),
    ([*TRAIN, "--shuffle", "1"], 1, "--shuffle must be a whole number of at least 2, got 1"),
    ([*TRAIN, "--batch-size", "0"], 1, "--batch-size must be a whole number of at least 1, got 0"),
    ([*TRAIN, "--seed", "-1"], 1, "--seed must be a whole number of at least 0, got -1"),
    ([*TRAIN, "--holdout-last", "1"], 1, "--holdout-last must be a share between 0 and 1, got 1"),
    ([*TRAIN, "--holdout-random", "nan"], 1, "--holdout-random must be a share between 0 and 1, got nan"),
    ([*TRAIN, "--holdout-last", "0.001"], 1, "--holdout-last 0.001 of 300 rows leaves nothing to train on or to judge by"),
    (
        [*TRAIN, "--holdout-last", "0.1", "--test", "good.csv"],
        1,
        "give at most one of --test, --holdout-last and --holdout-random",
    ),
    ([*TRAIN, "--resume"], 1, "--resume needs --checkpoint FILE"),
    ([*TRAIN, "--checkpoint-every", "5"], 1, "--checkpoint-every needs --checkpoint FILE"),
    ([*TRAIN, "--checkpoint", ""], 1, "--checkpoint must not be empty"),
    ([*TRAIN, "--checkpoint", "nested"], 1, "--checkpoint nested: this is not a regular file"),
    ([*TRAIN, "--out", ""], 1, "--out must not be empty"),
    (
        ["train", "-", "--target", "click", "--test", "-"],
        1,
        "'-', standard input, can't be both what to learn from and the file of --test",
    ),
    ([*TRAIN, "--delimiter", "||"], 1, "--delimiter must be one ASCII character, got '||'"),
    ([*TRAIN, "--learning-rate", "-1"], 1, "learning_rate must be in [0, inf), got -1"),
    ([*TRAIN, "--learning-rate", "nan"], 1, "learning_rate must be in [0, inf), got nan"),
    (
        [*TRAIN, "--learning-rate", "fast"],
        1,
        "--learning-rate must be a number or a schedule in JSON, {\"class_name\": ...}, got 'fast'",
    ),
    ([*TRAIN, "--clipnorm", "0"], 1, "clipnorm must be in (0, inf"),
    (
        [*TRAIN, "--clipnorm", "1", "--clipvalue", "1"],
        1,
        "at most one of clipnorm, clipvalue, global_clipnorm may be set, got clipnorm=1.0, clipvalue=1.0",
    ),
    # columns
    (["train", "good.csv", "--target", "clik"], 1, "--target: no column 'clik' in good.csv; did you mean 'click'?"),
    ([*TRAIN, "--weight", "w"], 1, "--weight: no column 'w' in good.csv; it has: click, site, user_id, price, when"),
    (
        [*TRAIN, "--categorical", "site,zip"],
        1,
        "--categorical: no column 'zip' in good.csv; it has: click, site, user_id, price, when",
    ),
    (
        [*TRAIN, "--cross", "site:price"],
        1,
        "--cross site:price: 'price' is float, role number; a cross joins categories; add --categorical price",
    ),
    ([*TRAIN, "--ignore", "site,user_id,price,when"], 1, "no column is left to learn from"),
    (
        ["train", "good.csv", "--target", "when"],
        1,
        "--target when: the column has the type timestamp; a target is text, a boolean or a number",
    ),
    # values
    (
        ["train", "bad.csv", "--target", "click", "--numeric", "price", "--ignore", "when"],
        1,
        f"bad.csv, line 201, column 'price': 'cheap' is not a number {LEAVE_OUT}",
    ),
    (
        ["train", "bad.csv", "--target", "click", "--numeric", "price", "--timestamp", "when"],
        1,
        f"bad.csv, line 201, column 'price': 'cheap' is not a number {LEAVE_OUT}",
    ),
    (
        ["train", "bad.csv", "--target", "click", "--categorical", "price", "--timestamp", "when"],
        1,
        f"bad.csv, line 252, column 'when': 'yesterday' is not a time (YYYY-MM-DD hh:mm:ss) {LEAVE_OUT}",
    ),
    (["train", "gap.csv", "--target", "click"], 1, f"gap.csv, line 122, column 'click': the value is missing {LEAVE_OUT}"),
    (
        ["train", "weights.csv", "--target", "click", "--weight", "w"],
        1,
        f"weights.csv, line 52, column 'w': '-1.0' is not a weight (a finite number, not negative) {LEAVE_OUT}",
    ),
    (
        ["train", "bad.csv", "--target", "price", "--task", "regression", "--ignore", "when"],
        1,
        f"bad.csv, line 35, column 'price': the value is missing {LEAVE_OUT}",
    ),
    (
        ["train", "good.csv", "--target", "site", "--classes", "site-0,site-1"],
        1,
        "good.csv, line 2, column 'site': 'site-5' is a new class; known are site-0, site-1: give all of them "
        f"by --classes {LEAVE_OUT}",
    ),
    (["train", "target.csv", "--target", "w"], 1, f"target.csv, line 50, column 'w': 'inf' is not a finite number, smaller than 1e+140 {LEAVE_OUT}"),
    (["train", "one.csv", "--target", "click"], 1, "--target click: there is only the class '1'"),
    # files
    (["train", "nowhere.csv", "--target", "click"], 1, "nowhere.csv: no such file or folder"),
    (
        ["train", "nested", "--target", "click"],
        1,
        "nested: no file in this folder ends in .csv, .tsv, .svm, .svmlight, .libsvm, .vw, .csv.gz, ",
    ),
    (["train", "empty.csv", "--target", "click"], 1, "empty.csv is empty"),
    (["train", "header.csv", "--target", "click"], 1, "header.csv: there is no row of data"),
    (["train", "ragged.csv", "--target", "click"], 1, f"ragged.csv, line 4: 1 columns where the header has 2 {LEAVE_OUT}"),
    (["train", "-", "good.csv", "--target", "click"], 1, "'-', standard input, can't be mixed with files"),
    ([*TRAIN, "--test", "header.csv"], 1, "there is no held-out row to judge by"),
    ([*TRAIN, "--test", "ragged.csv"], 1, "ragged.csv has no column 'user_id'; it has: click, site"),
    ([*TRAIN, "--out", "good.csv"], 1, "good.csv: file exists"),
    ([*TRAIN, "--checkpoint", "no/such/c.state"], 1, "there is no such folder"),
    ([*TRAIN, "--start-from", "nowhere"], 1, "nowhere: no such file or folder"),
    # predict
    (["predict", "nowhere", "good.csv"], 1, "nowhere: no such file or folder"),
    (["predict", "nested", "good.csv"], 1, "nested/model.safetensors: no such file or folder"),
    (["predict", "good.csv", "good.csv"], 1, "good.csv can't be read as a state file"),
    (["predict", "damaged", "good.csv"], 1, "damaged/model.safetensors can't be read as a state file"),
    (["predict", "model", "nowhere.csv"], 1, "nowhere.csv: no such file or folder"),
    (["predict", "model", "header.csv"], 1, "header.csv: there is no row of data"),
    (
        ["predict", "model", "good.csv", "--keep", "zip"],
        1,
        "good.csv has no column 'zip'; it has: click, site, user_id, price, when",
    ),
    (["predict", "model", "good.csv", "--keep", "site,site"], 1, "--keep site: the output would have two columns of this name"),
    (["predict", "model", "bad.csv"], 1, f"bad.csv, line 201, column 'price': 'cheap' is not a number {LEAVE_OUT}"),
    (["predict", "model", "good.csv", "--out", "no/such/p.csv"], 1, "no/such/p.csv: no such file or folder"),
    (["predict", "model", "good.csv", "--out", "nested"], 1, "nested: is a directory"),
    (
        ["predict", "model", "good.csv", "--out", "p.xlsx"],
        1,
        "--out p.xlsx: it must end in .csv, .csv.gz, .parquet, .pq, or be - for standard output",
    ),
    (["train", "semi.csv", "--target", "click"], 1, "'click' in semi.csv; it has: click;site; try --delimiter ';'"),
    (["train", "comma.csv", "--target", "click"], 1, f"2 columns where the header has 1 {LEAVE_OUT}; try --delimiter ';'"),
    (["predict", "model", "pipe.csv"], 1, "it has: click|site; try --delimiter '|'"),
    (["predict", "model", "good.csv", "--out", "/dev/full"], 1, "/dev/full: the disk is full"),
    # usage
    (["train", "good.csv", "--foo"], 2, "No such option: --foo"),
    (["train"], 2, "Missing argument 'DATA...'"),
    (["learn", "good.csv"], 2, "No such command 'learn'"),
    ([*TRAIN, "--bits", "many"], 2, "Invalid value for '--bits'"),
    ([*TRAIN, "--task", "guess"], 2, "Invalid value for '--task'"),
    ([*TRAIN, "--bad-rows", "mend"], 2, "Invalid value for '--bad-rows'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "message"), CASES, ids=[" ".join(case[0]) for case in CASES])
def test_one_line_and_a_status(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(str(path) for path in folder.rglob("*"))
    train = arguments[0] == "train" and "--out" not in arguments
    result = run(*arguments, *(["--out", "out"] if train and code == 1 else []))
    assert (result.code, result.err.count("\n")) == (code, 1), result.err
    if code == 1:
        assert result.err.startswith("adagrad: ")
    assert message in result.err
    assert "Traceback" not in result.err
    after = {str(path) for path in folder.rglob("*")} - {str(folder / "out")}
    assert after == set(before) - {str(folder / "out")}


@pytest.mark.parametrize("option", [["--epochs", "2"], ["--holdout-last", "0.1"], ["--holdout-random", "0.1"]])
def test_a_pipe_can_not_be_read_twice(tmp_path: Path, option: list[str]) -> None:
    data = write_csv(tmp_path / "t.csv", clicks(20)).read_bytes()
    result = run("train", "-", "--target", "click", *option, "--out", tmp_path / "m", stdin=data)
    expected = f"adagrad: {option[0]} reads the rows more than once, which standard input and pipes can't: give a file\n"
    assert (result.code, result.err) == (1, expected)


def test_parquet_through_a_pipe_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    parquet.write_table(pa.table({"y": [0, 1]}), tmp_path / "t.parquet")
    result = run("train", "-", "--target", "y", "--out", tmp_path / "m", stdin=(tmp_path / "t.parquet").read_bytes())
    assert (result.code, result.err) == (1, "adagrad: Parquet can't be read from standard input: give the file's name\n")


def test_bad_rows_are_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    train = ["train", folder / "bad.csv", "--target", "click", "--numeric", "price", "--timestamp", "when", *SMALL]
    result = succeed(*train, "--bad-rows", "skip", "--out", tmp_path / "m")
    assert "Rows: 298 learned from; dropped: 2 (2 with a bad value, 0 with another number of columns)" in result.out


def run_into(file: IO[str], *arguments: Any) -> tuple[int, str]:
    """Status and standard error of a command that writes to ``file``."""
    err = io.StringIO()
    with file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, err.getvalue()


@pytest.mark.parametrize("rows", [10, 20_000])
def test_a_closed_pipe_ends_the_command_quietly(folder: Path, tmp_path: Path, rows: int) -> None:
    data = write_csv(tmp_path / "t.csv", clicks(rows))
    reader, writer = os.pipe()
    os.close(reader)
    expected = (141, "adagrad: the reader of the output has gone\n")
    assert run_into(os.fdopen(writer, "w"), "predict", folder / "model", data) == expected


def test_a_full_disk_under_standard_output(folder: Path) -> None:
    command = ["predict", folder / "model", folder / "good.csv"]
    full = Path("/dev/full").open("w")  # noqa: SIM115 - closed in run_into
    assert run_into(full, *command) == (1, "adagrad: the disk is full\n")


@pytest.mark.parametrize(
    ("command", "victim"),
    [
        (["predict", "model", "good.csv", "--out", "p.csv"], "p.csv"),
        (["predict", "model", "good.csv", "--out", "p.parquet"], "p.parquet"),
        (["train", "good.csv", "--target", "click", "--out", "next", *SMALL], "next/model.safetensors"),
        (
            [
                "train",
                "good.csv",
                "--target",
                "click",
                "--out",
                "next",
                "--checkpoint",
                "c.state",
                "--checkpoint-every",
                "1",
                *SMALL,
            ],
            "c.state",
        ),
    ],
)
def test_a_disk_that_fills_up_leaves_the_old_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], victim: str
) -> None:
    """A limit on the size of files stands for the full disk."""
    for name in ("model", "good.csv"):
        (shutil.copytree if name == "model" else shutil.copy)(folder / name, tmp_path / name)
    (tmp_path / victim).parent.mkdir(exist_ok=True)
    (tmp_path / victim).write_bytes(b"old")

    monkeypatch.chdir(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        result = run(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.code == 1
    assert result.err == f"adagrad: {victim}: file too large\n"
    assert (tmp_path / victim).read_bytes() == b"old"
    assert not [name for name in os.listdir((tmp_path / victim).parent) if name.endswith(".tmp")]


def test_version_and_help(capfd: pytest.CaptureFixture[str]) -> None:
    import adagrad

    assert succeed("--version").out == f"adagrad {adagrad.__version__}\n"
    for command in ([], ["train"], ["predict"], ["demo"]):
        result = run(*command, "--help")
        assert result.code == 0
        assert "Usage: adagrad" in result.out
    train = " ".join(run("train", "--help").out.replace("│", " ").split())
    for words in ("too small for one pass", "--initial-accumul", "default: (0.05)", "--checkpoint-every"):
        assert words in train


def test_help_imports_no_heavy_package() -> None:
    program = (
        "import sys; from adagrad.cli import main; main(['train', '--help']); "
        "print([m for m in ('pyarrow', 'sklearn', 'scipy', 'matplotlib', 'pandas') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stderr == b"[]\n"


@pytest.mark.parametrize("package", ["typer", "pyarrow"])
def test_without_its_packages_the_command_says_what_to_install(package: str) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; from adagrad.cli import main; sys.exit(main(['inspect', 'x']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    needs = "the command line needs the packages of the extra 'cli'"
    assert (done.returncode, done.stderr) == (1, f"adagrad: {needs}: {package} is missing\n")


def test_nothing_asked_is_help() -> None:
    result = run()
    assert (result.code, result.err) == (2, "")
    assert "Usage: adagrad" in result.out


def test_ctrl_c_before_there_is_anything_to_stop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(state, "read", interrupted)
    result = run("predict", folder / "model", folder / "good.csv")
    assert (result.code, result.err) == (130, "adagrad: stopped\n")


def test_a_file_of_something_else_is_no_traceback(folder: Path, tmp_path: Path) -> None:
    """Whole and undamaged as a state file is, what it holds is not what `train` wrote."""
    file = tmp_path / "model.safetensors"
    arrays, content = state.read(folder / "model" / "model.safetensors")
    model = content["model"]
    for found, described, message in (
        (arrays, 1.5, "has model format None; this version reads 1 and 2"),
        (arrays, {**model, "names": 1.5}, "holds a model that this version can't read: AttributeError"),
        (arrays, {**model, "columns": {}}, "holds a model that this version can't read: StopIteration"),
        (arrays | {"slots": arrays["slots"] - 2**20}, model, "holds a model that this version can't read: IndexError"),
    ):
        state.write(file, found, content | {"model": described})
        refused = run("predict", file, folder / "good.csv")
        assert (refused.code, refused.out) == (1, "")
        assert refused.err.startswith(f"adagrad: {file} {message}")
