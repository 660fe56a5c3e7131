"""The online loss over the rows: ``curve.csv`` and ``curve.png``."""

import io
from pathlib import Path

from adagrad.cli.files import replacing, write_text
from adagrad.cli.judging import loss_name
from adagrad.cli.labels import Labels
from adagrad.cli.online import Online

__all__ = ["write_curve"]

_DRAWN = 80  # points in the picture: stretches long enough to show more than noise


def write_curve(online: Online, labels: Labels, held_out: float | None, folder: Path) -> None:
    """Write both files; ``held_out`` is the held-out loss, drawn as a line of its own."""
    points = online.curve()
    lines = ["rows,online_loss,online_loss_since_last,running_mean_loss"]
    lines += [f"{rows},{so_far!r},{since!r},{mean!r}" for rows, so_far, since, mean in points]
    write_text(folder / "curve.csv", "\n".join(lines) + "\n")
    with replacing(folder / "curve.png") as file:
        file.write(_picture(online.curve(_DRAWN), labels, held_out))


def _picture(points: list[tuple[int, float, float, float]], labels: Labels, held_out: float | None) -> bytes:
    """The curve as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.11, 0.13, 0.86, 0.78))
    rows = [point[0] for point in points]
    axes.plot(rows, [point[2] for point in points], color="#9ecae1", linewidth=1, label="online loss, stretch by stretch")
    axes.plot(rows, [point[1] for point in points], color="#08519c", linewidth=2, label="online loss so far")
    axes.plot(rows, [point[3] for point in points], color="#969696", linestyle="--", label="running mean so far")
    if held_out is not None:
        axes.axhline(held_out, color="#d94801", linewidth=1, label=f"held out: {held_out:.4f}")
    axes.set_xlabel("rows learned from")
    axes.set_ylabel("log loss (nats)" if (name := loss_name(labels)) == "log loss" else name)
    axes.set_title("Each row is predicted before it is learned from", fontsize=10)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()
