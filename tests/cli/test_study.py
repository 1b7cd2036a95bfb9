"""`minitrans evaluate` and `minitrans adapt` as their users meet them."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tiny_tasks import tiny_rows

from minitrans import PruningPolicy, SentenceEncoder
from minitrans.adaptation import adapt as adaptation
from minitrans.adaptation.fitting import token_moments
from minitrans.adaptation.recipes import grid
from minitrans.adaptation.search import Search
from minitrans.encoder.policy_files import arrays_of
from minitrans.evaluation import measurement
from minitrans.evaluation.journal import Journal

TRAIN = """text,label
hi there,greeting
good morning,greeting
hello you,greeting
where is my parcel,tracking
track my order,tracking
has my order shipped,tracking
"""
TEST = "text,label\nhello,greeting\nis my parcel sent,tracking\nhi  there,greeting\nwhat is love,oos\n"


@pytest.fixture(autouse=True)
def no_rounds(monkeypatch):
    monkeypatch.setattr(measurement, "ROUNDS", 1)


@pytest.fixture
def task(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "train.csv").write_text(TRAIN)
    (tmp_path / "shop" / "test.csv").write_text(TEST)
    return tmp_path / "shop"


@pytest.fixture
def run(run_cli, plain):
    """run("--task", folder) -> exit code, standard output, standard error; on a small random model."""

    def call(*arguments, command="evaluate"):
        return run_cli(command, *arguments, "--model", plain)

    return call


def test_a_table_with_no_pruning_and_each_policy(run, task, tmp_path):
    PruningPolicy(min_tokens=2, quantile=0.5, layer=0).save(tmp_path / "half.json")
    code, out, err = run("--task", task, "--shots", "1,2", "--seeds", "2", "--pruning", tmp_path / "half.json")
    assert code == 0
    table, by_length = out.split("\n\n")
    assert by_length.split()[:4] == ["task", "pruning", "8", "tokens"]
    lines = table.splitlines()
    assert lines[0].split()[:4] == ["task", "shots", "pruning", "draws"]
    assert [line.split()[:4] for line in lines[1:]] == [
        ["shop", shots, policy, "2"] for shots in ("1", "2") for policy in ("none", "half")
    ]
    assert err == (
        "Note: shop: 1 of 3 test texts are in train too, 0 of them under another label; "
        "for example 'hi  there' (greeting)\n"
    )


def test_json_holds_rows_cells_and_what_ran(run, task):
    code, out, _ = run("--task", task, "--shots", "1", "--seeds", "2", "--pruning", "default", "--json")
    found = json.loads(out)
    assert code == 0
    assert [row["pruning"] for row in found["rows"]] == ["none", "default"]
    assert len(found["cells"]) == 4
    assert found["cells"][0]["test_examples"] == 3  # without what is out of scope
    assert found["settings"]["policies"] == {"none": None, "default": PruningPolicy().to_dict()}
    assert found["encoder"]["layers"] == 3


def test_options_of_the_classifier_and_of_the_columns(run, tmp_path):
    (tmp_path / "one.csv").write_text(TRAIN.replace("text,label", "q,intent"))
    arguments = ("--task", tmp_path / "one.csv", "--text-column", "q", "--label-column", "intent", "--shots", "2")
    code, out, _ = run(*arguments, "--seeds", "1", "--C", "0.5", "--no-label-names", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["settings"]["C"], found["settings"]["label_names"]) == (0.5, False)
    assert [(cell["train_examples"], cell["test_examples"]) for cell in found["cells"]] == [(4, 2)]


def test_several_tasks_end_in_their_mean(run, task, tmp_path):
    (tmp_path / "other.csv").write_text(TRAIN)
    _, out, _ = run("--task", task, "--task", tmp_path / "other.csv", "--shots", "1", "--seeds", "2")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["shop", "other", "(mean)"]


@pytest.mark.parametrize("name", ["table.csv", "table.md", "table.json"])
def test_the_output_file_holds_what_was_found(run, task, tmp_path, name):
    file = tmp_path / "new" / name
    code, out, err = run("--task", task, "--shots", "1", "--seeds", "2", "--output", file, "--json")
    found = json.loads(out)
    assert code == 0
    assert f"{file}: 1 rows" in err
    if name.endswith(".csv"):
        (row,) = csv.DictReader(io.StringIO(file.read_text()))
        assert float(row["accuracy"]) == found["rows"][0]["accuracy"]
        assert row.keys() == found["rows"][0].keys()
    elif name.endswith(".md"):
        assert file.read_text().startswith("| task | shots | pruning |")
    else:
        assert json.loads(file.read_text()) == found


def test_a_journal_is_gone_on_from(run, task, tmp_path):
    arguments = ("--task", task, "--shots", "1", "--journal", tmp_path / "run.jsonl")
    _, _, err = run(*arguments, "--seeds", "2")
    assert f"{tmp_path / 'run.jsonl'}: 0 cells were there, 2 are new\n" in err
    _, out, err = run(*arguments, "--seeds", "3")
    assert f"{tmp_path / 'run.jsonl'}: 2 cells were there, 1 are new\n" in err
    assert out.splitlines()[1].split()[:4] == ["shop", "1", "none", "3"]


def test_texts_out_of_scope_are_a_second_table(run, task, tmp_path):
    (tmp_path / "other.csv").write_text(TRAIN)
    (task / "oos_train.csv").write_text("text\nsing a song\nwho are you\n")
    arguments = ("--task", task, "--task", tmp_path / "other.csv", "--shots", "2", "--seeds", "2", "--out-of-scope")
    journal = ("--journal", tmp_path / "run.jsonl")
    code, out, err = run(*arguments, *journal)
    assert code == 0
    assert "Note: other: no texts out of scope to test with, so only in the first table\n" in err
    assert "run.jsonl: 0 cells were there, 6 are new" in err
    second = out.split("\n\n")[1].splitlines()
    assert second[0].split()[:5] == ["task", "shots", "pruning", "calibrated", "score"]
    assert [line.split()[:5] for line in second[1:]] == [
        ["shop", "2", "none", calibration, "oos"] for calibration in ("without", "with")
    ]
    code, out, err = run(*arguments, *journal, "--all-scores", "--json")
    assert "run.jsonl: 6 cells were there, 0 are new" in err
    assert len(json.loads(out)["out_of_scope"]["rows"]) == 8


def test_files_with_both_tables(run, task, tmp_path):
    arguments = ("--task", task, "--shots", "2", "--seeds", "2", "--out-of-scope", "--journal", tmp_path / "j")
    code, out, err = run(*arguments, "--output", tmp_path / "table.csv", "--json")
    found = json.loads(out)
    assert code == 0
    assert f"{tmp_path / 'table.csv'}: 1 rows\n{tmp_path / 'table.out-of-scope.csv'}: 1 rows\n" in err
    (row,) = csv.DictReader(io.StringIO((tmp_path / "table.out-of-scope.csv").read_text()))
    assert float(row["auroc"]) == found["out_of_scope"]["rows"][0]["auroc"]
    assert row.keys() == found["out_of_scope"]["rows"][0].keys()
    (row,) = csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))
    assert float(row["accuracy"]) == found["rows"][0]["accuracy"]
    _, _, err = run(*arguments, "--output", tmp_path / "table.md")
    assert f"{tmp_path / 'table.md'}: 1 and 1 rows\n" in err
    assert (tmp_path / "table.md").read_text().count("| task | shots |") == 2
    run(*arguments, "--output", tmp_path / "table.json")
    assert "out_of_scope" in json.loads((tmp_path / "table.json").read_text())


SEARCH = """query,document
where is my parcel,track my order
where is my parcel,has my order shipped
hello there,hi there
good day,good morning
"""


@pytest.fixture
def search(tmp_path):
    (tmp_path / "faq.csv").write_text(SEARCH)
    return tmp_path / "faq.csv"


@pytest.fixture
def half(tmp_path):
    PruningPolicy(min_tokens=2, quantile=0.5, layer=0).save(tmp_path / "half.json")
    return tmp_path / "half.json"


def test_a_search_is_a_table_of_its_own(run, search, half):
    code, out, err = run("--search", search, "--pruning", half)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][:6] == ["task", "pruning", "pruned", "queries", "documents", "MRR@10"]
    assert [line[:5] for line in lines[1:]] == [
        ["faq", "none", "-", "3", "4"],
        *(["faq", "half", way, "3", "4"] for way in ("both", "queries", "documents")),
    ]
    _, out, _ = run("--search", search, "--pruning", half, "--json")
    found = json.loads(out)
    assert list(found) == ["search"]
    assert [row["pruned"] for row in found["search"]["rows"]] == [None, "both", "queries", "documents"]
    assert found["search"]["settings"]["tasks"]["faq"]["source"] == str(search)


def test_columns_of_a_search_have_other_names(run, tmp_path):
    (tmp_path / "faq.csv").write_text(SEARCH.replace("query,document", "q,a").replace(",", ";"))
    columns = ("--query-column", "q", "--document-column", "a")
    code, out, _ = run("--search", tmp_path / "faq.csv", *columns, "--delimiter", ";", "--json")
    assert code == 0
    assert json.loads(out)["search"]["rows"][0]["queries"] == 3


def test_a_table_beside_the_output_is_no_input_either(run, task, search, tmp_path):
    read = search.rename(tmp_path / "t.search.csv")
    before = read.read_bytes()
    code, out, err = run("--task", task, "--search", read, "--output", tmp_path / "t.csv")
    assert (code, out) == (2, "")
    assert f"--output for search is {read}, which is read too; name another file" in err
    assert read.read_bytes() == before


def test_tasks_and_searches_in_one_run(run, task, search, half, tmp_path):
    (task / "test.csv").write_text(TEST + f"{'hi ' * 30},greeting\n")  # of another length
    arguments = ("--task", task, "--shots", "2", "--seeds", "2", "--out-of-scope", "--search", search)
    arguments += ("--pruning", half, "--journal", tmp_path / "j")
    code, out, err = run(*arguments, "--output", tmp_path / "t.csv")
    assert code == 0
    assert f"{tmp_path / 'j'}: 0 cells were there, 10 are new\n" in err
    files = ["t.csv", "t.turn-by-length.csv", "t.out-of-scope.csv", "t.search.csv"]
    counts = [2, 1, 2, 4]
    for name, count in zip(files, counts, strict=True):
        assert f"{tmp_path / name}: {count} rows\n" in err
    tables = out.split("\n\n")
    assert [len(table.splitlines()) - 1 for table in tables] == counts
    assert tables[1].splitlines()[0].split() == ["task", "pruning", "8", "tokens", "16", "tokens", "64", "tokens"]
    assert tables[0].splitlines()[1].split()[-2:] == ["-", "-"]  # no pruning
    code, out, err = run(*arguments, "--output", tmp_path / "t.json", "--json")
    assert f"{tmp_path / 'j'}: 10 cells were there, 0 are new\n" in err
    found = json.loads(out)
    assert json.loads((tmp_path / "t.json").read_text()) == found
    parts = [found["rows"], found["turn_by_length"], found["out_of_scope"]["rows"], found["search"]["rows"]]
    assert [len(rows) for rows in parts] == counts
    for name, rows in zip(files, parts, strict=True):
        for read, row in zip(csv.DictReader(io.StringIO((tmp_path / name).read_text())), rows, strict=True):
            assert row.keys() <= read.keys()
            assert {key: value for key, value in read.items() if value} == {
                key: str(value) for key, value in row.items() if value is not None
            }
    _, _, err = run(*arguments, "--output", tmp_path / "t.md")
    assert f"{tmp_path / 't.md'}: 2 and 1 and 2 and 4 rows\n" in err
    assert (tmp_path / "t.md").read_text().count("| task") == 4


def test_no_texts_out_of_scope_is_an_error_before_the_work(run, tmp_path):
    (tmp_path / "one.csv").write_text(TRAIN)
    code, out, err = run(
        "--task", tmp_path / "one.csv", "--shots", "1", "--out-of-scope", "--output", tmp_path / "t.md"
    )
    assert (code, out) == (2, "")
    assert "one: no texts out of scope to test with; wanted some" in err
    assert not (tmp_path / "t.md").exists()


BAD = {
    ("--shots", "1"): "Missing option '--task' or '--search'",
    ("--search", "/nope.csv"): "cannot read /nope.csv",
    ("--search", "{task}"): "wanted .csv, .tsv or .jsonl",
    ("--search", "{task}/train.csv"): "column 'query' is missing",
    ("--search", "{search}", "--query-column", "q"): "column 'q' is missing",
    ("--search", "{search}", "--document-column", "query"): "are both 'query', wanted two columns",
    ("--search", "{search}", "--search", "{search}"): "the tasks are faq, faq",
    ("--search", "{search}", "--out-of-scope"): "--out-of-scope is about tasks, and there is none",
    ("--search", "{search}", "--output", "{search}"): "faq.csv, which is read too; name another file",
    ("--task", "/nope"): "there is no task '/nope'",
    ("--task", "hwu64", "--local-files-only"): "hwu64 (FastFit/hwu_64, revision 9fb5bff) is not on this machine",
    ("--task", "{task}", "--shots", "1,x"): "'1,x' is not a list of whole numbers",
    ("--task", "{task}", "--all-scores"): "--all-scores is about the table of --out-of-scope",
    ("--task", "{task}", "--shots", "0"): "shots is 0, wanted a positive integer",
    ("--task", "{task}", "--seeds", "0"): "--seeds",
    ("--task", "{task}", "--C", "-1"): "C is -1.0",
    ("--task", "{task}", "--task", "{task}"): "the tasks are shop, shop",
    ("--task", "{task}", "--pruning", "/nope.json"): "/nope.json",
    ("--task", "{task}", "--pruning", "a/default.json", "--pruning", "default"): "cannot read a/default.json",
    ("--task", "{task}", "--output", "table.xlsx"): "table.xlsx ends in '.xlsx'",
    ("--task", "{task}", "--journal", "{task}/train.csv"): "train.csv, which is read too; name another file",
    ("--task", "{task}", "--label-column", "intent"): "column 'intent' is missing",
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_one_line_and_exit_code_2(run, task, search, arguments, no_network, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    code, out, err = run(*(argument.format(task=task, search=search) for argument in arguments))
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if not line.startswith("Note: ")]
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert BAD[arguments] in lines[0]
    assert (task / "train.csv").read_text() == TRAIN


@pytest.mark.filterwarnings("default")
def test_truncation_is_one_line(run, task):
    (task / "test.csv").write_text(f"text,label\n{'word ' * 300},greeting\nis my parcel sent,tracking\n")
    code, _, err = run("--task", task, "--shots", "1,2", "--seeds", "2", "--pruning", "default")
    assert code == 0
    assert err.startswith("Warning: 1 of ")
    assert len(err.splitlines()) == 1


def test_two_policies_of_one_name_are_refused(run, task, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        PruningPolicy().save(tmp_path / folder / "mine.json")
    code, _, err = run("--task", task, "--pruning", tmp_path / "a/mine.json", "--pruning", tmp_path / "b/mine.json")
    assert code == 2
    assert "two policies are called 'mine'" in err


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_ctrl_c_ends_quietly_and_the_next_run_goes_on(run, task, tmp_path, plain):
    journal, seeds = tmp_path / "run.jsonl", 1000
    arguments = ("--task", str(task), "--shots", "1,2", "--seeds", str(seeds), "--journal", str(journal))
    with subprocess.Popen(
        [sys.executable, "-m", "minitrans", "evaluate", *arguments, "--model", str(plain)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Whoever runs the tests in the background has switched the signal off for all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            for _ in range(600):
                if journal.exists() and journal.read_bytes().count(b"\n") > 20:
                    break
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    finished = sum(b'"kind":"evaluation"' in line for line in journal.read_bytes().splitlines())
    assert 15 < finished < 2 * seeds
    code, _, err = run("--task", task, "--shots", "1", "--seeds", "10", "--journal", journal)
    assert code == 0
    assert "10 cells were there, 0 are new" in err


def test_help_loads_no_arrays(run_python):
    run_python(
        "import sys; from minitrans.cli.main import cli; cli(['evaluate', '--help'], standalone_mode=False);"
        "assert not {'numpy', 'tokenizers', 'huggingface_hub'} & set(sys.modules)"
    )


@pytest.mark.data
def test_a_real_task(run, data_folder):
    arguments = ("--task", data_folder / "hint3_sofmattress", "--shots", "1", "--seeds", "2")
    code, out, _ = run(*arguments, "--on-truncation", "ignore", "--json")
    assert code == 0
    assert {cell["test_examples"] for cell in json.loads(out)["cells"]} == {253}


# minitrans adapt


def few_recipes(num_layers):
    shares = {("attention", "drop"): 0.35, ("learned", "restore"): 0.5}
    return [each for each in grid(num_layers) if each.stages[0][1] == shares.get((each.score, each.reduce))]


@pytest.fixture
def few(monkeypatch):
    """Few policies to try."""
    monkeypatch.setattr(adaptation, "grid", few_recipes)
    monkeypatch.setattr(adaptation, "PARENTS", 1)
    monkeypatch.setattr("minitrans.cli.main._quit", sys.exit)  # closes standard output


@pytest.fixture
def adapt(few, run, tmp_path):
    """adapt("--max-drop", 50) -> exit code, standard output, standard error; two small tasks and few policies."""
    sources = []
    for seed, name in enumerate(("a", "b")):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *tiny_rows(seed)])
        sources += ["--task", tmp_path / f"{name}.csv"]

    def call(*arguments, output=tmp_path / "out" / "policy.json"):
        few = ("--shots", "1", "--seeds", "2", "--threads", "1")
        return run(*sources, *few, "-o", output, *arguments, command="adapt")

    return call


@pytest.fixture(scope="module")
def journals():
    """Contents of a journal, once a test has made one: what later tests need not compute again."""
    return []


@pytest.fixture
def adapt_again(adapt, journals, tmp_path):
    """The same with a journal that holds all that the search needs."""
    if not journals:
        assert adapt(*LAX, output=tmp_path / "first" / "policy.json")[0] == 0
        journals.append((tmp_path / "first" / "policy.journal.jsonl").read_bytes())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "policy.journal.jsonl").write_bytes(journals[0])
    return adapt


@pytest.fixture
def hopeless(monkeypatch):
    """No policy comes near what no pruning reaches."""
    base = Search.base
    monkeypatch.setattr(Search, "base", lambda self, trial: base(self, trial) + 1)


LAX = ("--max-drop", "100", "--confidence", "0.5")
REFERENCE = "{file}: written; use it with SentenceEncoder(pruning=PruningPolicy.load('{file}'))"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_adapt_writes_a_policy_a_report_and_a_journal(adapt, journals, tmp_path, plain, monkeypatch):
    pytest.importorskip("matplotlib")
    code, out, err = adapt(*LAX)
    folder = tmp_path / "out"
    assert code == 0
    assert err.splitlines() == [
        f"{folder / 'policy.md'}: written",
        f"{folder / 'policy.svg'}: written",
        REFERENCE.format(file=folder / "policy.json"),
    ]
    policy = PruningPolicy.load(folder / "policy.json")
    arrays = {arrays_of(folder / "policy.json").name} if policy.fitted else set()
    wanted = {"policy.json", "policy.md", "policy.svg", "policy.journal.jsonl"} | arrays
    assert {path.name for path in folder.iterdir()} == wanted
    assert policy.provenance["tasks"].keys() == {"a", "b"}
    limits = {"mean_drop": 100, "task_drop": 200, "confidence": 0.5, "turn": None, "search_drop": None}
    assert policy.provenance["limits"] == limits
    assert (policy.provenance["shots"], policy.provenance["seeds"]) == ([1], [0, 1])
    assert SentenceEncoder(plain, pruning=policy).encode("where is my new card please").shape == (32,)
    assert [line for line in out.splitlines() if "(chosen)" in line]
    assert out.splitlines()[0].split()[0] == "what"
    # Again: the same files, and nothing is computed.
    before = contents(folder)
    monkeypatch.setattr(Search, "_embed", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(adaptation, "interleaved", lambda *_: pytest.fail("timed again"))
    assert adapt(*LAX) == (0, out, err)
    assert contents(folder) == before
    journals.append(before["policy.journal.jsonl"])


def test_adapt_puts_files_where_it_is_told(adapt_again, tmp_path):
    (tmp_path / "out" / "policy.journal.jsonl").rename(tmp_path / "j.jsonl")
    code, _, err = adapt_again(
        *LAX, "--max-task-drop", "150", "--report", tmp_path / "r" / "found.md", "--journal", tmp_path / "j.jsonl"
    )
    assert code == 0
    assert f"{tmp_path / 'r' / 'found.md'}: written" in err
    assert {path.suffix for path in (tmp_path / "out").iterdir()} <= {".json", ".safetensors"}
    assert PruningPolicy.load(tmp_path / "out" / "policy.json").provenance["limits"]["task_drop"] == 150


def test_adapt_keeps_limits_on_searches_and_turns(few, run, adapt, search, tmp_path):
    code, _, err = adapt(*LAX, "--seeds", "1", "--search", search, "--max-turn", "80", "--max-search-drop", "90")
    assert (code, err.count("written")) == (0, err.count("\n"))
    policy = PruningPolicy.load(tmp_path / "out" / "policy.json")
    assert (policy.provenance["limits"]["turn"], policy.provenance["limits"]["search_drop"]) == (80, 90)
    assert policy.provenance["searches"].keys() == policy.provenance["search_drops"].keys() == {"faq"}
    assert policy.provenance["tasks"].keys() == {"a", "b"}
    # The searches alone, from columns of other names.
    (tmp_path / "other.csv").write_text(search.read_text().replace("query", "q").replace("document", "d"))
    columns = ("--query-column", "q", "--document-column", "d")
    output = ("-o", tmp_path / "alone.json", "--threads", "1")
    code, _, err = run("--search", tmp_path / "other.csv", *columns, "--max-drop", "100", *output, command="adapt")
    assert code == 0, err
    provenance = PruningPolicy.load(tmp_path / "alone.json").provenance
    assert (provenance["tasks"], list(provenance["searches"])) == ({}, ["other"])
    assert (provenance["limits"]["turn"], provenance["limits"]["search_drop"]) == (None, 100)


def test_adapt_needs_a_task_or_a_search(run, tmp_path):
    code, out, err = run("-o", tmp_path / "policy.json", command="adapt")
    assert (code, out) == (2, "")
    assert err.startswith("Error: Missing option '--task' or '--search'. See ")


def test_adapt_learns_from_more_texts(adapt, tmp_path, monkeypatch):
    learned = []

    def spying(encoder, texts, layer):
        learned.extend(texts)
        return token_moments(encoder, texts, layer)

    monkeypatch.setattr("minitrans.adaptation.search.token_moments", spying)
    (tmp_path / "log.txt").write_text("where is my new card please\nplay some music for me today\n")
    assert adapt(*LAX, "--texts", tmp_path / "log.txt", "--fit-texts", "10", "--seeds", "1")[0] == 0
    assert {"where is my new card please", "play some music for me today"} <= set(learned)
    assert len(set(learned)) == 12


def test_no_policy_within_the_limits_is_one_line(adapt_again, tmp_path, hopeless):
    pytest.importorskip("matplotlib")
    code, out, err = adapt_again("--max-drop", "0")
    folder = tmp_path / "out"
    assert code == 2
    assert "no pruning" in out
    *written, error = err.splitlines()
    assert written == [f"{folder / 'policy.md'}: written", f"{folder / 'policy.svg'}: written"]
    assert error.startswith("Error: none of ")
    assert "stays within 0 points on average and 0 on the worst task; the nearest is" in error
    assert {path.name for path in folder.iterdir()} == {"policy.md", "policy.svg", "policy.journal.jsonl"}
    assert "**No policy stays within the limits.**" in (folder / "policy.md").read_text()


BAD_ADAPT = {
    ("--confidence", "0.4"): "confidence is 0.4, wanted a number in [0.5, 1)",
    ("--confidence", "sure"): "'sure' is not a valid float",
    ("--max-drop", "-1"): "mean_drop is -1.0",
    ("--max-drop", "nan"): "mean_drop is nan",
    ("--max-task-drop", "-1"): "task_drop is -1.0",
    ("--max-turn", "-1"): "turn is -1.0, wanted a number of degrees",
    ("--max-search-drop", "nan"): "search_drop is nan, wanted a number of points",
    ("--search", "/nope.csv"): "cannot read /nope.csv",
    ("--search", "{folder}/a.csv"): "column 'query' is missing",
    ("--search", "{folder}/j.csv", "--journal", "{folder}/j.csv"): "j.csv, which is read too; name another file",
    ("--seeds", "0"): "--seeds",
    ("--shots", "0"): "shots is 0",
    ("--shots", "few"): "'few' is not a list of whole numbers",
    ("--report", "report.html"): "report.html ends in '.html', wanted .md",
    ("--texts", "/nope.txt"): "cannot read /nope.txt",
    ("--task", "/nope"): "there is no task '/nope'",
    ("--task", "{folder}/a.csv"): "the tasks are a, b, a",
    ("--journal", "{folder}/a.csv"): "a.csv, which is read too; name another file",
}


@pytest.mark.parametrize("arguments", BAD_ADAPT, ids=" ".join)
def test_bad_input_of_adapt_is_one_line_and_exit_code_2(adapt, tmp_path, arguments, no_network):
    code, out, err = adapt(*(argument.format(folder=tmp_path) for argument in arguments))
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("Error: ")
    assert BAD_ADAPT[arguments] in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["policy", "policy.safetensors", "policy.yaml"])
def test_adapt_writes_json(adapt, tmp_path, name):
    code, out, err = adapt(*LAX, output=tmp_path / "out" / name)
    assert (code, out) == (2, "")
    assert err == f"Error: {tmp_path / 'out' / name} does not end in .json, wanted a name as policy.json\n"
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_a_journal_to_go_on_from(adapt, tmp_path, monkeypatch):
    tried, embed = [], Search._embed

    def counting(self, trial, *rest):
        tried.append(trial.name)
        return embed(self, trial, *rest)

    def clock(runs, rounds=5):  # the policies that are tried depend on it
        return {name: [1 + place / 10] * rounds for place, name in enumerate(runs)}

    def interrupted(self, trial, *rest):
        if len(tried) == 5:  # two policies on two tasks, and one on one
            raise KeyboardInterrupt
        return counting(self, trial, *rest)

    monkeypatch.setattr(adaptation, "interleaved", clock)
    with monkeypatch.context() as patch:
        patch.setattr(Search, "_embed", interrupted)
        code, out, err = adapt(*LAX, "--seeds", "1")
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["policy.journal.jsonl"]
    assert len(Journal(tmp_path / "out" / "policy.journal.jsonl")) == 4  # these two, and both tasks without pruning
    tried.clear()
    monkeypatch.setattr(Search, "_embed", counting)
    assert adapt(*LAX, "--seeds", "1")[0] == 0
    rest = len(tried)
    tried.clear()
    assert adapt(*LAX, "--seeds", "1", "--journal", tmp_path / "other.jsonl")[0] == 0
    assert rest == len(tried) - 4
