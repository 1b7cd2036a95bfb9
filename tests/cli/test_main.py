import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cache

import numpy as np
import pytest

from minitrans import FewShotClassifier, PruningPolicy, SentenceEncoder, __version__
from minitrans.cli.main import cli
from minitrans.data.files import read_examples
from minitrans.evaluation.demo import run_demo
from minitrans.files import bundled

TRAIN = "text,label\nhi there,greeting\ngood morning,greeting\nwhere is my parcel,tracking\ntrack my order,tracking\n"
CHATTER = "what is the capital of France\nwho won the cup in 1954\nsing me a song\n"
COMMANDS = sorted(cli.commands)


@pytest.fixture
def run(run_cli):
    return run_cli


@pytest.fixture(scope="module")
def vectors(encoder):
    return encoder.encode(["hello", "two words"])


def write_intents(folder, encoder, **rejection):
    examples = read_examples(folder.parent / "train.csv")
    classifier = FewShotClassifier(encoder).fit(examples.texts, examples.labels)
    if rejection:
        classifier.calibrate_rejection(**rejection)
    classifier.save(folder)
    return folder


@pytest.fixture(scope="module")
def encoder():
    return SentenceEncoder()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, encoder):
    """Two classifiers of the same examples, not to be changed: one of them abstains."""
    folder = tmp_path_factory.mktemp("classifiers")
    (folder / "train.csv").write_text(TRAIN)
    rejection = {"out_of_scope": CHATTER.splitlines(), "score": "nearest", "abstention": "none of these"}
    return write_intents(folder / "intents", encoder), write_intents(folder / "careful", encoder, **rejection)


@pytest.fixture
def intents(saved):
    return saved[0]


@pytest.fixture
def careful(saved):
    """A folder with a threshold, calibrated with texts out of scope."""
    return saved[1]


def parse(out):
    return np.array([[float(number) for number in line.split()] for line in out.splitlines()], np.float32)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_names_the_command(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert f"minitrans {command}" in out.split("Examples:")[1]


def test_the_commands_are_those_of_the_documentation(run):
    wanted = "adapt audit demo embed evaluate explain fit info predict pull quantize"
    assert " ".join(COMMANDS) == wanted
    assert __version__ in run("--version")[1]


def test_embed_prints_numbers_that_read_back_to_the_same_bits(run, vectors):
    code, out, err = run("embed", "hello", "two words")
    assert (code, err) == (0, "")
    assert np.array_equal(parse(out), vectors)


def test_embed_json_holds_text_and_embedding(run, vectors):
    _, out, _ = run("embed", "--json", "hello", "two words")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in rows] == ["hello", "two words"]
    assert np.array_equal(np.array([row["embedding"] for row in rows], np.float32), vectors)


def test_embed_reads_standard_input_and_files(run, vectors, tmp_path):
    assert np.array_equal(parse(run("embed", stdin=b"hello\ntwo words\n")[1]), vectors)
    (tmp_path / "a.txt").write_text("hello\ntwo words\n")
    assert np.array_equal(parse(run("embed", "-i", tmp_path / "a.txt")[1]), vectors)
    (tmp_path / "a.csv").write_text("q\nhello\ntwo words\n")
    assert np.array_equal(parse(run("embed", "-i", tmp_path / "a.csv", "--column", "q")[1]), vectors)


@pytest.mark.parametrize("name", ["a.npy", "a.jsonl"])
def test_embed_writes_files(run, vectors, tmp_path, name):
    code, out, err = run("embed", "hello", "two words", "-o", tmp_path / name)
    assert (code, out) == (0, "")
    assert "2 embeddings of 384 numbers, float32" in err
    if name.endswith(".npy"):
        assert np.array_equal(np.load(tmp_path / name), vectors)
    else:
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert np.array_equal(np.array([row["embedding"] for row in rows], np.float32), vectors)


def test_embed_prunes_as_the_policy_file_says(run, tmp_path, encoder):
    policy, text = PruningPolicy(min_tokens=3, quantile=0.5, layer=1), "could you tell me where my parcel is"
    policy.save(tmp_path / "policy.json")
    _, out, _ = run("embed", text, "--pruning", tmp_path / "policy.json")
    assert np.array_equal(parse(out)[0], encoder.encode(text, pruning=policy))


def test_embed_of_nothing_prints_nothing(run):
    assert run("embed", stdin=b"") == (0, "", "")


@pytest.mark.filterwarnings("default")
def test_truncation_is_one_line_on_standard_error(run):
    code, out, err = run("embed", "word " * 300)
    assert code == 0
    assert len(out.splitlines()) == 1
    assert err.startswith("Warning: 1 of 1 texts are longer than max_seq_length=256")
    assert len(err.splitlines()) == 1


def test_predict_ranks_labels(run, intents):
    code, out, _ = run("predict", intents, "hello", "has my parcel been sent?")
    assert code == 0
    rows = [line.split("\t") for line in out.splitlines()]
    assert [(row[0], row[2]) for row in rows] == [("greeting", "hello"), ("tracking", "has my parcel been sent?")]
    assert all(0.5 < float(row[1]) <= 1 for row in rows)


def test_predict_json_has_the_top_labels(run, intents):
    _, out, _ = run("predict", intents, "--json", "--top", "5", stdin=b"hello\n")
    (row,) = [json.loads(line) for line in out.splitlines()]
    assert [each["label"] for each in row["labels"]] == ["greeting", "tracking"]
    assert sum(each["probability"] for each in row["labels"]) == pytest.approx(1)


def test_fit_calibrates_a_rejection_from_its_examples(run, tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    code, out, err = run("fit", tmp_path / "train.csv", tmp_path / "intents", "--reject", "--keep", "0.75", "--json")
    found = json.loads(out)["rejection"]
    assert code == 0
    assert (found["score"], found["abstention"], found["rejected"], found["in_scope"]) == (
        "mahalanobis",
        "oos",
        None,
        4,
    )
    assert found["kept"] >= 0.75
    line = err.splitlines()[1]
    assert line.startswith(f"{tmp_path / 'intents'}: mahalanobis below {found['threshold']:.4g} gives 'oos'; ")
    assert line.endswith(f"{found['kept']:.1%} of 4 held-out texts in scope kept")


def test_blank_lines_are_no_texts_out_of_scope(run, tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "chatter.txt").write_text("\n" + CHATTER.replace("\n", "\n\n \n"))
    arguments = ["--out-of-scope", tmp_path / "chatter.txt", "--score", "nearest", "--abstention", "none of these"]
    code, out, err = run("fit", tmp_path / "train.csv", tmp_path / "intents", *arguments, "--json")
    assert (code, json.loads(out)["rejection"]["out_of_scope"]) == (0, 3)
    assert "2 classes from 4 examples" in err
    assert re.search("nearest below .* gives 'none of these'.* of 3 out of it rejected", err)


def test_every_line_has_its_answer(run, intents, tmp_path):
    (tmp_path / "a.txt").write_text("hello\n\nmy parcel\n\n")
    from_file = run("predict", intents, "-i", tmp_path / "a.txt")
    assert [line.split("\t")[2] for line in from_file[1].splitlines()] == ["hello", "", "my parcel", ""]
    assert run("predict", intents, stdin=b"hello\n\nmy parcel\n\n") == from_file


@pytest.mark.filterwarnings("default")
def test_fit_tells_once_what_is_odd_about_the_labels(run, tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN.replace(",", ";") + "hi there;Tracking \n")
    code, _, err = run("fit", tmp_path / "train.csv", tmp_path / "intents")
    assert code == 0
    assert "3 classes from 5 examples" in err
    assert err.count("labels that differ in case alone") == err.count("one text has several labels") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hi", "--column", "q"], "--column is 'q', but there is no table; give --input FILE as .csv, .tsv or .jsonl"),
        (["hi", "--delimiter", ";"], "--delimiter is ';', but there is no table; give --input FILE as .csv or .tsv"),
        (["-i", "a.jsonl", "--delimiter", ";"], "--delimiter is ';', but there is no table"),
    ],
)
def test_options_of_tables_need_a_table(run, arguments, message):
    code, _, err = run("embed", *arguments)
    assert code == 2
    assert message in err


def test_a_delimiter_can_be_named(run, vectors, tmp_path):
    (tmp_path / "a.csv").write_text("q~n\nhello~1\ntwo words~2\n")
    arguments = ["-i", tmp_path / "a.csv", "--column", "q", "--delimiter", "~"]
    assert np.array_equal(parse(run("embed", *arguments)[1]), vectors)


def test_fit_without_rejection_says_nothing_of_it(run, tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    code, out, err = run("fit", tmp_path / "train.csv", tmp_path / "intents", "--json")
    assert code == 0
    assert json.loads(out)["rejection"] is None
    assert len(err.splitlines()) == 1


def test_predict_abstains_where_there_is_a_threshold(run, careful):
    code, out, _ = run("predict", careful, "good morning", "who won\tthe cup in 1954")
    assert code == 0
    known, unknown = [line.split("\t") for line in out.splitlines()]
    assert known[0] == "greeting"
    assert unknown == ["none of these", "-", "who won the cup in 1954"]


def test_predict_shows_what_a_rejected_text_would_have_been(run, careful):
    rows = [line.split("\t") for line in run("predict", careful, "--top", "2", "sing me a song")[1].splitlines()]
    assert rows[0] == ["none of these", "-", "sing me a song"]
    assert {row[0] for row in rows[1:]} == {"greeting", "tracking"}
    assert sum(float(row[1]) for row in rows[1:]) == pytest.approx(1, abs=2e-4)


def test_predict_json_says_whether_a_text_was_rejected(run, careful, intents):
    _, out, _ = run("predict", careful, "--json", "good morning", "sing me a song")
    known, unknown = map(json.loads, out.splitlines())
    assert (known["label"], known["rejected"], known["labels"][0]["label"]) == ("greeting", False, "greeting")
    assert (unknown["label"], unknown["rejected"], len(unknown["labels"])) == ("none of these", True, 1)
    assert known["score"] == pytest.approx(1)
    assert unknown["score"] < 0.9
    row = json.loads(run("predict", intents, "--json", "sing me a song")[1])
    assert row.keys() == {"text", "label", "rejected", "labels"}  # no threshold, no score
    assert not row["rejected"]


def test_predict_without_rejection(run, careful, intents):
    arguments = ("--top", "2", "good morning", "sing me a song")
    assert run("predict", careful, "--no-reject", *arguments) == run("predict", intents, *arguments)
    row = json.loads(run("predict", careful, "--no-reject", "--json", "sing me a song")[1])
    assert not row["rejected"]
    assert row["label"] == row["labels"][0]["label"]
    assert "score" in row


def test_predict_of_nothing_prints_nothing(run, careful):
    assert run("predict", careful, stdin=b"") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--keep", "0.9"), "--keep is 0.9, but nothing is rejected; add --reject or --out-of-scope FILE"),
        (("--abstention", "x"), "--abstention is 'x', but"),
        (("--score", "energy"), "--score is 'energy', but"),
        (("--reject", "--score", "msp"), "--score is 'msp', wanted 'auto', 'probability'"),
        (("--reject", "--keep", "0"), "keep is 0.0, wanted a share above 0"),
        (("--reject", "--abstention", "greeting"), "abstention is 'greeting'"),
        (("--out-of-scope", "/nope.txt"), "cannot read /nope.txt"),
        (("--out-of-scope", os.devnull), "holds no text, wanted at least one"),
    ],
)
def test_a_rejection_that_cannot_be_calibrated_writes_nothing(run, tmp_path, arguments, message):
    (tmp_path / "train.csv").write_text(TRAIN)
    code, out, err = run("fit", tmp_path / "train.csv", tmp_path / "new", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "new").exists()


QUESTION = "could you tell me where my parcel is"


def test_explain_marks_what_is_dropped_and_says_what_it_saves(run, monkeypatch):
    for name, value in (("SECONDS", 0.0), ("COPIES", 4)):
        monkeypatch.setattr(f"minitrans.explain.explanation.{name}", value)
    code, out, err = run("explain", QUESTION, "--no-timing")
    assert (code, err) == (0, "")
    assert out.startswith(f"{QUESTION}\n\nlayer 2, quantile 0.3, ranked by the attention received: 8 of 10 tokens stay")
    assert out.count("[-") == 4  # two tokens, in the list and in the text
    for word in ("threshold", "work ", "multiply-adds", "embedding   turned by"):
        assert word in out
    assert "time " not in out
    assert "time        " in run("explain", QUESTION)[1]


def test_explain_takes_the_classifiers_policy_or_another(run, intents, tmp_path):
    policy = PruningPolicy(min_tokens=3, quantile=0.5, layer=1)
    policy.save(tmp_path / "policy.json")
    (tmp_path / "train.csv").write_text(TRAIN)
    run("fit", tmp_path / "train.csv", tmp_path / "pruned", "--pruning", tmp_path / "policy.json")
    for folder, arguments, said in (
        (intents, [], "layer 2, quantile 0.3"),
        (tmp_path / "pruned", [], "layer 1, quantile 0.5"),
        (tmp_path / "pruned", ["--pruning", "fast"], "layer 0, "),
        (intents, ["--pruning", tmp_path / "policy.json"], "layer 1, quantile 0.5"),
    ):
        code, out, _ = run("explain", QUESTION, "--classifier", folder, "--no-timing", *arguments)
        assert code == 0
        assert said in out
        assert 'tracking: "where is my parcel"' in out
        assert out.count("nearest examples") == 2


def test_help_names_the_policies_and_scores_that_there_are(run):
    from minitrans.encoder.policy_files import shipped_policies
    from minitrans.fewshot.rejection import SCORES

    said = " ".join(run("fit", "--help")[1].split()).replace("- ", "-")
    assert f"a name: {', '.join(('default', *shipped_policies(), 'none'))}." in said
    assert f"rejected by: {', '.join(('auto', *SCORES))}." in said


def test_pruning_takes_files_and_names(run, intents, encoder):
    text = "could you tell me where my parcel is, please, because I need it"
    unpruned = encoder.encode(text)
    for name, same in (("default", False), ("fast", False), ("none", True)):
        code, out, _ = run("embed", text, "--pruning", name)
        assert (code, np.array_equal(parse(out)[0], unpruned)) == (0, same)
    assert "there is no pruning policy 'balance', wanted 'default'" in run("embed", "a", "--pruning", "balance")[2]
    assert "no/such.json" in run("embed", "a", "--pruning", "no/such.json")[2]
    assert "layer 2" not in run("explain", text, "--classifier", intents, "--pruning", "none", "--no-timing")[1]


def test_explain_with_a_classifier_takes_some_options(run, intents):
    code, _, err = run("explain", "a", "--classifier", intents, "--model", "whatever")
    assert (code, "leave --model out" in err) == (2, True)
    code, _, err = run("explain", "word " * 300, "--classifier", intents, "--on-truncation", "error")
    assert (code, "has 302 tokens" in err) == (2, True)
    code, _, err = run("explain", "a", "--classifier", intents, "--threads", "0")
    assert (code, "threads" in err) == (2, True)


def test_explain_json_is_an_object_a_line(run, tmp_path):
    (tmp_path / "a.txt").write_text(f"{QUESTION}\nhello\n")
    code, out, err = run("explain", "-i", tmp_path / "a.txt", "--json", "--no-timing", "--pruning", "balanced")
    assert (code, err) == (0, "")
    first, second = map(json.loads, out.splitlines())
    assert (first["text"], second["text"]) == (QUESTION, "hello")
    assert [token["token"] for token in second["tokens"]] == ["[CLS]", "hello", "[SEP]"]
    assert first["kept"] == first["stages"][0]["kept"]
    assert "pruned" not in first
    (wanted,) = SentenceEncoder().pruned_tokens([QUESTION], pruning="balanced")
    assert [token["dropped_at"] is None for token in first["tokens"]] == wanted.kept


def test_explain_writes_a_page(run, tmp_path, no_network):
    code, out, err = run("explain", QUESTION, "<b>", "--html", tmp_path / "a.html", "--no-timing")
    assert (code, out) == (0, "")
    assert err == f"{tmp_path / 'a.html'}: written, 2 texts explained; open it in a browser\n"
    assert "2 texts explained" in (tmp_path / "a.html").read_text(encoding="utf-8")
    code, _, err = run("explain", "a", "--html", tmp_path / "a.pdf")
    assert code == 2
    assert "does not end in .html" in err


def test_fit_can_forget_the_texts(run, tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    run("fit", tmp_path / "train.csv", tmp_path / "forgotten", "--no-keep-texts")
    assert "parcel" not in (tmp_path / "forgotten" / "classifier.json").read_text()
    assert "(saved without" not in run("explain", QUESTION, "--classifier", tmp_path / "forgotten", "--no-timing")[1]


def test_fit_says_that_it_replaces_a_classifier(run, tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    assert "will be replaced" not in run("fit", tmp_path / "train.csv", tmp_path / "c")[2]
    code, out, err = run("fit", tmp_path / "train.csv", tmp_path / "c")
    assert (code, out) == (0, "")
    assert f"{tmp_path / 'c'}: holds a classifier, which will be replaced\n" in err


def test_predict_with_a_model_that_was_moved(run, tmp_path, plain):
    model = shutil.copytree(plain, tmp_path / "model")
    (tmp_path / "train.csv").write_text(TRAIN)
    assert run("fit", tmp_path / "train.csv", tmp_path / "c", "--model", model)[0] == 0
    wanted = run("predict", tmp_path / "c", QUESTION)
    model = model.rename(tmp_path / "moved")
    code, _, err = run("predict", tmp_path / "c", QUESTION)
    assert (code, "`minitrans predict --model MODEL`" in err) == (2, True)
    assert run("predict", tmp_path / "c", QUESTION, "--model", model) == wanted
    code, _, err = run("predict", tmp_path / "c", QUESTION, "--model", "all-MiniLM-L6-v2", "--local-files-only")
    assert (code, "Traceback" in err) == (2, False)


def test_quantize_writes_a_model_that_embeds(run, tmp_path):
    from random_models import find_spec, write_model

    write_model(tmp_path / "float", find_spec("plain"))
    code, _, err = run("quantize", tmp_path / "float", tmp_path / "int8")
    assert code == 0
    assert "MB" in err
    assert run("embed", "help", "--model", tmp_path / "int8")[0] == 0


def test_info_names_model_backend_and_threads(run):
    code, out, _ = run("info", "--json")
    details = json.loads(out)
    assert code == 0
    assert details["model"] == "all-MiniLM-L6-v2-int8"
    assert details["precision"] == "int8"
    assert details["backend"] == SentenceEncoder().backend
    plain = run("info")[1]
    assert "sentence-transformers/all-MiniLM-L12-v2" in plain
    assert details["identity"]["sha256"] in plain


def test_pull_prints_the_folder(run, monkeypatch, tmp_path):
    monkeypatch.setattr("minitrans.hub.resolve.pull", lambda name, **options: tmp_path / name / options["source"])
    assert run("pull", "some-model", "--source", "mirror") == (0, f"{tmp_path / 'some-model' / 'mirror'}\n", "")


BAD = {
    ("embed", "--nope"): "No such option",
    ("nope",): "No such command",
    ("predict",): "Missing argument 'FOLDER'",
    ("predict", "/nope", "hi"): "/nope",
    ("predict", "/nope", "hi", "--top", "0"): "--top",
    ("info", "nosuch"): "nosuch is not on this machine; fetch it with `minitrans pull nosuch`",
    ("embed", "hi", "-o", "a.npy", "--json"): "--json does not go with a .npy file",
    ("embed", "hi " * 300, "--on-truncation", "error"): "max_seq_length is 256",
    ("embed", "hi", "-o", "a.txt"): "wanted .npy or .jsonl",
    ("embed", "hi", "-o", "/dev/null/a.npy"): "/dev/null",
    ("embed", "hi", "-i", "a.txt"): "both as arguments and with --input",
    ("embed", "-i", "/nope.txt"): "cannot read /nope.txt",
    ("embed", "hi", "--model", "/nope"): "/nope",
    ("embed", "hi", "--threads", "0"): "wanted a positive integer",
    ("embed", "hi", "--threads", "x"): "not a valid integer",
    ("embed", "hi", "--precision", "int4"): "int4",
    ("embed", "hi", "--pruning", "/nope.json"): "/nope.json",
    ("embed", "hi", "--model", "some/model-that-is-not-there", "--local-files-only"): "some/model-that-is-not-there",
    ("fit", "/nope.csv", "out"): "cannot read /nope.csv",
    ("quantize", "/nope", "out"): "/nope",
}


@pytest.mark.parametrize("arguments", BAD, ids=lambda arguments: " ".join(arguments)[:40])
def test_bad_input_is_one_line_and_exit_code_2(run, arguments, no_network):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert BAD[arguments] in err
    assert err.startswith("Error: ")
    assert len(err.splitlines()) == 1


def test_input_that_is_not_utf8_is_refused(run):
    code, _, err = run("embed", stdin=b"caf\xe9\n")
    assert code == 2
    assert "standard input is not UTF-8" in err


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "minitrans", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def test_a_closed_pipe_ends_quietly():
    process = start("embed", "--json", stdin=subprocess.PIPE)
    process.stdout.close()
    process.stdin.write(b"hello\n" * 200)
    process.stdin.close()
    assert process.stderr.read() == b""
    process.wait(60)
    process.stderr.close()


def test_alone_it_prints_its_help(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "minitrans demo" in out


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell closes them")
@pytest.mark.parametrize("closed", [">&-", "<&-"])
def test_closed_streams_print_no_traceback(closed):
    command = f"{sys.executable} -m minitrans embed {'hi' if closed[0] == '>' else ''} {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if closed[0] == ">" else 2)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_ctrl_c_ends_quietly(tmp_path):
    (tmp_path / "many.txt").write_text("hello there, how are you today?\n" * 20_000)
    with start(
        *("embed", "-i", str(tmp_path / "many.txt"), "-o", str(tmp_path / "a.npy")),
        # Whoever runs the tests in the background has switched the signal off for all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        time.sleep(3)  # into the work; whenever it comes, it must be quiet
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err.strip()) == (130, b"", b"")  # at most a new line after the terminal's ^C
    assert sorted(file.name for file in tmp_path.iterdir()) == ["many.txt"]


@cache
def demo_report():
    return run_demo(SentenceEncoder(), None)


@pytest.fixture
def demo(monkeypatch):
    """The demo is run once for all tests, and timed in one round."""
    monkeypatch.setattr("minitrans.evaluation.measurement.ROUNDS", 1)
    monkeypatch.setattr("minitrans.evaluation.demo.run_demo", lambda encoder, policy: demo_report())


def test_demo_prints_a_table_and_needs_no_network(run, no_network, demo):
    code, out, err = run("demo")
    assert (code, err) == (0, "Fitting and testing, with and without pruning ...\n")
    lines = out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("pruning"))
    assert lines[header].split() == ["pruning", "accuracy", "macro", "F1", "texts/s", "tokens", "kept"]
    assert lines[header + 1].startswith("none")
    assert lines[header + 2].startswith("s=8 q=0.3 l=2")
    assert "[-" in out  # some dropped token is marked


def test_demo_json_reports_what_was_measured(run, demo):
    report = json.loads(run("demo", "--json")[1])
    assert report["intents"] >= 12
    assert report["training_examples"] == report["test_examples"] == 10 * report["intents"]
    unpruned, pruned = report["rows"]
    assert unpruned["tokens_kept"] == 1
    assert 0.5 < pruned["tokens_kept"] < 1
    assert unpruned["accuracy"] > 0.8
    assert pruned["accuracy"] > 0.75
    assert report["probability_out_of_scope"] < report["probability_in_scope"]
    assert all(len(sample["tokens"]) == len(sample["kept"]) for sample in report["samples"])


@pytest.mark.parametrize("split", ["train", "test", "out_of_scope"])
def test_the_demo_data_are_what_their_description_says(split):
    examples = read_examples(bundled(f"examples/data/{split}.csv"))
    counts = {label: examples.labels.count(label) for label in examples.labels}
    assert len(set(examples.texts)) == len(examples.texts)
    if split == "out_of_scope":
        assert counts == {"out_of_scope": 30}
    else:
        assert len(counts) >= 12
        assert set(counts.values()) == {10}
