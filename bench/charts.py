"""The report's charts: plain functions from figures to a matplotlib Figure in one of the themes.

A theme's colours may also stand for CSS variables (`ON_PAGE`): an SVG drawn with it takes its colours from the page it is in,
so that one drawing serves light and dark.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.results import OURS, PARTS, STAGES, Spread

Floats = npt.NDArray[np.float64]
PERCENTILES = {"50%": 0.5, "90%": 0.9, "99%": 0.99, "99.9%": 0.999, "99.99%": 0.9999, "99.999%": 0.99999}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
WIDTH = 9.6


@dataclass(frozen=True)
class Theme:
    """Colours: of text, of lesser text, of grid lines, of the paper, of the relay, and of systems and parts in order."""

    ink: str
    muted: str
    grid: str
    paper: str
    relay: str
    series: tuple[str, ...]


LIGHT = Theme(
    ink="#1c2430",
    muted="#5b6573",
    grid="#dfe3e8",
    paper="#ffffff",
    relay="#7b838f",
    series=("#1464c8", "#d9660a", "#2b8a3e", "#8a3ffc", "#c2255c", "#0b8793", "#8a6a1f", "#6b8e00", "#a0522d", "#3d4451"),
)
DARK = Theme(
    ink="#e8ecf1",
    muted="#a3adba",
    grid="#333c48",
    paper="#12171e",
    relay="#98a2b0",
    series=("#5aa9ff", "#ff9d4d", "#69c97c", "#b894ff", "#f57fa5", "#3cc3cf", "#d6b763", "#b5d334", "#e08a5f", "#c9d1db"),
)
ON_PAGE = Theme(
    ink="#010101",
    muted="#010102",
    grid="#010103",
    paper="#010104",
    relay="#010105",
    series=tuple(f"#0102{number:02x}" for number in range(len(LIGHT.series))),
)


@dataclass(frozen=True)
class Curve:
    """Latency by percentile of one run: the values in ms, ascending, the share at or below each, and how many were counted."""

    milliseconds: Floats
    share: Floats
    count: int

    def at(self, shares: Floats) -> Floats:
        """The latency in ms at each share."""
        where = np.searchsorted(self.share, shares - 1e-12)
        return self.milliseconds[np.minimum(where, len(self.milliseconds) - 1)]


def curve(encoded: str) -> Curve:
    """A run's curve from its encoded histogram of µs; ValueError if it is none or empty."""
    try:
        histogram = HdrHistogram.decode(encoded)
    except Exception as error:
        raise ValueError(f"histogram: expected an encoded HdrHistogram, got {encoded[:20]!r}: {error}") from error
    steps = [(item.value_iterated_to, item.count_added_in_this_iter_step) for item in histogram.get_recorded_iterator()]
    if not steps:
        raise ValueError("histogram: expected counts, got an empty one")
    values, counts = np.array(steps, np.float64).T
    return Curve(values / 1000, np.cumsum(counts) / counts.sum(), int(counts.sum()))


def percentiles(curves: Mapping[float, Mapping[str, Sequence[Curve]]], order: Sequence[str], theme: Theme) -> Figure:
    """Latency by percentile: one panel a rate, one line a system (the median of its runs, with their range as a band)."""
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure = _figure(WIDTH, 0.75 + 3.7 * rows, theme)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    panels = list(grid.flat)
    for panel, (rate, systems) in zip(panels, curves.items(), strict=False):
        count = min(one.count for runs in systems.values() for one in runs)
        last = max(0.99, 1 - 5 / count)
        shares = 1 - np.geomspace(1, 1 - last, 240)
        for name in order:
            if name not in systems:
                continue
            values = np.array([one.at(shares) for one in systems[name]])
            x, color = 1 / (1 - shares), _color(name, order, theme)
            line: dict[str, Any] = {"linestyle": _style(name), "linewidth": 2.2, "zorder": _front(name)}
            panel.plot(x, np.median(values, axis=0), color=color, label=name, **line)
            if len(values) > 1:
                panel.fill_between(x, values.min(axis=0), values.max(axis=0), color=color, alpha=0.16, linewidth=0)
        panel.set_xscale("log")
        panel.set_xlim(1, 1 / (1 - last))
        ticks = {name: share for name, share in PERCENTILES.items() if share <= last}
        panel.xaxis.set_major_locator(FixedLocator([1 / (1 - share) for share in ticks.values()]))
        panel.set_xticklabels(list(ticks))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_title(f"{rate:,.12g} messages/s", loc="left", fontsize=12, color=theme.ink, fontweight="bold")
        panel.set_xlabel("percentile")
        _dress(panel, theme)
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    _milliseconds(panels[: len(curves)], theme)
    for row in grid:
        row[0].set_ylabel("latency, ms")
        for panel in row[1:]:
            panel.tick_params(axis="y", length=0)
    _legend(figure, panels[: len(curves)], order, theme)
    return figure


def load(spreads: Mapping[str, Mapping[float, Mapping[str, Spread]]], order: Sequence[str], theme: Theme) -> Figure:
    """Latency against load: a panel each for p50 and p99, a line a system, the range over runs as a bar at each rate."""
    figure = _figure(WIDTH, 4.5, theme)
    panels = list(figure.subplots(1, 2, sharey=True))
    rates = sorted({rate for held in spreads.values() for rate in held})
    for panel, metric in zip(panels, ("p50", "p99"), strict=True):
        for number, name in enumerate(order):
            held = {rate: metrics[metric] for rate, metrics in sorted(spreads.get(name, {}).items()) if metric in metrics}
            if not held:
                continue
            middle = np.array([one["median"] for one in held.values()])
            reach = [middle - [one["min"] for one in held.values()], [one["max"] for one in held.values()] - middle]
            panel.errorbar(
                list(held),
                middle,
                yerr=reach,
                color=_color(name, order, theme),
                linestyle=_style(name),
                linewidth=2.2,
                zorder=_front(name),
                marker=MARKERS[number % len(MARKERS)],
                markersize=7,
                capsize=4,
                elinewidth=1.3,
                label=name,
            )
        if rates[-1] / rates[0] > 8:
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(FixedLocator(_apart(rates)))
        else:
            panel.xaxis.set_major_locator(FixedLocator(rates))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
        panel.set_title(metric, loc="left", fontsize=12, color=theme.ink, fontweight="bold")
        panel.set_xlabel("messages/s sent")
        _dress(panel, theme)
    _milliseconds(panels, theme)
    panels[0].set_ylabel("latency, ms")
    panels[1].tick_params(axis="y", length=0)
    _legend(figure, panels, order, theme)
    return figure


def throughput(
    spreads: Mapping[str, Spread], ratios: Mapping[str, Spread], order: Sequence[str], theme: Theme, unit: str = "messages/s"
) -> Figure:
    """Messages a second: a bar a system, fastest first, with the range over runs, and headrace's ratio to it turn by turn."""
    names = sorted(spreads, key=lambda name: -spreads[name]["median"])
    figure = _figure(WIDTH, 1.0 + 0.62 * len(names), theme)
    panel = figure.subplots()
    largest = max(held["max"] for held in spreads.values())
    limit = largest
    for row, name in enumerate(names):
        held = spreads[name]
        panel.barh(row, held["median"], height=0.62, color=_color(name, order, theme))
        reach = [[held["median"] - held["min"]], [held["max"] - held["median"]]]
        panel.errorbar(held["median"], row, xerr=reach, color=theme.ink, capsize=4, elinewidth=1.4)
        label = f"{held['median']:,.0f}"
        if name in ratios:
            label += f" \N{MIDDLE DOT} {OURS} {times(ratios[name])}"
        limit = max(limit, held["max"] / (1 - 0.0115 * len(label) - 0.02))
        paper = {"facecolor": theme.paper, "edgecolor": "none", "pad": 1.5}
        panel.text(held["max"] + largest * 0.02, row, label, va="center", ha="left", color=theme.ink, fontsize=11, bbox=paper)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set_xlim(0, limit)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.xaxis.set_major_locator(FixedLocator([tick for tick in panel.get_xticks() if tick <= largest * 1.05]))
    panel.set_xlabel(unit)
    _dress(panel, theme, across=True)
    panel.tick_params(axis="y", labelsize=12, labelcolor=theme.ink, length=0)
    return figure


def stacked(rows: Mapping[str, Mapping[str, float]], words: Sequence[str], theme: Theme, unit: str = "µs per event") -> Figure:
    """One bar a row, of its parts, with each part's figure where it fits and the sum at the end; `words` are the legend's."""
    figure = _figure(WIDTH, 1.35 + 0.66 * len(rows), theme)
    panel = figure.subplots()
    largest = max(sum(parts.values()) for parts in rows.values()) or 1.0
    form = ".2f" if largest < 10 else ".1f" if largest < 100 else ",.0f"
    for number, parts in enumerate(rows.values()):
        left = 0.0
        for word, value in parts.items():
            color = theme.series[words.index(word) % len(theme.series)] if word in words else theme.relay
            panel.barh(number, value, left=left, height=0.62, color=color, edgecolor=theme.paper)
            if value > largest * 0.055 and word in words:
                middle: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 11, "color": theme.paper}
                panel.text(left + value / 2, number, f"{value:{form}}", **middle)
            left += value
        paper = {"facecolor": theme.paper, "edgecolor": "none", "pad": 1.5}
        after: dict[str, Any] = {
            "bbox": paper,
            "ha": "left",
            "va": "center",
            "fontsize": 11,
            "color": theme.ink,
            "fontweight": "bold",
        }
        panel.text(left + largest * 0.012, number, f"{left:{form}} µs", **after)
    for index, word in enumerate(words):
        panel.barh(0, 0, color=theme.series[index % len(theme.series)], label=word)
    panel.set_yticks(range(len(rows)), list(rows))
    panel.invert_yaxis()
    panel.set_xlim(0, largest * 1.13)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    panel.set_xlabel(unit)
    _dress(panel, theme, across=True)
    panel.tick_params(axis="y", labelsize=12, labelcolor=theme.ink, length=0)
    _legend(figure, [panel], words, theme)
    return figure


def stages(rows: Mapping[str, Mapping[str, float]], theme: Theme) -> Figure:
    """The seven stages' time, one bar for each row."""
    return stacked({name: {word: held.get(word, 0.0) for word in STAGES} for name, held in rows.items()}, STAGES, theme)


def floor(parts: Mapping[str, float], actual: float | None, theme: Theme) -> Figure:
    """The floor's parts, each alone, on top of what the whole takes."""
    words = [*(word for word in PARTS if word in parts), *(word for word in parts if word not in PARTS)]
    rows: dict[str, Mapping[str, float]] = {"floor": {word: parts[word] for word in words}}
    if actual is not None:
        rows["actual"] = {"": actual}
    return stacked(rows, words, theme)


def times(ratio: Spread) -> str:
    """A ratio for people: 5.12 (4.98 to 5.30) with the sign for times."""
    form = next(form for least, form in ((100, ",.0f"), (10, ".1f"), (0.1, ".2f"), (0, ".3f")) if ratio["median"] >= least)
    reach = f" ({ratio['min']:{form}} to {ratio['max']:{form}})" if ratio["n"] > 1 else ""
    return f"{ratio['median']:{form}}\N{MULTIPLICATION SIGN}{reach}"


def png(figure: Figure) -> bytes:
    """As PNG, twice the size of a page's pixel."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150, metadata={"Software": ""})
    return out.getvalue()


def svg(figure: Figure, mark: str) -> str:
    """As an SVG element for a page, colours as CSS variables (--ink, --s0, ...); `mark` keeps its ids apart from others'."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": mark}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for name, color in _named(ON_PAGE).items():
        text = text.replace(color, f"var(--{name})")
    text = re.sub(r'\bid="([^"]+)"', rf'id="{mark}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{mark}-\1"', text)
    text = text.replace("url(#", f"url(#{mark}-")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1system-ui, sans-serif", text)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"|(<svg)', r"\1\2\3", text, count=1)


def css(theme: Theme) -> str:
    """The CSS variables that give an SVG of `svg` a theme's colours."""
    return " ".join(f"--{name}: {color};" for name, color in _named(theme).items())


def _named(theme: Theme) -> dict[str, str]:
    names = {"ink": theme.ink, "muted": theme.muted, "grid": theme.grid, "paper": theme.paper, "relay": theme.relay}
    return names | {f"s{number}": color for number, color in enumerate(theme.series)}


def _figure(width: float, height: float, theme: Theme) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    return Figure(figsize=(width, height), layout=layout, facecolor=theme.paper)


def _color(name: str, order: Sequence[str], theme: Theme) -> str:
    if name == "relay":
        return theme.relay
    others = [one for one in order if one not in (OURS, "relay")]
    return theme.series[0] if name == OURS else theme.series[1 + others.index(name) % (len(theme.series) - 1)]


def _front(name: str) -> float:
    return 3.0 if name == OURS else 2.0


def _style(name: str) -> Any:
    return (0, (5, 2)) if name == "relay" else "-"


def _dress(panel: Axes, theme: Theme, across: bool = False) -> None:
    panel.set_facecolor(theme.paper)
    panel.grid(True, axis="x" if across else "both", color=theme.grid, linewidth=0.9)
    panel.set_axisbelow(True)
    for side, spine in panel.spines.items():
        spine.set_visible(side == ("left" if across else "bottom"))
        spine.set_color(theme.muted)
    panel.tick_params(colors=theme.muted, labelsize=11, length=3)
    panel.xaxis.label.set(color=theme.muted, fontsize=11)
    panel.yaxis.label.set(color=theme.muted, fontsize=11)


def _milliseconds(panels: Sequence[Axes], theme: Theme) -> None:
    low = min(panel.dataLim.y0 for panel in panels)
    high = max(panel.dataLim.y1 for panel in panels)
    for panel in panels:
        if high / max(low, 1e-3) > 12:
            low = max(low, 1e-3)
            steps = (1, 2, 5) if high / low < 2000 else (1,)
            ticks = [step * 10.0**power for power in range(-3, 7) for step in steps]
            panel.set_yscale("log")
            panel.set_ylim(low / 1.25, high * 1.25)
            panel.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low / 1.25 <= tick <= high * 1.25]))
            panel.yaxis.set_minor_locator(NullLocator())
        else:
            panel.set_ylim(0, high * 1.08)
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _apart(rates: Sequence[float]) -> list[float]:
    """The first and the last rate, and those between whose labels run into no other on a log axis."""
    kept = [rates[0], rates[-1]]
    reach = np.log(rates[-1] / rates[0])
    for rate in reversed(rates[1:-1]):
        if all(abs(np.log(one / rate)) > 0.17 * reach for one in kept):
            kept.append(rate)
    return kept


def _legend(figure: Figure, panels: Sequence[Axes], order: Sequence[str], theme: Theme) -> None:
    found: dict[str, Any] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        found |= {label: handle for label, handle in zip(labels, handles, strict=True) if label not in found}
    names = [name for name in order if name in found]
    wide = [7.2 * len(name) + 42 for name in names]
    columns = len(names) if sum(wide) < 72 * WIDTH else max(1, int(72 * WIDTH / max(wide, default=1)))
    legend = figure.legend(
        [found[name] for name in names],
        names,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=11,
        handlelength=1.6,
        columnspacing=1.5,
    )
    for text in legend.get_texts():
        text.set_color(theme.ink)
