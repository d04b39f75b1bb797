"""The picture of a probe: latency over time, what happened meanwhile, and what failed."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.ticker import LogFormatter

from tests.hosts.probe import KINDS, Probe

DOTS_PER_INCH = 72


def draw(probe: Probe, path: Path) -> None:
    """Write the picture as SVG, its dots as pixels: as shapes they would take ten times the space."""
    # The same samples give the same file.
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "probe", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
        for kind in KINDS:
            samples = [sample for sample in probe.samples if sample.kind == kind and not sample.failed]
            times, latencies = [s.at - probe.begin for s in samples], [s.seconds * 1000 for s in samples]
            # Without half-tones the pixels take half the bytes.
            axes.scatter(times, latencies, s=2, linewidths=0, antialiased=False, label=kind, rasterized=True)
        failed = probe.failed
        times, latencies = [s.at - probe.begin for s in failed], [s.seconds * 1000 for s in failed]
        axes.scatter(times, latencies, s=20, marker="x", color="red", label=f"failed: {len(failed)}")
        for at, name in probe.marks:
            is_switch = name == "switch"
            axes.axvline(at - probe.begin, color="black" if is_switch else "grey", linestyle="-" if is_switch else ":")
            axes.annotate(
                name, (at - probe.begin, 1), xycoords=("data", "axes fraction"), rotation=90, va="top", ha="right"
            )
        axes.set(xlabel="seconds", ylabel="milliseconds", yscale="log", title=f"{len(probe.samples):,} requests")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=len(KINDS) + 1, markerscale=2, frameon=False)
        figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Date": None})
        plt.close(figure)
