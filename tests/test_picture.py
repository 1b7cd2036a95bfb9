"""The README's picture: it is what the stored results give, it says what they say, and it can be read."""

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "study" / "picture.py").is_file():
    pytest.skip("the study is no part of the package", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks.picture import write_picture  # noqa: E402
from benchmarks.run import caption  # noqa: E402
from study import picture, settings  # noqa: E402

SIZES = {"title": 19, "note": 12.5}  # pixels; everything else has 14
BOLD = {"title", "group", "own"}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawn():
    if not picture.SPEED.is_file() or settings.load("speed") is None:
        pytest.skip("there are no stored results")
    return ElementTree.fromstring(picture.overview())


def rows(name):
    return json.loads((ROOT / "study" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def classes(node):
    return node.get("class", "").split()


def words(root, style=None):
    return [node for node in root.iter(f"{SVG}text") if style is None or style in classes(node)]


def number(node, name):
    return float(node.get(name))


def box(node):
    """The room that a text takes in DejaVu Sans, the widest of the fonts that it may be shown in."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    style = set(classes(node))
    size = next((SIZES[name] for name in style if name in SIZES), 14)
    font = FontProperties(family="DejaVu Sans", weight="bold" if BOLD & style else "normal")
    width = TextPath((0, 0), node.text, size=size, prop=font).get_extents().x1
    left = number(node, "x") - (width if "end" in style else width / 2 if "middle" in style else 0)
    return left, number(node, "y") - 0.75 * size, left + width, number(node, "y") + 0.2 * size


def meet(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


# What is stored


def test_the_picture_is_what_the_stored_results_give(drawn):
    assert (settings.PICTURES / "overview.svg").read_text(encoding="utf-8") == picture.overview(), (
        "run `python -m study report`"
    )


def test_the_picture_of_speed_is_what_the_stored_results_give(drawn, tmp_path):
    about, results = picture.stored_speed()
    write_picture(tmp_path / "speed.svg", results, caption(about))
    assert (settings.PICTURES / "speed.svg").read_bytes() == (tmp_path / "speed.svg").read_bytes(), (
        "run `python -m study report`"
    )


def test_the_stored_run_is_whole():
    _, results = picture.stored_speed()
    for row in json.loads(picture.SPEED.read_text(encoding="utf-8"))["results"]:
        result = results[row["key"]]
        assert len({len(values) for values in result.rounds.values()}) == 1
        for name, figure in row["figures"].items():
            assert result.figure(name)._asdict() == pytest.approx(figure)


# What it says


def test_bars_begin_at_zero_and_are_as_long_as_the_speeds(drawn):
    _, results = picture.stored_speed()
    bulk = results["banking77"]
    speeds = sorted(bulk.amount / sorted(values)[len(values) // 2] for values in bulk.rounds.values())
    bars = sorted(drawn.iter(f"{SVG}rect"), key=lambda bar: number(bar, "width"))
    assert len({bar.get("x") for bar in bars}) == 1
    assert len(bars) == len(speeds) == 7
    for bar, speed in zip(bars, speeds, strict=True):
        assert number(bar, "width") / speed == pytest.approx(number(bars[-1], "width") / speeds[-1], rel=0.01)
        beside = [
            text.text
            for text in words(drawn)
            if abs(number(text, "y") - number(bar, "y") - 13) < 3 and "end" not in classes(text)
        ]
        assert beside == [f"{speed:,.0f}"]


def test_points_stand_where_the_axes_say(drawn):
    """Read the axes as a reader does, from their labels, and each point's place from them."""
    across = [(number(text, "x"), float(text.text.rstrip("%"))) for text in words(drawn, "middle")]
    ticks = [text for text in words(drawn, "end") if text.text.endswith("%")]
    down = [(number(text, "y") - 5, float(text.text.rstrip("%"))) for text in ticks]

    def read(axis, place):
        (first, low), (last, high) = axis[0], axis[-1]
        return low + (high - low) * (place - first) / (last - first)

    circles = [node for node in drawn.iter(f"{SVG}circle") if number(node, "r") == picture.RADIUS]
    for precision in ("int8", "float32"):
        wanted = set()
        times = {
            row["policy"]: row["time_ratio"]
            for row in rows("speed")
            if (row["model"], row["backend"]) == ("all-MiniLM-L6-v2", "compiled")
            and (row["precision"], row["texts"]) == (precision, "banking77")
        }
        for row in rows(f"main-intents-{precision}")["rows"]:
            if row["task"] == "(mean)" and row["shots"] == 10:
                wanted.add((round(100 * times[row["pruning"]]), round(100 * row["accuracy"], 1)))
        of_it = [node for node in circles if precision in classes(node)]
        found = {(round(read(across, number(c, "cx"))), round(read(down, number(c, "cy")), 1)) for c in of_it}
        assert len(of_it) == 7
        assert found == wanted


def test_the_titles_are_supported(drawn):
    _, results = picture.stored_speed()
    rounds = results["banking77"].rounds
    leads = []
    for name, values in rounds.items():
        if not name.startswith("minitrans"):
            ratios = sorted(their / our for their, our in zip(values, rounds["minitrans int8"], strict=True))
            leads.append(ratios[len(ratios) // 2])
    change = next(
        row["accuracy_change"]
        for row in rows("main-intents-int8")["rows"]
        if (row["task"], row["shots"], row["pruning"]) == ("(mean)", 10, "balanced")
    )
    time = next(
        row["time_ratio"]
        for row in rows("speed")
        if list(row.values())[:5] == ["all-MiniLM-L6-v2", "compiled", "int8", "banking77", "balanced"]
    )
    assert [text.text for text in words(drawn, "title")] == [
        f"{min(leads):.1f} times as fast as the next runtime",
        f"Pruning saves {100 * (1 - time):.0f}% of the time for {-100 * change:.1f} points",
    ]


def test_a_cut_axis_is_named(drawn):
    ticks = [text.text for text in words(drawn) if re.fullmatch(r"\d+%", text.text)]
    assert "0%" not in ticks
    assert any("both axes are cut" in text.text for text in words(drawn, "note"))


# That it can be read


def test_no_text_meets_another_or_leaves_the_picture(drawn):
    pytest.importorskip("matplotlib")
    width, height = float(drawn.get("width")), float(drawn.get("height"))
    boxes = [(text.text, box(text)) for text in words(drawn)]
    for i, (text, one) in enumerate(boxes):
        assert one[0] >= 0
        assert one[2] <= width, text
        assert one[3] <= height, text
        for other_text, other in boxes[i + 1 :]:
            assert not meet(one, other), (text, other_text)


def test_no_name_covers_a_point(drawn):
    pytest.importorskip("matplotlib")
    circles = [(number(node, "cx"), number(node, "cy"), number(node, "r")) for node in drawn.iter(f"{SVG}circle")]
    for text in words(drawn):
        left, top, right, bottom = box(text)
        for x, y, r in circles:
            assert not (left < x + r and x - r < right and top < y + r - 2 and y - r + 2 < bottom), text.text


def test_letters_are_large_enough_for_a_phone():
    """At a width of 400 pixels the smallest text has nine."""
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", picture.STYLE)]
    assert min(sizes) * 400 / picture.WIDTH > 8.9


def test_it_needs_nothing_else_and_knows_dark_pages(drawn):
    text = picture.overview()
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"(href|src|url|@import)\b", text)
    assert drawn.find(f"{SVG}title").text
    assert "minitrans" in drawn.find(f"{SVG}desc").text


# Other results


def test_names_keep_apart_where_points_crowd():
    pairs = {name: [(200.0 + 3 * i, 100.0), (230.0 + 3 * i, 100.0)] for i, name in enumerate(("fast", "slow", "none"))}
    found = picture.labels(pairs, (0, 0, 560, 300))
    boxes = list(found.values())
    assert len(boxes) == 3
    for i, one in enumerate(boxes):
        assert not any(meet(one, other) for other in boxes[i + 1 :])
        assert not any(one[0] < x < one[2] and one[1] < y < one[3] for ends in pairs.values() for x, y in ends)


def test_a_name_at_the_edge_stays_inside():
    room = (50.0, 0.0, 300.0, 200.0)
    for place in ((52.0, 5.0), (298.0, 195.0)):
        left, top, right, bottom = picture.labels({"balanced": [place]}, room)["balanced"]
        assert left >= 50
        assert top >= 0
        assert right <= 300
        assert bottom <= 200


def test_a_policy_that_takes_longer_is_drawn_too(drawn, monkeypatch):
    real = settings.load

    def slower(name):
        values = real(name)
        for row in values if name == "speed" else ():
            if row["policy"] == "fast":
                row["time_ratio"] = 1.234
        return values

    monkeypatch.setattr(settings, "load", slower)
    root = ElementTree.fromstring(picture.overview())
    assert [text.text for text in words(root, "middle")][-1] == "130%"
    assert max(number(node, "cx") for node in root.iter(f"{SVG}circle")) < picture.PLOT_RIGHT


def test_without_results_nothing_is_drawn(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "PICTURES", tmp_path)
    monkeypatch.setattr(picture, "SPEED", tmp_path / "speed.json")
    picture.write()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr(picture, "PICTURES", tmp_path)
    monkeypatch.setattr(settings, "RESULTS", tmp_path / "results")
    picture.write()
    assert [path.name for path in tmp_path.iterdir()] == ["speed.svg"]
