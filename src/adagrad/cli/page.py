"""``report.html``: one run on one page that needs no other file, pictures included."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adagrad.cli.files import replacing, write_text
from adagrad.cli.judging import HEADS

__all__ = ["write_calibration", "write_page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; } pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; }
.warning { background: #fff3e0; padding: .4rem .8rem; border-left: 4px solid #d94801; }
"""


def write_calibration(reliability: Sequence[Sequence[float]], folder: Path) -> None:
    """``calibration.png``: how often what was predicted came true, of held-out rows in groups of about equal weight."""
    with replacing(folder / "calibration.png") as file:
        file.write(_picture(reliability))


def _picture(reliability: Sequence[Sequence[float]]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.14, 0.12, 0.82, 0.8))
    axes.plot([0, 1], [0, 1], color="#969696", linestyle="--", linewidth=1, label="predicted = actual")
    predicted, actual = [group[0] for group in reliability], [group[1] for group in reliability]
    axes.plot(predicted, actual, color="#08519c", marker="o", markersize=4, label="held-out rows, in groups of equal weight")
    axes.set_xlabel("mean predicted probability")
    axes.set_ylabel("share that came true")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_title("Calibration", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()


def write_page(figures: dict[str, Any], lines: Iterable[str], folder: Path) -> None:
    """Write ``report.html`` from what ``metrics.json`` holds, the printed report, and the pictures in ``folder``."""
    held = figures["held_out"]
    parts = [f"<h1>adagrad train: {html.escape(figures['target'])}</h1>"]
    rate = figures["rows_a_second"]
    speed = "" if rate is None else f", {rate:,.0f} rows a second"
    parts.append(f"<p>{figures['rows']:,} rows learned from{speed}; {_text(figures['task'])}.</p>")
    parts += [f'<p class="warning">{_text(warning)}</p>' for warning in figures["warnings"]]
    if held is None:
        parts.append("<h2>Not held out</h2><p>No rows were kept apart to judge the model by.</p>")
    else:
        parts.append(f"<h2>Held out: {held['rows']:,} rows</h2>")
        if held.get("note"):
            parts.append(f"<p>{_text(held['note'])}</p>")
        keys = list(next(iter(held["table"].values())))
        rows = [[name, *(row[key] for key in keys)] for name, row in held["table"].items()]
        parts.append(_table(["", *(HEADS[key] for key in keys)], rows))
    if figures["online"] is not None:
        online = figures["online"]
        parts.append(
            f"<p>Online loss {online['loss']:.4f} over {online['rows']:,} rows, each predicted before it was learned from; "
            f"a running mean's is {online['running_mean']:.4f}.</p>"
        )
    for picture, what in (("curve.png", "The online loss over the rows"), ("calibration.png", "Calibration of held-out rows")):
        if (folder / picture).exists():
            data = base64.b64encode((folder / picture).read_bytes()).decode()
            parts.append(f'<p><img alt="{what}" src="data:image/png;base64,{data}"></p>')
    columns = ("feature", "class", "weight", "spread", "strength", "rows")
    strongest = [[feature[key] or "" for key in columns] for feature in figures["strongest"]]
    if strongest:
        parts.append("<h2>Strongest features</h2>")
        parts.append(_table(["feature", "class", "weight", "spread", "|w| x spread", "rows"], strongest))
    parts.append(f"<h2>The complete command</h2><pre>{_text(figures['command'])}</pre>")
    parts.append(f"<h2>As it was printed</h2><pre>{_text(chr(10).join(lines))}</pre>")
    title = f"<title>adagrad train: {_text(figures['target'])}</title>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">{title}'
    head += f"<style>{_STYLE}</style>"
    body = "\n".join(parts)
    page = f"<!doctype html>\n<html lang=en><head>{head}</head>\n<body>\n{body}\n</body></html>\n"
    write_text(folder / "report.html", page)


def _text(value: object) -> str:
    return html.escape(str(value))


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def cell(value: Any) -> str:
        if value is None:
            return "-"
        return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else _text(value)

    head = "".join(f"<th>{_text(name)}</th>" for name in heads)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'
