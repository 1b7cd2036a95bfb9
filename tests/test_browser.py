"""The page of `minitrans explain` and the site, in a real browser: Chromium without a screen, driven by Playwright.

Skipped where either is missing: `pip install -e ".[browser]"`, and Chromium from the system's packages (or named in
MINITRANS_CHROMIUM).
"""

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from fitted_policies import fitted_to

from minitrans import FewShotClassifier, PruningPolicy, SentenceEncoder
from minitrans.encoder.selection import Ranking, budgets, cost, kept_count, numbers_of, select
from minitrans.explain.explanation import explain
from minitrans.explain.html import shown as to_show
from minitrans.explain.html import write_page

playwright = pytest.importorskip("playwright.sync_api", reason='playwright is missing: pip install -e ".[browser]"')

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[1]

# Chromium reports, looks for updates and opens sockets of its own; this keeps what is seen to what the page does.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--no-first-run"]
HOSTILE = "</script><script>window.broken=1</script><img src=x onerror=window.broken=2>"
TEXTS = ["Where is the parcel that I ordered on Monday morning?", HOSTILE, "", "word " * 90]
TRAIN = [f"hello {HOSTILE}", "where is my parcel"], ["<i>hi</i>", "track"]


@pytest.fixture(scope="module")
def browser():
    names = (os.environ.get("MINITRANS_CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for path in map(shutil.which, filter(None, names)) if path), None)
    if found is None:
        pytest.skip("no Chromium here: install it from the system's packages, or name it in MINITRANS_CHROMIUM")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def encoder():
    return SentenceEncoder()


POLICIES = {
    "paper": lambda encoder: PruningPolicy(),
    "protected": lambda encoder: PruningPolicy(quantile=0.6, min_tokens=3, protect_special=True),
    "merge": lambda encoder: PruningPolicy(min_tokens=5, stages=((1, 0.25), (3, 0.3)), reduce="merge"),
    "learned": lambda encoder: fitted_to(encoder, quantile=0.6, min_tokens=4, score="learned", reduce="restore"),
    "turn": lambda encoder: fitted_to(
        encoder, quantile=0.8, min_tokens=3, score="learned", max_turn=8, protect_special=True
    ),
}


class Shown:
    """A page that is open, and all that it asked for and complained of."""

    def __init__(self, browser, path, **options):
        self.complaints, self.requests = [], []
        self.page = browser.new_page(**options)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.path = path

    def close(self):
        """At the end nothing was asked for but the file, and nothing went wrong."""
        broken = self.page.evaluate("window.broken")
        self.page.close()
        assert self.complaints == []
        assert self.requests == [self.path.as_uri()]
        assert broken is None

    def move(self, quantile, least=None, degrees=None):
        """Put the slider somewhere, as a user does: its value changes, and it says so."""
        if least is not None:
            self.page.fill("#least", str(least))
        if degrees is not None:
            self.page.fill("#turn", str(degrees))
        self.page.fill("#quantile", f"{quantile:.2f}")
        shown = self.page.locator("#decision")
        return json.loads(shown.get_attribute("data-kept")), json.loads(shown.get_attribute("data-threshold"))


@pytest.fixture(scope="module", params=POLICIES)
def written(request, encoder, tmp_path_factory):
    policy = POLICIES[request.param](encoder)
    classifier = FewShotClassifier(encoder).fit(*TRAIN)
    found = list(explain(encoder, TEXTS, pruning=policy, classifier=classifier, timed=False))
    path = tmp_path_factory.mktemp("pages") / f"{request.param}.html"
    return write_page(path, encoder, policy, [to_show(each) for each in found]), policy, found


@pytest.fixture
def shown(browser, written):
    opened = Shown(browser, written[0])
    yield opened
    opened.close()


def by_python(policy, scores, quantile, least, budget=None):
    """What `minitrans.encoder.selection` keeps of one text."""
    guard, n = int(policy.protect_special), len(scores)
    counts = kept_count(np.arange(n + 1), quantile, max(least, 2 * guard))
    most = None if budget is None else np.full(n + 1, budget, np.float32)
    ranking = Ranking(np.array(scores, np.float32), None, counts, most, guard, guard)
    return select(np.zeros((n, 1), np.float32), np.array([0, n]), ranking)[1].kept.tolist()


def test_the_page_opens_and_shows_what_python_found(shown, written):
    _, policy, found = written
    for index, each in enumerate(found):
        shown.page.locator("nav button").nth(index).click()
        chips = shown.page.locator(".flow > li")
        assert chips.count() == len(each.tokens)
        assert [chip == "kept" for chip in chips.evaluate_all("all => all.map((li) => li.className)")] == [
            token.dropped_at is None for token in each.tokens
        ]
        names = chips.evaluate_all("all => all.map((li) => li.firstChild.textContent)")
        assert names == [token.token for token in each.tokens]
        assert shown.page.locator("blockquote").inner_text().strip() == (each.text.strip() or "(the empty text)")
        assert shown.page.locator("#journey tbody tr").count() == len(each.tokens)
        stage = each.stages[0]
        kept = json.loads(shown.page.locator("#decision").get_attribute("data-kept"))
        assert kept == stage.kept
        merged = [
            [str(i), str(token.merged_into)] for i, token in enumerate(each.tokens) if token.merged_into is not None
        ]
        links = shown.page.locator("path.link")
        shown.page.wait_for_function(f"document.querySelectorAll('path.link').length === {len(merged)}")
        assert links.evaluate_all("all => all.map((path) => [path.dataset.from, path.dataset.to])") == merged
        assert bool(merged) == (policy.reduce == "merge" and len(each.kept) < len(each.tokens))


def test_the_slider_decides_as_python_does(shown, written):
    _, policy, found = written
    each = found[0]
    sources = shown.page.locator("#source option").count()
    assert sources == len(each.stages) + 6
    for source in range(sources):
        shown.page.select_option("#source", str(source))
        turns = [None]
        if source < len(each.stages):
            stage = each.stages[source]
            entered, scores, layer = stage.entered, stage.scores, stage.layer
            turns = turns if policy.max_turn is None else [1, 5, 8, 20, 60]
        else:
            layer = source - len(each.stages)
            entered, scores = range(len(each.tokens)), [t.unpruned[layer] for t in each.tokens]
            assert policy.max_turn is None or shown.page.locator("#turn").is_disabled()
        seen = set()
        for quantile, least, degrees in product((0, 0.07, 0.29, 0.5, 0.77, 0.99), (1, 8), turns):
            budget = degrees and budgets(degrees, numbers_of(policy.turn_map(layer)), np.array([len(scores)]))[0]
            kept, cut = shown.move(quantile, least, degrees)
            wanted = by_python(policy, scores, quantile, least, budget)
            assert kept == [entered[row] for row in wanted], (source, quantile, least, degrees)
            guarded = 2 * policy.protect_special  # they do not stay on their merit
            assert (cut is None) == (len(wanted) in (len(scores), guarded))
            seen |= {len(kept)} if (quantile, least) == (0.99, 1) else set()
        assert len(seen) >= min(3, len(turns))  # the turn decides
        bars = shown.page.locator("#explorer .bars li.dropped")
        gone = sorted(set(range(len(each.tokens))) & set(entered) - set(kept))
        assert bars.evaluate_all("all => all.map((li) => Number(li.dataset.place))") == gone


def test_the_selection_of_the_page_is_the_selection_of_python(browser, written):
    """On scores with ties and of either sign, for every quantile that the slider has."""
    path, policy, _ = written
    opened = Shown(browser, path)
    random = np.random.default_rng(0)
    guard = {"prefix": 1, "suffix": 1} if policy.protect_special else {"prefix": 0, "suffix": 0}
    for n, above in product((2, 3, 7, 10, 29, 100), (0, 16)):  # higher than 16 a score costs no more
        scores = (random.integers(-4, 5, n) / 4 + above).astype(np.float32).tolist()
        spent = cost(np.sort(np.float32(scores)))
        for budget in (None, 0.0, *(float(spent[rank] * 1.001) for rank in (n // 3, n // 2, -2))):
            wanted = [by_python(policy, scores, step / 100, 2, budget) for step in range(100)]
            seen = opened.page.evaluate(
                """([scores, options]) => [...Array(100).keys()]
                .map((step) => select(scores, step / 100, 2, options).stays)""",
                [scores, guard | {"budget": budget}],
            )
            assert [np.flatnonzero(row).tolist() for row in seen] == wanted
    opened.close()


def test_the_page_foresees_the_turn_as_python_does(browser, encoder, tmp_path):
    policy = fitted_to(encoder, quantile=0.8, min_tokens=3, score="learned", max_turn=8)
    path, found = page_of(encoder, tmp_path / "a.html", TEXTS, policy)
    opened = Shown(browser, path)
    for degrees, n in product((0.5, 8, 90), (1, 13, 256, 512)):
        wanted = budgets(degrees, numbers_of(policy.turn_map(2)), np.array([n]))[0]
        seen = opened.page.evaluate(f"budgetOf(DATA.turn, {degrees}, {n})")
        assert seen == pytest.approx(wanted, rel=1e-6)
        assert opened.page.evaluate(f"expectedTurn(DATA.turn, {seen}, {n})") == pytest.approx(degrees, rel=1e-5)
    for index, each in enumerate(found):
        opened.page.locator("nav button").nth(index).click()
        said = opened.page.locator("#decision").inner_text()
        gone = len(each.kept) < len(each.tokens)
        assert (f"expected to turn the embedding by {each.expected_angle:.1f}°" in said) == gone
        assert f"{each.expected_angle:.1f} degrees expected" in opened.page.locator(".tiles").inner_text()
    assert "with more it would be expected to turn farther than 8°" in said
    assert "at most 80% of the tokens at layer 2" in opened.page.locator("#about").inner_text()
    assert "what is expected to turn its embedding by 8° or less" in opened.page.locator("#about").inner_text()
    opened.page.locator("nav button").first.click()
    opened.page.fill("#turn", "")  # on the way to another number
    assert json.loads(opened.page.locator("#decision").get_attribute("data-kept")) == found[0].stages[0].kept
    opened.page.fill("#turn", "1")
    opened.page.locator("nav button").nth(1).click()
    assert opened.page.locator("#turn").input_value() == "1"
    opened.close()


def test_the_page_names_the_nearest_text(shown, written):
    _, _, found = written
    for index, each in enumerate(found):
        shown.page.locator("nav button").nth(index).click()
        assert each.meaning in shown.page.locator(".tiles").inner_text()
        said = shown.page.locator("#embedding").inner_text()
        assert "some 52° for two texts of one intent, and 78° for two of different ones" in said
        assert f"Of 2 training examples the nearest without pruning is “{each.nearest.unpruned[:20]}" in said
        assert ("With pruning it stays the nearest." in said) == each.nearest.same


def page_of(encoder, path, texts, policy, classifier=None):
    found = list(explain(encoder, texts, pruning=policy, classifier=classifier, timed=False))
    return write_page(path, encoder, policy, [to_show(each) for each in found]), found


@pytest.mark.parametrize("quantile", [0.335, 0.995])
def test_a_quantile_between_the_steps_of_the_slider_is_kept(browser, encoder, tmp_path, quantile):
    policy = PruningPolicy(quantile=quantile, min_tokens=2)
    path, (found,) = page_of(encoder, tmp_path / "a.html", ["word " * 120], policy)
    opened = Shown(browser, path)
    assert json.loads(opened.page.locator("#decision").get_attribute("data-kept")) == found.stages[0].kept
    assert f"{quantile} · 122" in opened.page.locator("#decision").inner_text()
    opened.close()


def test_what_goes_lies_left_of_the_cut(shown):
    for quantile in (0.2, 0.6, 0.9):
        shown.move(quantile, 1)
        at = "all => all.map((e) => e.cx?.baseVal.value ?? e.getBBox().x + e.getBBox().width / 2)"
        cut = shown.page.locator("#explorer line.cut").evaluate("e => e.x1.baseVal.value")
        assert all(x < cut for x in shown.page.locator("#explorer svg .go").evaluate_all(at))
        assert all(x > cut for x in shown.page.locator("#explorer svg .stay").evaluate_all(at))


def test_long_labels_do_not_push_the_page_wide(browser, encoder, tmp_path):
    classifier = FewShotClassifier(encoder, label_names=False).fit(TRAIN[0], ["x" * 900, "y" * 900])
    path, _ = page_of(encoder, tmp_path / "a.html", ["hello"], PruningPolicy(), classifier)
    for width in (320, 1100):
        opened = Shown(browser, path, viewport={"width": width, "height": 800})
        over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert opened.page.evaluate(over) == 0
        opened.close()


def test_by_keyboard_alone(shown):
    page = shown.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "quantile":
            break
    before = page.locator("#decision").inner_text()
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    assert page.locator("#decision").inner_text() != before
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "CANVAS":
            break
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    third = page.locator(".flow > li > span:first-child").nth(2).inner_text()
    assert f"“{third}” (token 2) looks most at" in page.locator("#readout").inner_text()
    assert "the cell that is marked" in page.locator("#readout").inner_text()


def test_what_was_chosen_stays_from_text_to_text(shown):
    page = shown.page
    page.select_option("#source", "3")
    page.select_option("#layer", "4")
    page.select_option("#head", "2")
    shown.move(0.71, 2)
    page.locator("nav button").nth(1).click()
    assert [page.locator(each).input_value() for each in ("#source", "#layer", "#head", "#least")] == [
        "3",
        "4",
        "2",
        "2",
    ]
    assert page.locator("#quantile").input_value() == "0.71"
    page.locator("nav button").nth(3).click()  # too long for every head
    assert page.locator("#head").is_disabled()
    assert page.locator("#head").input_value() == "0"


MANY = [
    *(f"text number {i} of a report" for i in range(40)),
    "\u05d0\u05d9\u05e4\u05d4 \u05d4\u05d7\u05d1\u05d9\u05dc\u05d4",
    "a \u202eevil\x1b text",
]


@pytest.fixture(scope="module")
def many(encoder, tmp_path_factory):
    policy = PruningPolicy(min_tokens=3, quantile=0.7)
    return page_of(encoder, tmp_path_factory.mktemp("many") / "a.html", MANY, policy)


@pytest.mark.parametrize("width", [390, 1280])
def test_many_texts_are_a_list_with_search(browser, many, width):
    path, found = many
    opened = Shown(browser, path, viewport={"width": width, "height": 900})
    page = opened.page
    text = page.locator("blockquote")
    assert page.locator("nav button").count() == 2
    assert page.locator("#pick option").count() == len(MANY)
    page.get_by_label("Search in texts").fill("NUMBER 17")
    assert page.locator("#pick option").count() == 1
    assert page.locator("#found").inner_text().startswith(f"1 of {len(MANY)} texts")
    page.keyboard.press("Enter")
    assert text.inner_text() == MANY[17]
    page.fill("#search", "")
    assert page.locator("#pick").input_value() == "17"
    page.click("#next")
    assert text.inner_text() == MANY[18]
    page.focus("#pick")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert text.inner_text() == MANY[16]
    page.fill("#search", "nowhere")
    page.keyboard.press("Enter")
    page.click("#next")
    assert text.inner_text() == MANY[16]
    page.fill("#search", "")
    marked = [i for i, name in enumerate(page.locator("#pick option").all_inner_texts()) if "\u26a0" in name]
    assert marked == [i for i, each in enumerate(found) if each.warning]
    assert page.locator("#embedding tbody tr").count() == 20
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    opened.close()


def test_marks_that_cannot_be_seen_are_written_out(browser, many):
    path, found = many
    opened = Shown(browser, path)
    opened.page.select_option("#pick", str(len(MANY) - 1))
    assert opened.page.locator("blockquote").inner_text() == "a \\u202eevil\\x1b text"
    seen = opened.page.evaluate("document.querySelector('main').innerText")
    assert not {"\u202e", "\x1b"} & set(seen)
    assert (opened.page.locator("#turned").count() == 1) == (found[-1].warning is not None)
    opened.close()


def test_everything_has_a_name(shown):
    """For a screen reader: one main part, headings in order, a label for every control, a text for every picture."""
    page = shown.page
    assert page.locator("main").count() == page.locator("h1").count() == 1
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map((h) => Number(h.tagName[1]))")
    assert all(after <= before + 1 for before, after in pairwise(levels))
    unnamed = "all => all.filter((e) => !(e.labels?.length || e.getAttribute('aria-label'))).length"
    assert page.locator("select, input").evaluate_all(unnamed) == 0
    assert page.get_by_label("Quantile q").get_attribute("type") == "range"
    pictures = page.locator("svg, canvas").evaluate_all(
        "all => all.filter((e) => !e.getAttribute('aria-label') && !e.closest('[aria-hidden=true]')).length"
    )
    assert pictures == 0
    assert page.locator("[aria-live]").count() == 2
    ids = page.locator("[id]").evaluate_all("all => all.map((e) => e.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (360, "dark"), (1100, "dark"), (1100, "light")])
def test_it_fits_and_can_be_read(browser, written, width, scheme):
    opened = Shown(browser, written[0], viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = opened.page
    for index in range(len(TEXTS)):
        page.locator("nav button").nth(index).click()
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert over == 0
    luminance = """(names) => names.map((name) => {
        const hex = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
        const parts = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    })"""
    names = ["page", "card", "ink", "soft", "accent", "drop", "drop-soft", "accent-soft"]
    light = dict(zip(names, page.evaluate(luminance, names), strict=True))
    assert (light["page"] < 0.5) == (scheme == "dark")
    for pair in ("ink page", "ink card", "soft page", "soft card", "drop card", "drop drop-soft", "ink accent-soft"):
        low, high = sorted(light[name] for name in pair.split())
        assert (high + 0.05) / (low + 0.05) >= 4.5, pair  # WCAG 2.2, contrast of text
    opened.close()


def test_the_command_writes_a_page_that_opens(browser, tmp_path, monkeypatch, capsys):
    from minitrans.cli.main import cli

    path = tmp_path / "page.html"
    cli.main(["explain", "where is my parcel, please?", "--html", str(path)], standalone_mode=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert "open it in a browser" in err
    opened = Shown(browser, path)
    assert opened.page.locator(".tiles div").count() == 5
    opened.close()


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason='mkdocs is missing: pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_site_opens_without_complaints(browser, site, scheme):
    """As files, without a server: every page, with all that it fetches, which lies in the site."""
    pages = sorted(site.rglob("*.html"))
    assert site / "index.html" in pages
    assert len(pages) > 15
    complaints = []
    context = browser.new_context(color_scheme=scheme)
    for path in pages:
        page, name = context.new_page(), path.relative_to(site).as_posix()
        page.on("console", lambda message, name=name: complaints.append(f"{name}: {message.text}"))
        page.on("pageerror", lambda error, name=name: complaints.append(f"{name}: {error}"))
        page.on("requestfailed", lambda request, name=name: complaints.append(f"{name}: no {request.url}"))
        page.on(
            "request",
            lambda request, name=name: (
                request.url.startswith(("file:", "data:")) or complaints.append(f"{name}: asks for {request.url}")
            ),
        )
        page.goto(path.as_uri())
        page.wait_for_load_state("load")
        assert page.evaluate("document.documentElement.dataset.bsTheme") == scheme
        page.close()
    context.close()
    assert complaints == []
