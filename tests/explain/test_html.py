"""The page as a file: one file, closed to the network, and texts that cannot become markup."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from fitted_policies import fitted_to
from hypothesis import given
from hypothesis import strategies as st

from minitrans import FewShotClassifier, PruningPolicy, SentenceEncoder
from minitrans.errors import InputError
from minitrans.explain.explanation import explain
from minitrans.explain.html import MOST_TEXTS, check_page, page, page_data, shown, write_page

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & <!-- ]]> \u2028 \ud800 {title}"
LINK = re.compile(r"(https?:)?//[a-z]|@import|url\((?!#)", re.IGNORECASE)


@pytest.fixture(scope="module")
def encoder(plain):
    return SentenceEncoder(plain, on_truncation="ignore")


def made(encoder, texts, policy=None, classifier=None):
    found = explain(encoder, texts, pruning=policy, classifier=classifier, timed=False)
    return page_data(encoder, policy, [shown(each) for each in found])


class Outline(HTMLParser):
    """Elements and their attributes, and the text of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.inside, self._open = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = (tag, dict(attrs).get("type")) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open is not None:
            self.inside[self._open] = self.inside.get(self._open, "") + data


def test_hostile_texts_stay_data(encoder):
    classifier = FewShotClassifier(encoder).fit([HOSTILE, "hello"], ["<b>label</b>", "b"])
    data = made(encoder, [HOSTILE, "plain"], PruningPolicy(), classifier)
    outline = Outline(page(data))
    harmless = Outline(page(made(encoder, ["one", "two"], PruningPolicy())))
    assert [tag for tag, _ in outline.elements] == [tag for tag, _ in harmless.elements]
    assert json.loads(outline.inside["script", "application/json"])["texts"][0]["text"] == HOSTILE
    assert not set("<>&") & set(outline.inside["script", "application/json"])


@given(st.text())
def test_whatever_the_text_the_data_come_back(text):
    data = {"texts": [{"text": text}]}
    assert json.loads(Outline(page(data)).inside["script", "application/json"]) == data


def test_the_page_is_closed_to_the_network(encoder):
    text = page(made(encoder, ["one"], PruningPolicy()))
    outline = Outline(text)
    own = page({"texts": []})  # chance may write "//a" in base64
    assert not LINK.search(own.replace("http://www.w3.org/2000/svg", "").replace("// ", ""))
    assert not [attrs for _, attrs in outline.elements if attrs.get("src")]
    assert [attrs["href"] for _, attrs in outline.elements if attrs.get("href")] == ["data:,", "#main"]
    (policy,) = (attrs["content"] for _, attrs in outline.elements if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")
    for kind, inside in (("style-src", outline.inside["style", None]), ("script-src", outline.inside["script", None])):
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_attention_is_in_the_page_as_it_was(encoder):
    (found,) = explain(
        encoder, ["where is the parcel that I ordered?"], pruning=PruningPolicy(min_tokens=4), timed=False
    )
    values = shown(found).values
    assert values["maps"] == 5
    for layer, drawn in zip(found.pruned.layers[1:], values["attention"], strict=True):
        n = len(layer.entered)
        assert drawn["entered"] == layer.entered.tolist()
        maps = np.frombuffer(base64.b64decode(drawn["data"]), "<u2").reshape(5, n, n) / 65535
        np.testing.assert_allclose(maps[0], layer.attention[0].mean(axis=0), rtol=0, atol=1e-5)
        np.testing.assert_allclose(maps[1:], layer.attention[0], rtol=0, atol=1e-5)


def test_what_the_turn_goes_by_is_in_the_page(encoder):
    policy = fitted_to(encoder, layer=1, score="learned", max_turn=20)
    data = made(encoder, ["one two three four five six seven eight nine ten"], policy)
    turn = policy.turn_map(1)
    assert np.array_equal(np.float32(data["turn"]), [*turn.weight[0], turn.bias[0]])
    assert data["policy"]["max_turn"] == 20
    assert "max_turn=20" in data["policy_text"]
    for other in (PruningPolicy(layer=1), None):
        assert made(encoder, ["one"], other)["turn"] is None


def test_long_texts_keep_the_average_of_the_heads(encoder, monkeypatch):
    monkeypatch.setattr("minitrans.explain.html.LONGEST", 9)
    data = made(encoder, ["the day is " * 2, "the day is " * 3], PruningPolicy())
    assert [text["maps"] for text in data["texts"]] == [5, 1]


def test_attention_is_left_out_where_there_is_no_room(encoder):
    (found,) = explain(encoder, ["where is the parcel that I ordered?"], pruning=PruningPolicy(), timed=0)
    whole = shown(found)
    assert whole.room == sum(len(layer["data"]) for layer in whole.values["attention"])
    average = shown(found, whole.room - 1)
    assert (average.values["maps"], len(average.values["attention"])) == (1, 3)
    assert shown(found, average.room).room == average.room
    nothing = shown(found, average.room - 1)
    assert (nothing.values["maps"], nothing.values["attention"], nothing.room) == (0, [], 0)


def test_a_page_of_too_many_texts_is_refused(tmp_path):
    assert check_page(tmp_path / "a.html", MOST_TEXTS)
    with pytest.raises(InputError, match="too large for a browser, wanted at most 2000; take fewer, or --json"):
        check_page(tmp_path / "a.html", MOST_TEXTS + 1)


def test_a_page_is_written_whole(encoder, tmp_path, monkeypatch):
    found = [shown(each) for each in explain(encoder, ["one"], pruning=None, timed=False)]
    path = tmp_path / "a.html"
    assert write_page(path, encoder, None, found) == path
    before = path.read_bytes()
    monkeypatch.setattr("minitrans.explain.html.page", lambda data: "\ud800")  # cannot be written
    with pytest.raises(UnicodeEncodeError):
        write_page(path, encoder, None, found)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.html"]


def test_bad_paths(encoder, tmp_path):
    with pytest.raises(InputError, match=r"does not end in \.html"):
        check_page(tmp_path / "a.txt")
    found = [shown(each) for each in explain(encoder, ["one"], pruning=None, timed=False)]
    (tmp_path / "b.html").mkdir()
    with pytest.raises(InputError, match="is a folder, wanted a file"):
        write_page(tmp_path / "b.html", encoder, None, found)
    with pytest.raises(InputError, match="no explanations"):
        write_page(tmp_path / "a.html", encoder, None, [])
    assert write_page(tmp_path / "new" / "a.html", encoder, None, found).is_file()
