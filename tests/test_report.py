"""The report: one page that needs no network, with every figure and every run that did not count; charts as readable PNGs."""

import json
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from made_results import features, floor, latency, spoiled, throughput

from bench.charts import DARK, LIGHT, ON_PAGE, curve
from bench.groups import command, groups, together
from bench.report import main, write
from bench.results import check

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects tags left open, ids, references and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: list[str] = []
        self.refers: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("src", "href", "xlink:href"):
                self.refers.append(value or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str, list[Path]]:
    out = tmp_path_factory.mktemp("report")
    many = latency(("headrace", "relay", "quix"), (1000, 10_000))
    many["runs"][1] = spoiled(many["runs"][1], "lost 3 of 40,000 <b>", lost=3)
    paths = write([check(held) for held in (many, throughput(), floor(), features())], out)
    text = paths[0].read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    return page, text, paths


def test_the_page_is_well_formed_and_refers_to_nothing_outside(written: tuple[Page, str, list[Path]]) -> None:
    page, text, _ = written
    assert page.open == []
    assert page.wrong == []
    assert len(page.ids) == len(set(page.ids))
    assert all(refers.startswith("#") for refers in page.refers)
    assert {refers[1:] for refers in page.refers} <= set(page.ids)
    assert "url(http" not in text
    assert "@import" not in text


def test_the_page_has_figures_conditions_and_the_runs_that_do_not_count(written: tuple[Page, str, list[Path]]) -> None:
    page, text, _ = written
    said = " ".join(page.text)
    assert "193,800" in said
    assert "11.2\N{MULTIPLICATION SIGN}" in said
    assert "lost 3 of 40,000 <b>" in said
    assert "Runs that do not count (1)" in said
    for condition in ("acks", "linger_ms", "Xeon, 2 cores, 8 GB", "0.21.1", "0123456789ab", "--workload flights"):
        assert condition in said
    assert text.count("<svg") == 6


def test_the_charts_take_their_colours_from_the_page(written: tuple[Page, str, list[Path]]) -> None:
    _, text, _ = written
    assert "prefers-color-scheme: dark" in text
    assert LIGHT.ink in text
    assert DARK.ink in text
    drawn = text[text.index("<svg") :]
    assert not any(color in drawn for color in (ON_PAGE.ink, ON_PAGE.paper, *ON_PAGE.series, "#ffffff", "#000000"))
    assert "var(--s0)" in drawn


def test_every_chart_is_a_png_in_both_themes(written: tuple[Page, str, list[Path]]) -> None:
    _, _, paths = written
    names = {path.name for path in paths[1:]}
    assert {name.replace("-dark", "") for name in names if "-dark" in name} == {name for name in names if "-dark" not in name}
    assert {"latency-flights-percentiles.png", "latency-flights-load.png", "latency-flights-stages.png"} <= names
    assert {"throughput-flights.png", "throughput-flights-stages.png", "floor-flights.png"} <= names
    for path in paths[1:]:
        held = path.read_bytes()
        assert held.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">II", held[16:24])[0] >= 1400


def test_a_curve_is_its_histogram() -> None:
    histogram = HdrHistogram(1, 10_000_000, 3)
    values = np.arange(1, 1001) * 1000
    for value in values:
        histogram.record_value(int(value))
    held = curve(histogram.encode().decode())
    assert held.count == 1000
    np.testing.assert_allclose(held.at(np.array([0.5, 0.99, 1.0])), [500, 990, 1000], rtol=1.1e-3)


@pytest.mark.parametrize("spoil", ["nonsense", HdrHistogram(1, 1000, 2).encode().decode()])
def test_a_histogram_that_is_none_is_refused_with_its_name(spoil: str, tmp_path: Path, capsys: Any) -> None:
    held = latency()
    held["runs"][0]["histogram"] = spoil
    path = tmp_path / "a.json"
    path.write_text(json.dumps(held))
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    assert "histogram: expected" in capsys.readouterr().err


def test_one_file_a_rate_is_one_chart_and_other_settings_are_another() -> None:
    apart = [latency(rates=(rate,)) for rate in (1000, 10_000)]
    wider = latency()
    wider["settings"] = {**wider["settings"], "partitions": 8}
    found = groups([check(held) for held in (*apart, wider)])
    assert [group.title for group in found] == ["flights, partitions 1", "flights, partitions 8"]
    assert list(found[0].runs) == [1000, 10_000]


def test_a_setting_that_grows_with_the_rate_parts_files_only_at_one_rate() -> None:
    slow, fast, other = latency(), latency(rates=(50_000,)), latency(rates=(50_000,))
    for held, linger, messages in ((slow, 0, 45_000), (fast, 5, 2_250_000), (other, 1, 2_250_000)):
        held["settings"] = {**held["settings"], "linger_ms": linger}
        held["workload"] = {**held["workload"], "messages": messages}
    found = groups([check(held) for held in (slow, fast, other)])
    assert [list(group.runs) for group in found] == [[1000, 50_000], [50_000]]
    assert [group.title for group in found] == ["flights, linger_ms 0 / 5", "flights, linger_ms 1"]
    assert together(found[0].results)["linger_ms"] == "0 / 5"


def test_a_command_is_shown_as_it_is_typed() -> None:
    held = latency()
    held["command"] = ["/somewhere/headrace/bench/latency.py", "--peer", "x=a b"]
    assert command(check(held)) == "python -m bench.latency --peer 'x=a b'"


def test_two_files_at_one_rate_keep_their_turns() -> None:
    one, other = latency(), latency(slower=2)
    found = groups([check(one), check(other)])
    assert len(found) == 1
    assert found[0].summaries[1000]["systems"]["headrace"]["p50"]["n"] == 6
    assert found[0].summaries[1000]["ratios"]["relay"]["p50"]["n"] == 6


def test_a_file_whose_runs_are_all_invalid_still_makes_a_page(tmp_path: Path) -> None:
    held = latency()
    held["runs"] = [spoiled(run, "the generator was late") for run in held["runs"]]
    paths = write([check(held)], tmp_path)
    assert len(paths) == 1
    assert "the generator was late" in paths[0].read_text()
