"""A long run drawn: what was watched over time, a panel each, with the faults as lines."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bench.charts import LIGHT, WIDTH


def drawn(over_time: Mapping[str, Sequence[Sequence[float]]], faults: Sequence[Mapping[str, Any]]) -> Figure:
    """over_time: [seconds, value] by name, the name with its unit. faults: what happened, from_s and to_s."""
    theme = LIGHT
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06)
    figure = Figure(figsize=(WIDTH, 1.7 * len(over_time)), layout=layout, facecolor=theme.paper)
    panels = figure.subplots(len(over_time), 1, sharex=True, squeeze=False)[:, 0]
    whats = list(dict.fromkeys(each["what"] for each in faults))
    for panel, (name, series) in zip(panels, over_time.items(), strict=True):
        minutes, values = [each[0] / 60 for each in series], [each[1] for each in series]
        panel.plot(minutes, values, ".", markersize=3, color=theme.series[0])
        for each in faults:
            color = theme.series[1 + whats.index(each["what"]) % (len(theme.series) - 1)]
            label = each["what"] if each is next(one for one in faults if one["what"] == each["what"]) else None
            panel.axvspan(each["from_s"] / 60, max(each["to_s"], each["from_s"] + 1) / 60, color=color, alpha=0.3, label=label)
        if name.startswith("p99"):
            panel.set_yscale("log")
        else:
            panel.set_ylim(0, 1.15 * max(values, default=1))
        panel.set_ylabel(name, color=theme.ink)
        panel.grid(color=theme.grid)
        panel.tick_params(colors=theme.muted)
    panels[-1].set_xlabel("minutes", color=theme.ink)
    if faults:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
    return figure
