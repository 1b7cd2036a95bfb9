"""The README's picture: it is what the stored results give, it says what they say, and it can be read."""

import json
import math
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "study" / "picture.py").is_file():
    pytest.skip("the study is no part of the package", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from study import picture, settings  # noqa: E402

SIZES = {"title": 19, "note": 12.5}  # pixels; everything else has 14
BOLD = {"title", "group", "own"}
SVG = "{http://www.w3.org/2000/svg}"


MADE_UP = {  # precision -> policy -> time on BANKING77, accuracy
    "int8": {
        "none": (1.0, 0.8531),
        "paper q=0.3 l=1": (0.91, 0.8479),
        "paper q=0.5 l=2": (0.83, 0.8382),
        "balanced": (0.79, 0.8512),
        "fast": (0.66, 0.8426),
    },
    "float32": {
        "none": (1.0, 0.8554),
        "paper q=0.3 l=1": (0.88, 0.8497),
        "paper q=0.5 l=2": (0.75, 0.8404),
        "balanced": (0.72, 0.8531),
        "fast": (0.58, 0.8457),
    },
}


def save_made_up():
    """Store results, among them some that the picture does not show."""
    speed = []
    for precision, policies in MADE_UP.items():
        main = []
        for policy, (time, accuracy) in policies.items():
            about = {"model": "all-MiniLM-L6-v2", "backend": "compiled", "precision": precision, "policy": policy}
            for backend, texts, ratio in (
                ("reference", "banking77", 0.1),
                ("compiled", "bbc", 0.2),
                ("compiled", "banking77", time),
            ):
                speed.append(about | {"backend": backend, "texts": texts, "time_ratio": ratio})
            change = None if policy == "none" else accuracy - policies["none"][1]
            for task, shots, found in (("(mean)", 5, 0.5), ("hwu64", 10, 0.6), ("(mean)", 10, accuracy)):
                row = {"task": task, "shots": shots, "pruning": policy, "accuracy": found, "accuracy_change": change}
                main.append(row | {"accuracy_change_ci95": None if change is None else abs(change) / 10})
        settings.save(f"main-{precision}", {"rows": main})
    settings.save("speed", speed)
    settings.save("machine", {"cpu": "Abacus", "available_cores": 3})


@pytest.fixture(params=["made up", "stored"])
def drawn(request, tmp_path, monkeypatch):
    """The picture of made-up results, and of those that are stored."""
    if not picture.SPEED.is_file():
        pytest.skip("there is no stored run of the benchmark: `python -m benchmarks --quick --json FILE`")
    if request.param == "made up":
        monkeypatch.setattr(settings, "RESULTS", tmp_path / "results")
        save_made_up()
    elif any(settings.load(name) is None for name in ("speed", "machine", "main-int8", "main-float32")):
        pytest.skip("there are no stored results: `python -m study run machine main speed`")
    return ElementTree.fromstring(picture.overview())


def ten_shots(precision):
    """By policy, its row of the mean at 10 shots."""
    rows = settings.load(f"main-{precision}")["rows"]
    return {row["pruning"]: row for row in rows if (row["task"], row["shots"]) == ("(mean)", 10)}


def times(precision):
    """By policy, the share of the time on BANKING77."""
    wanted = {"model": "all-MiniLM-L6-v2", "backend": "compiled", "precision": precision, "texts": "banking77"}
    return {row["policy"]: row["time_ratio"] for row in settings.load("speed") if wanted.items() <= row.items()}


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


@pytest.mark.parametrize("name", ["overview.svg", "speed.svg"])
def test_the_stored_picture_is_what_the_results_give(name, tmp_path, monkeypatch):
    stored = settings.PICTURES / name
    if not stored.is_file():
        pytest.skip(f"there is no docs/{name}: `python -m study report`")
    monkeypatch.setattr(picture, "PICTURES", tmp_path)
    picture.write()
    assert (tmp_path / name).is_file(), "run `python -m study run machine main speed`"
    assert stored.read_bytes() == (tmp_path / name).read_bytes(), "run `python -m study report`"


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
        of_it = [node for node in circles if precision in classes(node)]
        found = sorted((read(across, number(c, "cx")), read(down, number(c, "cy"))) for c in of_it)
        rows = ten_shots(precision)
        wanted = sorted((100 * times(precision)[name], 100 * row["accuracy"]) for name, row in rows.items())
        assert len(of_it) == len(rows) >= 5
        for point, (time, accuracy) in zip(found, wanted, strict=True):
            assert point == (pytest.approx(time, abs=0.1), pytest.approx(accuracy, abs=0.02))


def test_every_policy_is_named_once_and_its_points_joined(drawn):
    names = [text.text for text in words(drawn)]
    policies = [*ten_shots("int8")]
    assert all(names.count(picture.shown(policy)) == 1 for policy in policies)
    lines = [line for line in drawn.iter(f"{SVG}line") if "pair" in classes(line)]
    assert len(lines) == len(policies)
    circles = [node for node in drawn.iter(f"{SVG}circle") if number(node, "r") == picture.RADIUS]
    for line in lines:
        joined = set()
        for end in "12":
            place = number(line, f"x{end}"), number(line, f"y{end}")
            joined |= {
                (*classes(node),)
                for node in circles
                if math.dist(place, (number(node, "cx"), number(node, "cy"))) < picture.RADIUS + 1.2
            }
        assert {classes(line)[1]} < {name for each in joined for name in each}
        assert {"int8", "float32"} <= {name for each in joined for name in each}


def test_the_titles_are_supported(drawn):
    _, results = picture.stored_speed()
    rounds = results["banking77"].rounds
    leads = []
    for name, values in rounds.items():
        if not name.startswith("minitrans"):
            ratios = sorted(their / our for their, our in zip(values, rounds["minitrans int8"], strict=True))
            leads.append(ratios[len(ratios) // 2])
    lost = max(0, -100 * ten_shots("int8")["balanced"]["accuracy_change"])
    assert [text.text for text in words(drawn, "title")] == [
        f"{min(leads):.1f} times as fast as the next runtime",
        f"Pruning saves {100 * (1 - times('int8')['balanced']):.0f}% of the time for {lost:.1f} points",
    ]


def test_a_gain_is_no_loss(tmp_path, monkeypatch):
    """The title does not say that pruning costs less than nothing."""
    if not picture.SPEED.is_file():
        pytest.skip("there is no stored run of the benchmark: `python -m benchmarks --quick --json FILE`")
    monkeypatch.setattr(settings, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(MADE_UP["int8"], "balanced", (0.79, 0.8571))
    save_made_up()
    (title,) = words(ElementTree.fromstring(picture.overview()), "title")[1:]
    assert title.text.endswith(" 21% of the time for 0.0 points")


def test_the_intervals_are_the_least_and_the_most(tmp_path, monkeypatch):
    if not picture.SPEED.is_file():
        pytest.skip("there is no stored run of the benchmark: `python -m benchmarks --quick --json FILE`")
    monkeypatch.setattr(settings, "RESULTS", tmp_path / "results")
    save_made_up()
    notes = " ".join(text.text for text in words(ElementTree.fromstring(picture.overview()), "note"))
    assert "±0.02 to ±0.15." in notes  # a tenth of the changes, 0.19 and 1.50 points
    assert "Abacus, 3 threads" in notes


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


def test_without_results_nothing_is_drawn(tmp_path, monkeypatch):
    if not picture.SPEED.is_file():
        pytest.skip("there is no stored run of the benchmark: `python -m benchmarks --quick --json FILE`")
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    monkeypatch.setattr(picture, "PICTURES", drawn)
    monkeypatch.setattr(settings, "RESULTS", tmp_path / "results")
    with monkeypatch.context() as patch:
        patch.setattr(picture, "SPEED", tmp_path / "speed.json")
        picture.write()
        assert list(drawn.iterdir()) == []
    save_made_up()
    (settings.RESULTS / "main-float32.json").unlink()
    picture.write()
    assert [path.name for path in drawn.iterdir()] == ["speed.svg"]
    save_made_up()
    picture.write()
    assert sorted(path.name for path in drawn.iterdir()) == ["overview.svg", "speed.svg"]
