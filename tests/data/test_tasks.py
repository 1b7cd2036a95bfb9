import csv
import json
import re
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrans.data.files import Examples, read_examples, read_texts
from minitrans.data.hub import KNOWN, fetch
from minitrans.data.tasks import Task, draw, leakage, load_task, normalized_text
from minitrans.errors import DataWarning, DownloadError, InputError, InputTypeError
from minitrans.fewshot.examples import is_blank, normalized_label
from minitrans.files import bundled

ROWS = [("hello, world", "greeting"), ('say "hi"', "greeting"), ("two\nlines", "odd"), ("naïve 東京", "odd")]


def write(path, rows=ROWS, header=("text", "label")):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "A.CSV"])
def test_examples_are_read_from_each_format(tmp_path, name):
    path = write(tmp_path / name)
    assert read_examples(path) == Examples([text for text, _ in ROWS], [label for _, label in ROWS])
    assert read_texts(path) == [text for text, _ in ROWS]


def test_columns_may_have_other_names(tmp_path):
    path = write(tmp_path / "a.csv", header=("utterance", "intent"))
    assert read_examples(path, "utterance", "intent").labels == [label for _, label in ROWS]
    assert read_texts(path, "intent") == [label for _, label in ROWS]


def test_plain_text_is_a_text_a_line(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffone\r\n\n\u200b \u00a0\ntwo words".encode())
    assert read_texts(path) == ["one", "two words"]
    assert read_texts(path, keep_blank=True) == ["one", "", "\u200b \u00a0", "two words"]


def test_blank_fields_are_faults_unless_rows_must_stay_in_line(tmp_path):
    path = write(tmp_path / "a.csv", [("one", "a"), ("", "a"), ("two", "")])
    with pytest.raises(InputError, match=r"a.csv, line 3: text is empty, wanted text$"):
        read_texts(path)
    assert read_texts(path, keep_blank=True) == ["one", "", "two"]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"text\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_a_file_without_a_text_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if name == "a.csv" else content.replace(b"text", b""))
    with pytest.raises(InputError, match=r"holds no text, wanted at least one|column 'text' is missing"):
        read_texts(tmp_path / name)


@pytest.mark.parametrize("name", ["a.json", "a.ndjson"])
def test_json_is_not_read_as_lines_of_text(tmp_path, name):
    (tmp_path / name).write_text('{"text": "hi"}\n')
    with pytest.raises(InputError, match=r"ends in '.*json', wanted .jsonl for an object a line"):
        read_texts(tmp_path / name)


def test_a_field_may_be_longer_than_the_csv_module_allows(tmp_path):
    path = write(tmp_path / "a.csv", [("x" * 300_000, "long")])
    assert len(read_examples(path).texts[0]) == 300_000


SPELLINGS = ["card", " card", "card ", "card\u00a0", "card\u200b", "\ufeffcard", "\u200ecard\u200f", "ca\u00adrd"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_one_label_in_several_spellings_is_one_class(tmp_path, name):
    rows = [(f"text {i}", label) for i, label in enumerate(SPELLINGS)]
    with pytest.warns(DataWarning, match=r"several spellings of a label are read as one: 'card' \(line .* as 'card'"):
        assert set(read_examples(write(tmp_path / name, rows)).labels) == {"card"}


def test_composed_and_decomposed_labels_are_one_class(tmp_path):
    rows = [("one", "caf\u00e9"), ("two", "cafe\u0301"), ("three", "track  parcel"), ("four", "track\u00a0parcel")]
    with pytest.warns(DataWarning, match=r"'caf\\xe9' \(line 2\), 'cafe\\u0301' \(line 3\) as 'caf\u00e9'; 'track  "):
        examples = read_examples(write(tmp_path / "a.csv", rows))
    assert examples.labels == ["caf\u00e9", "caf\u00e9", "track parcel", "track parcel"]


def test_a_label_in_one_spelling_is_cleaned_without_a_word(tmp_path):
    assert read_examples(write(tmp_path / "a.csv", [("one", "card "), ("two", "card ")])).labels == ["card", "card"]


@given(st.text())
def test_a_normalized_label_is_final(label):
    name = normalized_label(label)
    assert normalized_label(name) == name
    assert is_blank(label) == (name == "")


def test_joiners_count_inside_a_label():
    persian, family = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f468\u200d\U0001f469"
    assert [normalized_label(label) for label in (persian, family)] == [persian, family]


@pytest.mark.parametrize("pair", [("Card", "card"), ("STRASSE", "stra\u00dfe"), ("\uff43ard", "card")])
def test_labels_that_differ_in_case_alone_are_warned_about(tmp_path, pair):
    path = write(tmp_path / "a.csv", [("one", pair[0]), ("two", pair[1]), ("three", "x")])
    with pytest.warns(DataWarning, match=f"labels that differ in case alone .*'{pair[0]}' and '{pair[1]}'"):
        assert set(read_examples(path).labels) == {*pair, "x"}


def test_one_text_with_several_labels_is_reported(tmp_path):
    path = write(tmp_path / "a.csv", [("hi there", "a"), ("Hi  there", "b"), ("bye", "b"), ("x", "a"), ("x", "b")])
    told = r"2 texts have several labels, .*: 'hi there' is 'a' \(line 2\) and 'b' \(line 3\)"
    with pytest.warns(DataWarning, match=told):
        assert len(read_examples(path).texts) == 5


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1), st.sampled_from(["csv", "jsonl"]))
@pytest.mark.filterwarnings("ignore::minitrans.errors.DataWarning")
def test_round_trip(tmp_path_factory, rows, suffix):
    # Blank fields are refused by design; NUL and lone surrogates have no place in UTF-8 text.
    rows = [
        (t, x) for t, x in rows if not is_blank(t) and not is_blank(x) and not re.search("[\0\ud800-\udfff]", t + x)
    ]
    if rows:
        path = write(tmp_path_factory.mktemp("round") / f"a.{suffix}", rows)
        assert pairs(read_examples(path)) == [(text, normalized_label(label)) for text, label in rows]


BAD = {
    "missing.csv": (None, "cannot read .*missing.csv: No such file"),
    "a.xlsx": (b"PK", r"ends in '.xlsx', wanted .csv, .tsv or .jsonl"),
    "column.csv": (
        b"utterance,label\nhi,a\n",
        "line 1: column 'text' is missing, wanted it once; found: utterance, label",
    ),
    "twice.csv": (b"text,label,text\nhi,a,there\n", "line 1: column 'text' is there more than once"),
    "nothing.csv": (b"", "line 1: column 'text' is missing"),
    "short.csv": (b"text,label\nhi\n", "line 2: column 'label' is missing"),
    "long.csv": (b"text,label\nhi,a\nhi, there,a\n", "line 3: more fields than the header has"),
    "quote.csv": (b'text,label\nbye,b\n"hi,a\n', "line 3: a quotation mark opens a field here and nothing closes it"),
    "latin.csv": ("text,label\nnaïve,a\n".encode("latin-1"), "is not UTF-8 text: .* in line 2, at byte 13 .0xef"),
    "same.csv": (b"text,Text,LABEL\nhi,a,b\n", "'label' is missing, .*; name the column 'LABEL', as it is written"),
    "no header.csv": (b"hi there,a\n", "found: hi there, a; wanted a header line, as text,label"),
    "invisible.csv": ("text,label\nhi,\u200b\n".encode(), "line 2: text or label is empty"),
    "null.jsonl": (b'{"text": null, "label": "a"}\n', "line 1: column 'text' is missing"),
    "nan.jsonl": (
        b'{"text": "hi", "label": NaN}\n',
        "line 1: column 'label' is a float, .*missing value: drop the row",
    ),
    "bool.jsonl": (b'{"text": "hi", "label": true}\n', "'label' is a bool, .*put true into quotation marks"),
    "twice.jsonl": (b'{"text": "hi", "label": "a", "text": "b"}\n', "line 1: .*the key 'text' comes twice"),
    "half.jsonl": (b'{"text": "\\ud83d", "label": "a"}\n', "line 1: column 'text' holds half of a surrogate pair"),
    "deep.jsonl": (b"[" * 100_000, "line 1: not valid JSON"),
    "empty.csv": (b"text,label\n", "holds no examples"),
    "blank.csv": (b"text,label\nhi,a\n  ,b\n", "line 3: text or label is empty"),
    "broken.jsonl": (b'{"text": "hi", "label": "a"}\n{"text": \n', "line 2: not valid JSON"),
    "list.jsonl": (b"[1, 2]\n", "line 1: a JSON list, wanted an object"),
    "number.jsonl": (b'{"text": 5, "label": "a"}\n', "line 1: column 'text' is a int, wanted text"),
    "latin.jsonl": ('{"text": "naïve"}\n'.encode("latin-1"), "is not UTF-8 text"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_with_the_line(tmp_path, name):
    content, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_examples(tmp_path / name)


def task_folder(folder, **splits):
    """Write split -> rows of (text, label) as CSV files."""
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        write(folder / f"{split}.csv", rows)
    return folder


TRAIN = [("red", "a"), ("green", "a"), ("blue", "a"), ("one", "b"), ("two", "b"), ("hm", "oos")]
TEST = [("pink", "a"), ("three", "b"), ("what", "oos")]


def test_a_folder_of_splits_is_a_task(tmp_path):
    folder = task_folder(tmp_path / "mine", train=TRAIN, test=TEST, validation=TEST, train_5shot=TRAIN[:4])
    write(folder / "oos_test.jsonl", [("beyond",)], ("text",))
    (folder / "README.md").write_text("a description")
    task = load_task(folder)
    assert (task.name, task.source) == ("mine", str(folder))
    assert task.splits["train"] == Examples(["red", "green", "blue", "one", "two"], list("aaabb"))
    assert set(task.splits) == {"train", "test", "valid", "train_5shot"}
    assert task.out_of_scope == {"train": ["hm"], "valid": ["what"], "test": ["what", "beyond"]}
    assert not any("oos" in examples.labels for examples in task.splits.values())


def test_a_file_is_a_task_of_one_split(tmp_path):
    task = load_task(write(tmp_path / "mine.tsv", TRAIN, ("q", "intent")), "q", "intent", out_of_scope_label="b")
    assert task.name == "mine"
    assert task.splits == {"all": Examples(["red", "green", "blue", "hm"], ["a", "a", "a", "oos"])}
    assert task.out_of_scope == {"all": ["one", "two"]}


def test_the_digest_is_that_of_the_examples(tmp_path):
    first = load_task(task_folder(tmp_path / "first", train=TRAIN, test=TEST))
    assert first.digest == load_task(task_folder(tmp_path / "second", train=TRAIN, test=TEST)).digest
    assert len(first.digest) == 64
    others = [
        task_folder(tmp_path / "order", train=TRAIN[::-1], test=TEST),
        task_folder(tmp_path / "split", train=TEST, test=TRAIN),
        task_folder(tmp_path / "label", train=[*TRAIN[:-2], ("two", "a"), TRAIN[-1]], test=TEST),
        task_folder(tmp_path / "beyond", train=TRAIN, test=[*TEST, ("more", "oos")]),
    ]
    assert len({first.digest, *(load_task(folder).digest for folder in others)}) == 5


def test_hidden_files_are_no_splits(tmp_path):
    folder = task_folder(tmp_path / "mine", train=TRAIN, test=TEST)
    for name in ("._train.csv", "~$test.csv", ".~lock.test.csv", ".valid.csv"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    assert set(load_task(folder).splits) == {"train", "test"}


@pytest.mark.parametrize("name", ["out_of_scope.csv", "oos.csv", "oos_test.csv"])
def test_a_file_of_texts_out_of_scope_belongs_to_the_test(tmp_path, name):
    folder = task_folder(tmp_path / "mine", train=TRAIN[:5], test=TEST[:2])
    write(folder / name, [("beyond", "out_of_scope")])
    assert load_task(folder).out_of_scope == {"test": ["beyond"]}


def test_the_example_data_are_a_task():
    task = load_task(bundled("examples/data"))
    assert {split: len(set(examples.labels)) for split, examples in task.splits.items()} == {"train": 14, "test": 14}
    assert [len(texts) for texts in task.out_of_scope.values()] == [30]


@pytest.mark.parametrize("name", ["test.parquet", "test.csv.gz", "out_of_scope.txt", "valid.xlsx"])
def test_a_split_in_another_format_is_not_passed_over(tmp_path, name):
    folder = task_folder(tmp_path / "mine", train=TRAIN)
    (folder / name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"{name} is named after a split, wanted .csv, .tsv or .jsonl; convert it"):
        load_task(folder)


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def denied(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(InputError, match=r"cannot read .*: Permission denied"):
        load_task(tmp_path)


def test_a_split_may_lie_beside_itself_in_another_format(tmp_path):
    folder = task_folder(tmp_path / "mine", train=TRAIN)
    (folder / "train.json").write_bytes(b"[]")
    assert set(load_task(folder).splits) == {"train"}


def test_a_label_almost_that_of_texts_out_of_scope_is_told(tmp_path):
    folder = task_folder(tmp_path / "mine", train=[*TRAIN[:5], ("hm", "OOS")])
    with pytest.warns(DataWarning, match="mine, train: labels that differ in case alone .*'oos' and 'OOS'"):
        assert "OOS" in load_task(folder).splits["train"].labels


def test_both_columns_must_not_be_one(tmp_path):
    with pytest.raises(InputError, match="text_column and label_column are both 'text', wanted two columns"):
        read_examples(write(tmp_path / "a.csv"), label_column="text")


@pytest.mark.parametrize("path", ["a\0b.csv", 5, None, b"a.csv"])
@pytest.mark.parametrize("read", [read_examples, read_texts])
def test_what_is_no_path_is_refused(path, read):
    with pytest.raises((InputError, InputTypeError), match=r"cannot read|cannot be a path|the path is a"):
        read(path)


BAD_TASKS = {
    "empty": ({}, "has no split, wanted at least a train.csv"),
    "no train": ({"test": TEST}, "has test, wanted at least a train.csv"),
    "typo": ({"train": TRAIN, "tset": TEST}, "tset.csv is named after no split, wanted train, valid, test, train_<k>"),
    "twice": ({"train": TRAIN, "dev": TEST, "valid": TEST}, "dev.csv and .*valid.csv are the same split"),
    "beyond": ({"train": TRAIN, "test": [("what", "oos")]}, "every label of test is 'oos', wanted intents too"),
    "blank": ({"train": [("hi", "a"), ("", "b")]}, "train.csv, line 3: text or label is empty"),
}


@pytest.mark.parametrize("name", BAD_TASKS)
def test_bad_tasks_are_refused(tmp_path, name):
    splits, message = BAD_TASKS[name]
    with pytest.raises(InputError, match=message):
        load_task(task_folder(tmp_path / "task", **splits))


def test_sources_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"there is no task .*/nope': wanted a folder .* one of banking77, clinc150, hwu"
    ):
        load_task(tmp_path / "nope")
    with pytest.raises(InputTypeError, match="the task is a list, wanted a path or a name"):
        load_task(["train.csv"])


def test_all_faulty_rows_are_reported_together(tmp_path):
    rows = [(f"text {i}", "" if i % 2 else "a") for i in range(14)]
    with pytest.raises(InputError) as error:
        read_examples(write(tmp_path / "a.csv", rows))
    empty = [f"line {line}: text or label is empty, wanted both" for line in (3, 5, 7, 9, 11)]
    assert str(error.value) == f"{tmp_path / 'a.csv'} has 7 faulty rows: {'; '.join(empty)}; and 2 more"
    (tmp_path / "a.jsonl").write_text(
        '{"text": "hi", "label": "a"}\n{\n[]\n{"text": "hi"}\n{"text": 1, "label": "a"}\n'
    )
    with pytest.raises(
        InputError, match=r"4 faulty rows: line 2: not valid JSON .*; line 3: a JSON list.*; line 4: .*; line 5"
    ):
        read_examples(tmp_path / "a.jsonl")


words = st.sampled_from(["a", "A ", "b", "c", "d  e", "D E", "f", "g", "h", "i", "j"])
rows = st.lists(st.tuples(words, st.sampled_from("xyz")), min_size=1, max_size=30)


def make(**splits):
    return Task("t", {split: Examples(*map(list, zip(*rows, strict=True))) for split, rows in splits.items()}, {}, "")


def pairs(examples):
    return list(zip(examples.texts, examples.labels, strict=True))


@given(rows, st.integers(1, 5), st.integers(0, 3))
def test_draws_are_stratified_and_without_replacement(train, shots, seed):
    task = make(train=train, test=[("t", "x")])
    few = draw(task, shots, seed)
    assert Counter(few.train.labels) == {
        label: min(shots, count) for label, count in Counter(label for _, label in train).items()
    }
    assert not Counter(pairs(few.train)) - Counter(train)
    assert few.test == task.splits["test"]
    assert few.left_out == []
    assert few == draw(task, shots, seed)


@given(rows, st.integers(1, 5), st.integers(0, 3), st.sampled_from(["all", "train"]))
def test_draws_without_a_test_split(examples, shots, seed, split):
    task = make(**{split: examples})
    texts = {label: {normalized_text(t) for t, x in examples if x == label} for label in {x for _, x in examples}}
    own = {label: [t for t in texts[label] if sum(t in other for other in texts.values()) == 1] for label in texts}
    wanted = {label: min(shots, len(own[label]), len(texts[label]) - 1) for label in texts}
    if not any(wanted.values()):
        with pytest.raises(InputError, match="leaves no example for the test"):
            draw(task, shots, seed)
        return
    few = draw(task, shots, seed)
    assert Counter(few.train.labels) == {label: count for label, count in wanted.items() if count}
    assert few.left_out == sorted(label for label, count in wanted.items() if not count)
    assert set(few.train.labels) == set(few.test.labels)
    drawn = {normalized_text(text) for text in few.train.texts}
    assert len(drawn) == len(few.train.texts)
    assert not drawn & {normalized_text(text) for text in few.test.texts}
    kept = [(t, x) for t, x in examples if normalized_text(t) not in drawn and x not in few.left_out]
    assert pairs(few.test) == kept
    assert few == draw(task, shots, seed)


def test_draws_differ_by_seed_and_shots_but_not_by_machine():
    task = make(train=[(f"{label} {i}", label) for label in "ab" for i in range(100)], test=[("t", "a")])
    assert draw(task, 2, 0).train.texts == ["a 44", "a 63", "b 68", "b 86"]  # of every machine and release
    few = [set(draw(task, shots, seed).train.texts) for shots in (5, 10) for seed in range(20)]
    assert len(set(map(frozenset, few))) == 40
    overlaps = [len(few[i] & few[j]) for i in range(40) for j in range(i)]
    assert sum(overlaps) / len(overlaps) < 2  # 10 x 20 / 200 = 1 at the most if they are independent
    often = Counter(text for texts in few for text in texts)
    assert len(often) > 150


def test_seed_0_is_the_official_draw():
    official = [("red", "a"), ("one", "b")]
    task = make(train=TRAIN[:5], train_1shot=official, test=TEST[:2])
    assert pairs(draw(task, 1, 0).train) == official
    assert Counter(draw(task, 1, 1).train.labels) == {"a": 1, "b": 1}
    assert pairs(draw(task, 2, 0).train) != official
    without_test = draw(make(train=TRAIN[:5], train_1shot=official), 1, 0)
    assert pairs(without_test.train) == official
    assert pairs(without_test.test) == [("green", "a"), ("blue", "a"), ("two", "b")]


@pytest.mark.parametrize(
    ("shots", "seed", "message"),
    [(0, 0, "shots is 0"), (True, 0, "shots is True"), (1, -1, "seed is -1"), (1, 0.5, "seed is 0.5")],
)
def test_impossible_draws_are_refused(shots, seed, message):
    with pytest.raises(InputError, match=message):
        draw(make(train=TRAIN, test=TEST), shots, seed)


def test_a_task_without_train_cannot_be_drawn_from():
    with pytest.raises(InputError, match="t has the splits test, wanted train"):
        draw(make(test=TEST), 1, 0)


def test_leakage_is_found_without_case_and_spacing():
    task = make(
        train=[("Hello  World", "a"), ("hello world", "b"), ("bye", "b")],
        test=[(" hello\nWORLD", "c"), ("BYE", "b"), ("x", "a")],
    )
    first, second = leakage(task)
    assert (first.text, first.test_label, first.train_labels, first.agrees) == (" hello\nWORLD", "c", ["a", "b"], False)
    assert (second.text, second.agrees) == ("BYE", True)
    assert leakage(make(train=TRAIN)) == []


def jsonl(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub: `cached` says whether files are here already, `error` what the network answers with."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    state = types.SimpleNamespace(calls=[], cached=False, error=None, folder=tmp_path / "hub")

    def hf_hub_download(repo_id, filename, *, repo_type, revision, etag_timeout, local_files_only):
        state.calls.append((repo_id, filename, repo_type, revision, local_files_only))
        if local_files_only and not state.cached:
            raise LocalEntryNotFoundError("not here")
        return str(state.folder / filename)

    def dataset_info(self, repo_id, *, revision, timeout):
        if state.error:
            raise state.error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        jsonl(state.folder / f"{split}.jsonl", text=["hi", "bye"], label=[0, 1], label_text=["greet", "leave"])
    return state


def test_a_known_data_set_comes_from_the_hub_at_a_pinned_commit(hub):
    task = load_task("banking77")
    assert task.splits["train"] == Examples(["hi", "bye"], ["greet", "leave"])
    assert (task.name, task.source, set(task.splits)) == ("banking77", "banking77", {"train", "test"})
    repository, _, kind, revision, _ = hub.calls[-1]
    assert (repository, kind) == ("mteb/banking77", "dataset")
    assert all(re.fullmatch("[0-9a-f]{40}", known.revision) for known in KNOWN.values())
    assert revision == KNOWN["banking77"].revision
    assert {call[1] for call in hub.calls} == {"train.jsonl", "test.jsonl"}


def test_what_is_cached_asks_for_no_network(hub):
    hub.cached, hub.error = True, AssertionError("the network was asked for")
    assert len(load_task("banking77").splits["test"].texts) == 2


def test_no_connection_is_opened_where_that_is_forbidden(hub):
    hub.error = AssertionError("the network was asked for")
    with pytest.raises(DownloadError, match=r"banking77 \(.*\) is not on this machine, and local_files_only forbids"):
        load_task("banking77", local_files_only=True)
    hub.cached = True
    assert load_task("banking77", local_files_only=True).name == "banking77"


def test_a_folder_of_that_name_wins(hub, tmp_path):
    task_folder(tmp_path / "banking77", train=TRAIN, test=TEST)
    assert len(load_task("banking77").splits["train"].texts) == 5
    assert hub.calls == []


@pytest.mark.parametrize("error", [OSError("no route\nto host"), ValueError("odd"), TimeoutError()])
def test_a_hub_that_does_not_answer_is_an_error_with_a_remedy(hub, error):
    hub.error = error
    message = (
        rf"banking77 could not be fetched from the hub .*{type(error).__name__}: .*give a folder that holds train.csv"
    )
    with pytest.raises(DownloadError, match=message) as caught:
        load_task("banking77")
    assert "\n" not in str(caught.value)


def test_the_hubs_progress_bars_stay_silent_and_come_back(hub, monkeypatch):
    import huggingface_hub
    from huggingface_hub.utils import are_progress_bars_disabled

    during = []
    download = huggingface_hub.hf_hub_download
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda *a, **o: during.append(are_progress_bars_disabled("huggingface_hub")) or download(*a, **o),
    )
    before = are_progress_bars_disabled("huggingface_hub")
    load_task("banking77")
    assert all(during)
    assert are_progress_bars_disabled("huggingface_hub") == before


def test_unknown_names_are_no_data_sets():
    with pytest.raises(InputError, match="'nosuch' is no known data set, wanted one of banking77"):
        fetch("nosuch")


def test_parquet_needs_pyarrow(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        InputError, match=r"is a Parquet file, and pyarrow is not installed .*minitrans\[datasets\].*, or give"
    ):
        load_task("hwu64")


class Table:
    """As much of pyarrow's table as is used."""

    def __init__(self, columns, names=None):
        self.columns = columns
        features = {"intent": {"names": names, "_type": "ClassLabel"}}
        metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if names else None
        self.schema = type("Schema", (), {"metadata": metadata})

    def __getitem__(self, name):
        return type("Column", (), {"to_pylist": lambda _: self.columns[name]})()


@pytest.fixture
def parquet(hub, monkeypatch):
    """Stands in for pyarrow.parquet: its `read_table` gives the table that a test sets."""
    module = types.ModuleType("pyarrow.parquet")
    module.read_table = lambda path, columns: module.table
    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", module)
    return module


def test_class_numbers_become_the_names_that_the_file_has(parquet):
    parquet.table = Table({"text": ["hi", "bye", "huh"], "intent": [1, 0, 2]}, ["leave", "greet", "oos"])
    task = load_task("clinc150")
    assert task.splits["test"] == Examples(["hi", "bye"], ["greet", "leave"])
    assert task.out_of_scope == {"train": ["huh"], "valid": ["huh"], "test": ["huh"]}


def test_labels_that_are_names_stay(parquet):
    parquet.table = Table({"text": ["hi", "bye"], "label": ["greet", "leave"]})
    assert load_task("hwu64").splits["valid"] == Examples(["hi", "bye"], ["greet", "leave"])


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        ({"text": ["hi"], "intent": [2]}, ["a", "b"], "row 0: text is 'hi' and intent 2, wanted .* one of the 2 names"),
        ({"text": ["hi"], "intent": [-1]}, ["a", "b"], "row 0"),
        ({"text": ["hi", None], "intent": [0, 0]}, ["a"], "row 1"),
        ({"text": [" "], "intent": [0]}, ["a"], "row 0"),
        ({"text": ["hi"], "intent": [0]}, None, "one of the 0 names"),
        ({"text": ["hi"], "intent": [0]}, [5], "one of the 0 names"),
        ({"text": ["hi"]}, ["a"], "cannot read .*KeyError"),
    ],
)
def test_broken_parquet_files_are_refused(parquet, columns, names, message):
    parquet.table = Table(columns, names)
    with pytest.raises(InputError, match=message):
        load_task("clinc150")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "classes", "test", "beyond"),
    [
        ("banking77", 77, 3080, 0),
        ("clinc150", 150, 4500, 1000),
        ("hint3_sofmattress", 21, 253, 144),
        ("snips", 7, 700, 0),
    ],
)
def test_real_data_sets(data_folder, name, classes, test, beyond):
    task = load_task(data_folder / name)
    assert len(set(task.splits["train"].labels)) == classes
    assert len(task.splits["test"].texts) == test
    assert len(task.out_of_scope.get("test", [])) == beyond
    assert set(Counter(draw(task, 5, 1).train.labels).values()) == {5}
    if "train_5shot" in task.splits:
        assert draw(task, 5, 0).train == task.splits["train_5shot"]


@pytest.mark.data
def test_leakage_of_a_real_data_set(data_folder):
    assert [leak.agrees for leak in leakage(load_task(data_folder / "hint3_curekart"))] == [True] * 8
