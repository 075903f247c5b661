"""Draws the serving benchmark: throughput against p95 latency, one line per row."""

from pathlib import Path
from typing import Any


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw one panel per shape, a point per number of clients."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = report["measured"]
    figure, panels = pyplot.subplots(1, len(shapes), figsize=(7 * len(shapes), 5), squeeze=False)
    for axes, shape in zip(panels[0], shapes, strict=True):
        for line in shape["rows"]:
            cells = {
                clients: cell
                for clients, cell in line["closed_loop"].items()
                if "latency_ms_p95" in cell  # else nothing was answered
            }
            if not cells:
                continue
            across = [cell["latency_ms_p95"] for cell in cells.values()]
            up = [cell["tokens_per_second"] for cell in cells.values()]
            axes.plot(across, up, marker="o", label=line["row"])
            for clients, place in zip(cells, zip(across, up, strict=True), strict=True):
                axes.annotate(clients, place, fontsize=7)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="p95 latency in ms",
            ylabel="tokens per second",
            title=f"{shape['shape']}, answers of {shape['answer_tokens']} tokens, 1-64 clients",
        )
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
