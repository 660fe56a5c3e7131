"""SVMlight and Vowpal Wabbit text: parsed as a plain reader parses it, learned as the same rows from elsewhere."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

from adagrad.cli import sparsefile
from adagrad.cli.csvfile import delimiter_hint
from adagrad.cli.hashing import hash_bytes
from adagrad.cli.model import Model
from adagrad.cli.sources import COLUMNS, SVMLIGHT, VW, form_of
from adagrad.sklearn import AdagradClassifier
from cli_tools import clicks, fast_pictures, model_state, read_csv, run, succeed, write_csv

__all__ = ["fast_pictures"]

SMALL = ("--bits", 12)
LEAVE_OUT = "(--bad-rows skip leaves such rows out"


class Row(NamedTuple):
    label: str
    weight: str
    tag: str
    names: list[str]
    keys: list[int]
    values: list[float]
    line: int


def split(text: str) -> list[str]:
    """The words between spaces and control characters; other spaces of Unicode belong to a word."""
    return [word for word in "".join(letter if letter > " " else " " for letter in text).split(" ") if word]


def plain_svmlight(text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        words = split(line.partition("#")[0])
        if words:
            label = words.pop(0) if ":" not in words[0] else ""
            tag = words.pop(0)[4:] if words and words[0].startswith("qid:") else ""
            pairs = [word.split(":") for word in words]
            names, values = [name for name, _ in pairs], [float(np.float32(float(value))) for _, value in pairs]
            rows.append(Row(label, "1", tag, names, [int(name) for name in names], values, number))
    return rows


def plain_vw(text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not split(line):
            continue
        head, *spaces = line.split("|")
        words = split(head)
        tag = words.pop().removeprefix("'") if words and (words[-1][0] == "'" or head[-1] > " ") else ""
        label, weight = ([*words, "", ""])[:2]
        row = Row(label, weight or "1", tag, [], [], [], number)
        for space in spaces:
            first, *features = split(space) if space[:1] > " " else ["", *split(space)]
            name, _, scale = first.partition(":")
            for feature in features:
                word, _, value = feature.partition(":")
                row.names.append(f"{name}^{word}" if name else word)
                row.keys.append(hash_bytes(word.encode(), hash_bytes(name.encode())))
                row.values.append(float(np.float32(float(value or 1) * float(scale or 1))))
        rows.append(row)
    return rows


def number(rng: np.random.Generator) -> str:
    x = float(rng.normal() * 10.0 ** rng.integers(-3, 4))
    return [f"{x:.3g}", f"{x:.17g}", f"{x:.1e}", f"{round(x)}", f"+{abs(x):.9f}", f"{x:.25f}"][rng.integers(6)]


def random_svmlight(rng: np.random.Generator) -> str:
    words = [["", "1", "-1", "+1.0", "cat"][rng.integers(5)], *(["qid:7"] if rng.random() < 0.3 else [])]
    words += [f"{rng.integers(0, 10**12)}:{number(rng)}" for _ in range(rng.integers(0, 6))]
    end = ["", " ", "\t", "  # a comment: 3:4", "#", "\r"][rng.integers(6)]
    return ["", " "][rng.integers(2)] + ["  ", " \t", "\x01", "\x1f "][rng.integers(4)].join(filter(None, words)) + end


def random_vw(rng: np.random.Generator) -> str:
    head = " ".join(["1", "-1 0.5", "", "2.5e1 3"][rng.integers(4)].split() + [["'t1"], []][rng.integers(2)])
    head += ["", " ", "\t "][rng.integers(3)]
    spaces = []
    for _ in range(rng.integers(1, 4)):
        name = ["", "site", "a:0.25", "über\u3000größe:2"][rng.integers(4)]
        features = []
        for _ in range(rng.integers(0, 5)):
            word = "".join(chr(rng.integers(97, 123)) for _ in range(rng.integers(1, 40)))
            word += ["", "", "\u3000", "\x85a"][rng.integers(4)]
            scale = f":{number(rng)}" if rng.random() < 0.5 else ""
            features.append(word + (scale if len(scale) < 20 else ""))  # a hard number times a factor is rounded once more
        spaces.append(f"|{name} " + ["  ", "\x02"][rng.integers(2)].join(features) + ["", " "][rng.integers(2)])
    return head + "".join(spaces) + ["", "\r"][rng.integers(2)]


@pytest.mark.parametrize("form", [SVMLIGHT, VW])
@pytest.mark.parametrize("block", [1, 50, 1 << 20])
def test_rows_are_those_of_a_plain_reader(form: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsefile, "_BLOCK", block)
    rng = np.random.default_rng(block)
    draw, plain = {SVMLIGHT: (random_svmlight, plain_svmlight), VW: (random_vw, plain_vw)}[form]
    lines = [draw(rng) if rng.random() < 0.9 else "" for _ in range(150)]
    for end in ("", "\n"):
        text = "\n".join(lines) + end
        found = []
        file = io.BytesIO("\ufeff".encode() + text.encode())
        for part in sparsefile.read_sparse("x", file, lambda: 0, form=form, choose=lambda _, names: names, skip_bad=False):
            texts = [part.column(name).cast(pa.string()).to_pylist() for name in COLUMNS[form][:-1]]
            if form == SVMLIGHT:
                texts.insert(1, ["1"] * part.rows)
            for i, entries in enumerate(part.column("features").to_pylist()):
                keys, values = ([entry[name] for entry in entries] for name in (("index", "hash")[form == VW], "value"))
                names = [part.feature(i, j) for j in range(len(keys))]
                line = int(part.where(i).removeprefix("x, line "))
                found.append(Row(*(column[i] for column in texts), names, keys, values, line))
        assert found == plain(text)
        assert len(found) > 100


@pytest.mark.parametrize(
    ("form", "line", "message"),
    [
        (SVMLIGHT, "1 3:1 x:2", "'x:2' is no index:value, with a whole number below 10**18 for the index"),
        (SVMLIGHT, "1 3", "'3' is no index:value"),
        (SVMLIGHT, "1 -3:1", "'-3:1' is no index:value"),
        (SVMLIGHT, f"1 {10**19}:1", f"'{10**19}:1' is no index:value"),
        (SVMLIGHT, "1 3:one", "'3:one' has a value that is not a finite number"),
        (SVMLIGHT, "1 3:", "'3:' has a value that is not a finite number"),
        (SVMLIGHT, "1 3:nan", "'3:nan' has a value that is not a finite number"),
        (SVMLIGHT, "1 3:1e", "'3:1e' has a value that is not a finite number"),
        (SVMLIGHT, "1 3:1e39", "column 'features': '1 3:1e39' has a value that float32 can't hold"),
        (SVMLIGHT, "1 4096:1", "column 'features': '1 4096:1' has an index of 2**12 or more: --bits 13 has room for it"),
        (SVMLIGHT, f"1 {2**31}:1", f"'1 {2**31}:1' has an index of 2**12 or more: 2**30 is the most there can be"),
        (SVMLIGHT, "3:1", "column 'label': the value is missing"),
        (SVMLIGHT, "maybe 3:1", "column 'label': 'maybe' is not a number"),
        (VW, "1 f a", "'1' begins a line without a | before its features"),
        (VW, "1 2 0.5 |f a", "'0.5' is a third number before the features; an initial prediction can't be used"),
        (VW, "1:2:0.5 |f a", "'1:2:0.5' is no label; those of cost-sensitive and bandit learning can't be used"),
        (VW, "1 |f a:b", "'a:b' has a value that is not a finite number"),
        (VW, "1 |f a:1:2", "'a:1:2' has a value that is not a finite number"),
        (VW, "1 |f :2", "':2' is a feature without a name"),
        (VW, "1 |f:x a", "'|f:x' is a namespace with a value that is not a plain number"),
        (VW, "1 -2 |f a", "column 'weight': '-2' is not a weight (a finite number, not negative)"),
        (VW, "|f a", "column 'label': the value is missing"),
        (VW, "1 |f a:1e300", "column 'features': '1 |f a:1e300' has a value that float32 can't hold"),
    ],
)
def test_bad_rows(form: str, line: str, message: str, tmp_path: Path) -> None:
    good = ["1 1:1", "-1 2:1"] if form == SVMLIGHT else ["1 |f a", "-1 |f b"]
    data = tmp_path / f"t.{form}"
    data.write_text("\n".join([*good * 20, "", line, *good]) + "\n")
    refused = run("train", data, *SMALL, "--out", tmp_path / "m")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert f"{data}, line 42" in refused.err
    assert message in refused.err
    assert LEAVE_OUT in refused.err
    made = succeed("train", data, *SMALL, "--bad-rows", "skip", "--out", tmp_path / "m")
    figures = json.loads((tmp_path / "m" / "metrics.json").read_text())
    assert (figures["rows"], sum(figures["dropped"].values())) == (42, 1)
    assert "not in the format" in made.out


def vw_of(table: dict[str, list[Any]], names: list[str]) -> str:
    rows = zip(table["click"], *(table[name] for name in names), strict=True)
    return "".join(f"{label} {''.join(f'|{n} {v} ' for n, v in zip(names, values, strict=True))}\n" for label, *values in rows)


def test_vw_rows_are_a_csv_s_categories(tmp_path: Path) -> None:
    table = clicks(700)
    names = ["site", "user_id"]
    write_csv(tmp_path / "t.csv", {name: table[name] for name in ("click", *names)})
    (tmp_path / "t.vw").write_text(vw_of(table, names))
    succeed("train", tmp_path / "t.csv", "--target", "click", *SMALL, "--out", tmp_path / "csv")
    made = succeed("train", tmp_path / "t.vw", *SMALL, "--out", tmp_path / "vw")
    first, second = (Model.load(str(tmp_path / name)) for name in ("csv", "vw"))
    np.testing.assert_array_equal(first.coef, second.coef)
    np.testing.assert_array_equal(first.features.seen, second.features.seen)
    assert second.labels.classes == ["0", "1"]
    assert "features features with their values names" in " ".join(made.out.split())
    strongest = [json.loads((tmp_path / name / "metrics.json").read_text())["strongest"] for name in ("csv", "vw")]
    assert [f["feature"].replace("=", "^") for f in strongest[0]] == [f["feature"] for f in strongest[1]]
    for one, other in zip(*strongest, strict=True):
        assert one["spread"] == pytest.approx(other["spread"], rel=1e-12)


def test_svmlight_rows_are_learned_as_scikit_learn_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = np.where(rng.random((500, 40)) < 0.2, rng.normal(size=(500, 40)), 0.0).astype(np.float32)
    y = np.where(X[:, :10].sum(1) > 0, 1, -1)
    for name, zero in (("zero.svm", True), ("one.svmlight", False)):
        data = tmp_path / name
        dump_svmlight_file(X, y, str(data), zero_based=zero)
        succeed("train", data, *SMALL, "--holdout-last", 0.2, "--out", tmp_path / "m")
        read, labels = load_svmlight_file(str(data), dtype=np.float32, n_features=2**12, zero_based=True)
        expected = AdagradClassifier().partial_fit(read[:400], labels[:400].astype(int), classes=[-1, 1])
        model = Model.load(str(tmp_path / "m"))
        np.testing.assert_array_equal(model.coef, expected.coef_)
        assert model.labels.classes == ["-1", "1"]
        predictions = read_csv(succeed("predict", tmp_path / "m", data, "--keep", "label,qid").out)
        np.testing.assert_allclose(np.array(predictions["p_1"], float), expected.predict_proba(read)[:, 1], rtol=1e-12)
        assert predictions["label"] == [str(label) for label in y]
    # What a feature does is its weight times how its values spread, zeros among them.
    strongest = json.loads((tmp_path / "m" / "metrics.json").read_text())["strongest"]
    spreads = {f["feature"]: f["spread"] for f in strongest}
    for name, spread in spreads.items():
        assert spread == pytest.approx(X[:400, int(name) - 1].std(), rel=1e-4)


def test_importance_is_a_weight_and_a_tag_is_kept(tmp_path: Path) -> None:
    table = clicks(300)
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 4, 300) / 2
    rows = zip(table["click"], weights, table["site"], strict=True)
    (tmp_path / "t.txt").write_text("".join(f"{y} {w} row{i}|site {s}\n" for i, (y, w, s) in enumerate(rows)))
    write_csv(tmp_path / "t.csv", {"click": table["click"], "w": weights.tolist(), "site": table["site"]})
    succeed("train", tmp_path / "t.txt", "--format", "vw", *SMALL, "--out", tmp_path / "vw")
    succeed("train", tmp_path / "t.csv", "--target", "click", "--weight", "w", *SMALL, "--out", tmp_path / "csv")
    first, second = (Model.load(str(tmp_path / name)) for name in ("vw", "csv"))
    np.testing.assert_array_equal(first.coef, second.coef)
    # A file whose name says nothing is read as what the model learned from.
    kept = read_csv(succeed("predict", tmp_path / "vw", tmp_path / "t.txt", "--keep", "tag,weight").out)
    assert kept["tag"] == [f"row{i}" for i in range(300)]
    assert kept["weight"] == [str(w) for w in weights]
    assert (
        "features with their values can't be copied"
        in run("predict", tmp_path / "vw", tmp_path / "t.txt", "--keep", "features").err
    )


@pytest.mark.parametrize("way", ["gz", "pipe", "folder", "resumed"])
def test_however_the_rows_come(way: str, tmp_path: Path) -> None:
    text = vw_of(clicks(900), ["site", "user_id"])
    data = tmp_path / "t.vw"
    data.write_text(text)
    more = ("--shuffle", 50, *SMALL)
    succeed("train", data, *more, "--out", tmp_path / "whole")
    out = tmp_path / "m"
    if way == "gz":
        (tmp_path / "t.vw.gz").write_bytes(gzip.compress(text.encode()))
        succeed("train", tmp_path / "t.vw.gz", *more, "--out", out)
    elif way == "pipe":
        succeed("train", "-", "--format", "vw", *more, "--out", out, stdin=text.encode())
    elif way == "folder":
        lines = text.splitlines(keepends=True)
        (tmp_path / "parts").mkdir()
        for k in range(3):
            (tmp_path / "parts" / f"{k}.vw").write_text("".join(lines[300 * k : 300 * k + 300]))
        succeed("train", tmp_path / "parts", *more, "--out", out)
    else:
        state = tmp_path / "c.state"
        succeed("train", data, *more, "--checkpoint", state, "--checkpoint-every", 1, "--out", out)
        made = succeed("train", data, *more, "--checkpoint", state, "--checkpoint-every", 1, "--resume", "--out", out)
        assert "900 learned from" in made.out
    assert model_state(tmp_path / "whole") == model_state(out)


def test_the_complete_command_says_what_a_format_means(tmp_path: Path) -> None:
    data = tmp_path / "t.vw"
    data.write_text(vw_of(clicks(200), ["site"]))
    succeed("train", data, *SMALL, "--out", tmp_path / "m")
    command = json.loads((tmp_path / "m" / "metrics.json").read_text())["command"]
    assert " --target label " in command
    assert " --weight weight " in command
    assert " --ignore tag " in command
    succeed(*command.split(" ")[1:-1], tmp_path / "again")
    same = ["task_reason", "columns"]
    assert model_state(tmp_path / "m", but=same) == model_state(tmp_path / "again", but=same)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("t.vw", "--delimiter", ";"), "--delimiter is for CSV, but t.vw is read as vw"),
        (("t.vw", "--categorical", "features"), "--categorical features: the column holds features with their values"),
        (("t.vw", "--target", "click"), "--target: no column 'click' in t.vw; it has: label, weight, tag, features"),
        (("t.svm", "--numeric", "qid"), "--numeric qid: a number can't stand beside indices, which are slots themselves"),
        (("t.txt", "--target", "y"), "--target: no column 'y' in t.txt; it has: 1 |site a; try --format vw"),
        (("u.txt", "--target", "y"), "--target: no column 'y' in u.txt; it has: 1 3:0.5; try --format svmlight"),
        (("t.svm", "--weight", "qid", "--ignore", "features"), "no column is left to learn from"),
        (("t.txt",), "--target COLUMN is needed: the column to learn (none with --format svmlight or vw)"),
        (("t.svm", "--format", "vw"), "t.svm, line 1: '1' begins a line without a | before its features"),
        (("zero.vw",), "zero.vw is no text: it holds zero bytes"),
        (("empty.vw",), "empty.vw is empty"),
        (("blank.vw",), "blank.vw: there is no row of data"),
        (("t.vw", "--format", "arff"), "Invalid value for '--format'"),
    ],
)
def test_refusals(arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "t.vw": "1 |site a\n0 |site b\n", "t.svm": "1 qid:3 3:0.5\n-1 qid:4 4:1\n", "t.txt": "1 |site a\n0 |site b\n",
        "u.txt": "1 3:0.5\n0 4:1\n", "zero.vw": "1 |a\0b c\n", "empty.vw": "", "blank.vw": "\n\n",
    }.items():  # fmt: skip
        Path(name).write_text(text)
    refused = run("train", *arguments, *SMALL, "--out", "m")
    assert refused.code > 0
    assert message in refused.err


def test_a_model_is_not_given_rows_of_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.vw").write_text("1 |site a\n0 |site b\n")
    Path("t.svm").write_text("1 3:0.5\n0 4:1\n")
    succeed("train", "t.vw", *SMALL, "--out", "m")
    refused = run("predict", "m", "t.svm")
    assert "t.svm: its features are indices, the model learned from names" in refused.err
    write_csv(Path("t.csv"), clicks(5))
    assert "t.csv has no column 'features'" in run("predict", "m", "t.csv", "--format", "csv").err
    more = succeed("train", "t.vw", "--start-from", "m", "--out", "more")
    assert "2 learned from" in more.out


def test_forms_by_name() -> None:
    names = ("a.vw", "A.VW.GZ", "a.svm", "a.svmlight.gz", "a.libsvm", "a.csv", "vw", "-")
    assert [form_of(name) for name in names] == [VW, VW, *[SVMLIGHT] * 3, "csv", "csv", "csv"]
    assert form_of("a.txt", usual=VW) == form_of("a.svm", VW) == VW
    for header in (["click|site"], ["1|2"], ["user id|site name"], ["a b:c"], ["click", "site"]):
        assert "--format" not in delimiter_hint(header)


# -- hinge losses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "classes"), [("hinge", 2), ("squared_hinge", 3)])
def test_hinge_losses_are_judged_by_margins(loss: str, classes: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 6)).astype(np.float32)
    y = (X[:, :classes] + 0.5 * rng.normal(size=(600, classes))).argmax(1)
    dump_svmlight_file(X, y, str(tmp_path / "t.svm"))
    made = succeed("train", tmp_path / "t.svm", "--loss", loss, "--holdout-last", 0.25, *SMALL, "--out", tmp_path / "m")
    read = load_svmlight_file(str(tmp_path / "t.svm"), dtype=np.float32, n_features=2**12)[0]
    expected = AdagradClassifier(loss=loss).partial_fit(read[:450], y[:450], classes=range(classes))
    np.testing.assert_array_equal(Model.load(str(tmp_path / "m")).coef, expected.coef_)
    margins = expected.decision_function(read).reshape(600, -1)
    margins = np.hstack([-margins, margins]) if classes == 2 else margins
    table = read_csv(succeed("predict", tmp_path / "m", tmp_path / "t.svm").out)
    found = np.column_stack([np.array(table[f"margin_{k}"], float) for k in range(classes)])
    np.testing.assert_allclose(found, margins, rtol=1e-12)

    figures = json.loads((tmp_path / "m" / "metrics.json").read_text())
    held = figures["held_out"]["table"]
    signs = np.where(np.arange(classes) == y[450:, None], 1.0, -1.0)
    missing = np.maximum(0.0, 1.0 - signs * margins[450:])[:, classes == 2 :]
    assert held["adagrad"][loss] == pytest.approx((missing**2 if loss == "squared_hinge" else missing).sum(1).mean())
    assert held["adagrad"]["accuracy"] == pytest.approx((margins[450:].argmax(1) == y[450:]).mean())
    assert held["adagrad"]["auc"] > 0.8
    assert held["adagrad"][loss] < min(held["constant"][loss], held["running mean"][loss])
    most = np.bincount(y[:450]).argmax()
    assert held["constant"]["accuracy"] == pytest.approx((y[450:] == most).mean())
    assert held["SGDClassifier"]["accuracy"] > held["constant"]["accuracy"]
    assert figures["online"]["loss"] == pytest.approx(_online(expected, read[:450], y[:450], loss, classes))
    assert f"{loss.replace('_', ' ')} loss" in made.out
    assert not (tmp_path / "m" / "calibration.png").exists()
    assert f"<th>{loss.replace('_', ' ')} loss</th>" in (tmp_path / "m" / "report.html").read_text()


def _online(model: AdagradClassifier, X: Any, y: np.ndarray, loss: str, classes: int) -> float:
    margins = model.progressive_prediction_.reshape(len(y), -1)
    signs = np.where(np.arange(classes) == y[:, None], 1.0, -1.0)[:, classes == 2 :]
    missing = np.maximum(0.0, 1.0 - signs * margins)
    return float((missing**2 if loss == "squared_hinge" else missing).sum(1).mean())
