"""Search tasks: from files, from long texts, from labelled ones; what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tasks import WORDS, word_task

from minitrans.data.files import Examples, read_pairs
from minitrans.data.searches import SearchTask, half_search, headline_search, intent_search, load_search
from minitrans.data.tasks import Task
from minitrans.errors import InputError, InputTypeError

ROWS = [("where is it", "on its way"), ("how to pay", "by card"), ("where is it", "in the shop"), ("when", "by card")]
CSV = "query,document\n" + "".join(f"{query},{document}\n" for query, document in ROWS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("shop.csv", CSV),
        ("shop.tsv", CSV.replace(",", "\t")),
        ("shop.csv", "document;n;query\n" + "".join(f"{document};0;{query}\n" for query, document in ROWS)),
        ("shop.jsonl", "".join(json.dumps({"query": q, "document": d, "more": 1}) + "\n" for q, d in ROWS)),
    ],
)
def test_rows_are_queries_with_their_documents(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    task = load_search(tmp_path / name)
    assert (task.name, task.source) == ("shop", str(tmp_path / name))
    assert task.queries == ["where is it", "how to pay", "when"]
    assert task.documents == ["on its way", "in the shop", "by card"]
    assert task.relevant == [[0, 1], [2], [2]]


def test_other_columns_and_delimiters(tmp_path):
    (tmp_path / "t.csv").write_text("q|answer\na|b\n")
    task = load_search(tmp_path / "t.csv", "q", "answer", "|")
    assert (task.queries, task.documents) == (["a"], ["b"])
    assert read_pairs(tmp_path / "t.csv", "q", "answer") == [("a", "b")]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abxy")), min_size=1, max_size=20))
def test_what_is_relevant_is_what_the_rows_say(tmp_path_factory, pairs):
    """A text may be a query and a document too, as "a" and "b" are."""
    file = tmp_path_factory.getbasetemp() / "pairs.jsonl"
    file.write_text("".join(json.dumps({"query": q, "document": d}) + "\n" for q, d in pairs))
    task = load_search(file)
    assert sorted(task.queries) == sorted({query for query, _ in pairs})
    assert sorted(task.documents) == sorted({document for _, document in pairs})
    found = {
        (query, task.documents[row]) for query, rows in zip(task.queries, task.relevant, strict=True) for row in rows
    }
    assert found == set(pairs)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"question,document\na,b\n", "line 1: column 'query' is missing"),
        ("t.csv", b"query,answer\na,b\n", "line 1: column 'document' is missing"),
        ("t.csv", b"query,query,document\na,b,c\n", "column 'query' is there more than once"),
        ("t.csv", b"query,document\na,b\n ,c\n", "line 3: query or document is empty, wanted both"),
        ("t.csv", b"query,document\na,b\nc,\n", "line 3: query or document is empty, wanted both"),
        ("t.csv", b"query,document\na\n", "line 2: column 'document' is missing, wanted text"),
        ("t.csv", b"query,document\na,b,c\n", "line 2: more fields than the header has"),
        ("t.csv", b"query,document\n", "holds no examples, wanted at least one row"),
        ("t.csv", b"", "column 'query' is missing"),
        ("t.csv", b'query,document\n"a,b\n', "nothing closes it"),
        ("t.csv", b"query,document\na\0,b\n", "NUL in line 2, at byte 16"),
        ("t.csv", b"query,document\n\xff\xfea,b\n", "is not UTF-8 text"),
        ("t.csv", b"PK\x03\x04", "a zip archive"),
        ("t.jsonl", b'{"query": "a"}\n', "column 'document' is missing"),
        ("t.jsonl", b'{"query": 1, "document": "b"}\n', "column 'query' is a int"),
        ("t.jsonl", b"[1]\n", "a JSON list, wanted an object"),
        ("t.jsonl", b"", "holds no examples"),
        ("t.txt", b"query,document\na,b\n", "the file ends in '.txt', wanted .csv, .tsv or .jsonl"),
    ],
)
def test_what_is_no_search_is_refused(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        load_search(tmp_path / name)
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for path in (tmp_path / "folder.csv", tmp_path / "gone.csv"):
        with pytest.raises(InputError, match="cannot read"):
            load_search(path)
    with pytest.raises(InputTypeError):
        load_search(3)
    (tmp_path / "t.csv").write_text(CSV)
    with pytest.raises(InputError, match="query_column and document_column are both 'query', wanted two columns"):
        load_search(tmp_path / "t.csv", document_column="query")


@pytest.mark.parametrize(
    ("queries", "relevant"), [([], []), (["a"], []), (["a"], [[]]), (["a"], [[2]]), (["a"], [[-1]]), (["a"], [[1, 0]])]
)
def test_relevant_documents_that_do_not_fit_are_refused(queries, relevant):
    SearchTask("it", ["a"], ["x", "y"], [[0, 1]], "")
    with pytest.raises(InputError, match="it"):
        SearchTask("it", queries, ["x", "y"], relevant, "")


def test_the_digest_is_of_the_texts_and_what_answers_what():
    base = {"name": "a", "queries": ["q"], "documents": ["x", "y"], "relevant": [[0]], "source": "s"}
    digest = SearchTask(**base).digest
    assert SearchTask(**base | {"name": "b", "source": "t"}).digest == digest
    for change in ({"queries": ["Q"]}, {"documents": ["y", "x"]}, {"relevant": [[1]]}, {"relevant": [[0, 1]]}):
        assert SearchTask(**base | change).digest != digest


# From long texts


@pytest.mark.parametrize(
    ("text", "first", "rest"),
    [
        ("Rates may rise. The bank said so. Soon.", "Rates may rise.", "The bank said so. Soon."),
        ("Up by 2.5 percent in May!  More to come.", "Up by 2.5 percent in May!", "More to come."),
        ('"Will it rain?" Nobody knows.', '"Will it rain?"', "Nobody knows."),
        ("Mr. Smith went away. He came back.", "Mr. Smith went away.", "He came back."),
        ("A headline without stop\n\nThe text. More.", "A headline without stop", "The text. More."),
        ("今天天气很好。我们去公园。", "今天天气很好。", "我们去公园。"),
    ],
)
def test_a_headline_finds_the_rest(text, first, rest):
    task = headline_search("news", [text, "only one sentence here.", ""])
    assert (task.name, task.queries, task.documents, task.relevant) == ("news", [first], [rest], [[0]])


@given(st.text("ab .\n", max_size=40))
def test_halves_are_cut_at_the_blanks_nearest_to_the_middle(text):
    words = text.split()
    if len(words) < 2:
        with pytest.raises(InputError, match="halves: no text has two words"):
            half_search("halves", [text])
        return
    task = half_search("halves", [text])
    (first,), (second,) = task.queries, task.documents
    assert first.split() + second.split() == words
    assert text.strip().startswith(first)
    assert text.strip().endswith(second)
    text = text.strip()
    middles = []  # of each run of blanks
    for i, character in enumerate(text):
        if character.isspace() and not text[i - 1].isspace():
            end = next(j for j in range(i, len(text)) if not text[j].isspace())
            middles.append((i + end) / 2)
    cut = (len(first) + len(text) - len(second)) / 2
    assert abs(cut - len(text) / 2) == min(abs(each - len(text) / 2) for each in middles)


def test_texts_that_begin_alike_share_a_query():
    task = half_search("halves", ["one two", "one six", "ten two"])
    assert (task.queries, task.documents, task.relevant) == (["one", "ten"], ["two", "six"], [[0, 1], [0]])


@pytest.mark.parametrize("make", [headline_search, half_search])
@pytest.mark.parametrize(("texts", "message"), [([], "no text has"), (["word"], "no text has"), ("a b", "one str")])
def test_nothing_to_search_for_is_refused(make, texts, message):
    with pytest.raises(InputError, match=message):
        make("it", texts)


# From labelled texts


def test_test_texts_search_for_training_texts_of_their_label():
    task = intent_search(word_task())
    train = {label: texts[:4] for label, texts in WORDS.items()}
    assert task.queries == [text for texts in WORDS.values() for text in texts[4:]]
    assert task.documents == [text for texts in train.values() for text in texts]
    for query, rows in zip(task.queries, task.relevant, strict=True):
        (label,) = [label for label, texts in WORDS.items() if query in texts]
        assert [task.documents[row] for row in rows] == train[label]


def test_labels_of_one_split_alone():
    train = Examples(["x", "y", "both", "both"], ["a", "b", "a", "c"])
    task = intent_search(
        Task("it", {"train": train, "test": Examples(["q", "r", "x"], ["a", "gone", "c"])}, {}, "here")
    )
    assert (task.name, task.source) == ("it", "here")
    assert (task.queries, task.documents, task.relevant) == (["q", "x"], ["x", "y", "both"], [[0, 2], [2]])
    with pytest.raises(InputError, match="no label that is in train and in test"):
        intent_search(Task("it", {"train": train, "test": Examples(["q"], ["gone"])}, {}, ""))
    with pytest.raises(InputError, match="it has the splits all, wanted train and test"):
        intent_search(Task("it", {"all": train}, {}, ""))


def test_a_name_with_a_letter_beyond_ascii_is_no_sentence():
    found = headline_search("", ["Müller. He went home. It rained."])
    assert found.queries == ["Müller. He went home."]


def test_blanks_in_great_number_take_no_great_time():
    """Each run of them is looked at once: with the square of their number this would take hours."""
    text = "one two" + " " * 1_000_000 + "three. Then more."
    assert headline_search("", [text]).documents == ["Then more."]
