"""Draws the soak: memory and open files of each process over time, and when what was done to it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot(report: dict[str, Any], series: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw memory above open files; a grey band for each change."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (memory, files) = pyplot.subplots(2, 1, figsize=(10, 8), sharex=True)
    for found in series:
        minutes = [second / 60 for second in found["seconds"]]
        memory.plot(minutes, found["pss_mib"], label=found["process"], linewidth=1)
        files.plot(minutes, found["open_files"], linewidth=1)
    for change in report["changes"]:
        for axes in (memory, files):
            axes.axvspan(change["from_seconds"] / 60, change["to_seconds"] / 60, color="0.9")
        memory.annotate(
            change["name"],
            (change["from_seconds"] / 60, 1.01),
            xycoords=("data", "axes fraction"),
            rotation=20,
            fontsize=7,
        )
    memory.set(ylabel="PSS in MiB", yscale="log")
    files.set(ylabel="open files", xlabel="minutes of load")
    memory.legend(fontsize=6, ncols=3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
