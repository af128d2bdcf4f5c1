"""Charts as SVG: a point shows its values, names are text, and nothing is fetched."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pruneflow.report import svg
from pruneflow.report.charts import Axis, Chart, HeatMap, Line, Panel

LEFT = Axis("parameters left", "shrinking", percent=True)
ACCURACY = Axis("accuracy", percent=True, limits=(0.0, 1.02))
X = [1.0, 0.5, 0.25]
HOSTILE = '</svg></title><script>alert(1)</script>--> <b>b</b> & "q" $x$\x00\x0b'
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, "DPI", 40)


def chart(*lines: Line, panels: int = 1) -> Chart:
    return Chart("title", [Panel(f"panel {i}", LEFT, ACCURACY, lines) for i in range(panels)])


def drawn(chart: Chart, folder: Path, name: str = "curve") -> ElementTree.Element:
    return ElementTree.fromstring(svg.save(chart, folder, name))


def rects(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [rect for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]


def targets(root: ElementTree.Element) -> dict[str, tuple[float, float]]:
    """Text of each target -> where its middle is, in points."""
    found = {}
    for rect in rects(root):
        x, y, width, height = (float(rect.attrib[k]) for k in ("x", "y", "width", "height"))
        found[rect.findtext(f"{SVG}title") or ""] = (x + width / 2, y + height / 2)
    return found


def markers(root: ElementTree.Element) -> set[tuple[float, float]]:
    """Where markers are drawn."""
    uses = root.iter(f"{SVG}use")
    return {(float(use.get("x", "nan")), float(use.get("y", "nan"))) for use in uses}


def test_a_point_shows_its_values_interval_and_seeds_where_it_is_drawn(tmp_path: Path) -> None:
    line = Line(
        "l1", X, [0.9, math.nan, 0.7], low=[0.8, math.nan, math.nan],
        high=[0.95, math.nan, math.nan], n=[3, 1, 1],
    )  # fmt: skip
    root = drawn(chart(line), tmp_path)
    found = targets(root)
    assert list(found) == ["l1\n90 % at 100 %\n80 % to 95 %\n3 seeds", "l1\n70 % at 25 %\n1 seed"]
    for x, y in found.values():
        assert min(math.dist((x, y), at) for at in markers(root)) < 0.2


@pytest.mark.parametrize("panels", [1, 3])
def test_every_point_of_every_line_is_where_its_marker_is(tmp_path: Path, panels: int) -> None:
    lines = [
        Line(f"{i}", X, [0.9 / i, 0.8 / i, 0.0], style=i, notes=["a", "b", "c"]) for i in (1, 2)
    ]
    root = drawn(chart(*lines, panels=panels), tmp_path)
    found = rects(root)
    assert len(found) == panels * 6
    assert [rect.findtext(f"{SVG}title") for rect in found[:2]] == [
        "1\n90 % at 100 %\na",
        "1\n80 % at 50 %\nb",
    ]
    for rect in found:
        at = (float(rect.get("x", "")) + svg._REACH, float(rect.get("y", "")) + svg._REACH)
        assert min(math.dist(at, mark) for mark in markers(root)) < 0.2


def test_points_outside_of_the_axes_have_no_target(tmp_path: Path) -> None:
    line = Line("a", [1.0, 0.5, 0.0], [0.9, 2.0, 0.5])
    assert list(targets(drawn(chart(line), tmp_path))) == ["a\n90 % at 100 %"]


def test_a_cell_shows_its_value_and_gaps_none(tmp_path: Path) -> None:
    values = [[0.0, 0.5], [math.nan, 0.123456]]
    heat = HeatMap("", ["conv.weight", "fc"], ["0", "1"], values, "level", "sparsity")
    found = targets(drawn(Chart("t", [heat]), tmp_path))
    texts = [
        "conv.weight\nlevel 0: 0.00 %",
        "conv.weight\nlevel 1: 50.00 %",
        "fc\nlevel 1: 12.35 %",
    ]
    assert list(found) == texts
    first, second, third = found.values()
    assert first[0] < second[0] == third[0]
    assert first[1] == second[1] < third[1]


def hostile() -> list[Chart]:
    line = Line(HOSTILE, X, X, notes=[HOSTILE] * 3)
    panels = [Panel(HOSTILE, Axis(HOSTILE), Axis(HOSTILE), [line]) for _ in range(2)]
    heat = HeatMap(HOSTILE, [HOSTILE], [HOSTILE], [[0.5]], HOSTILE, HOSTILE)
    return [Chart(HOSTILE, panels), Chart(HOSTILE, [heat])]


@pytest.mark.parametrize("chart", hostile(), ids=["panels", "heat map"])
def test_names_are_text_in_whatever_they_stand(tmp_path: Path, chart: Chart) -> None:
    text = svg.save(chart, tmp_path, "curve")
    root = ElementTree.fromstring(text)
    assert not {e.tag for e in root.iter()} & {f"{SVG}script", f"{SVG}b"}
    assert "<script" not in text
    assert "<!--" not in text
    shown = [e.text or "" for e in root.iter(f"{SVG}text")] + list(targets(root))
    assert any("<script>alert(1)</script>" in one for one in shown)


def test_figures_of_one_page_share_no_id_and_find_their_own(tmp_path: Path) -> None:
    seen: set[str] = set()
    for name in ("one", "two"):
        text = svg.save(chart(Line("a", X, X), panels=2), tmp_path, name)
        ids = re.findall(r'\bid="([^"]+)"', text)
        assert len(ids) == len(set(ids))
        assert not seen & set(ids)
        seen |= set(ids)
        used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
        assert {a or b for a, b in used} == set(ids)


def test_nothing_is_fetched_and_the_same_chart_gives_the_same_bytes(tmp_path: Path) -> None:
    text = svg.save(chart(Line("a", X, X)), tmp_path, "curve")
    assert (tmp_path / "curve.svg").read_text("utf-8") == text
    assert (tmp_path / "curve.png").stat().st_size > 1_000
    addresses = set(re.findall(r"https?://[^\"]+", text))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert svg.save(chart(Line("a", X, X)), tmp_path, "curve") == text
