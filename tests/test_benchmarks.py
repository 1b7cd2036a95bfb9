"""The benchmark's own arithmetic, texts and output; no peer is needed and nothing is held against a clock."""

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import random_models
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks is no part of the package

from benchmarks import agreement, models, observer, peers, processes, report, texts, timing, workloads
from benchmarks.__main__ import WORKLOADS, main
from benchmarks.bars import BARS, judge
from benchmarks.contenders import Contender, encode_sorted, padded
from benchmarks.machine import describe_backend, describe_machine, versions
from benchmarks.picture import Bar, Group, draw, groups, write_picture
from benchmarks.run import run
from benchmarks.timing import BenchmarkError, Spread
from benchmarks.workloads import POLICY, Result, Size
from minitrans import SentenceEncoder
from minitrans.files import bundled
from minitrans.models.config import EncoderConfig

INT8 = "weights/all-MiniLM-L6-v2-int8"
PEERS = ("torch float32", "ONNX Runtime float32", "ONNX Runtime int8", "OpenVINO float32", "OpenVINO default")
TINY = Size(bulk=64, single=2, tokens=512, lengths=(256,), layers_12=64, choosing=64, repetitions=1)
HOSTILE = "a<b>&\"'|</svg>\x00\x1b\ud800\n"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def tokenizer():
    return texts.read_tokenizer(bundled(INT8))


@pytest.fixture
def no_peers(monkeypatch):
    """None of the peers' packages can be found."""
    names = {"torch", "transformers", "onnx", "onnxruntime", "openvino", "sentence_transformers"}
    monkeypatch.setattr(models, "find_spec", lambda name: None if name in names else find_spec(name))


def figures(**contenders):
    """A Result of some contenders: name -> seconds of each round."""
    return Result(
        "banking77", "many texts", "texts/s", 100, {name: list(values) for name, values in contenders.items()}
    )


def measured(key, unit="texts/s", **extra):
    """A Result in which minitrans int8 takes half of the time of the others."""
    rounds = {"minitrans int8": [1.0, 1.0], "ONNX Runtime int8": [2.0, 2.2], "minitrans int8, pruned": [0.9, 0.8]}
    return Result(key, key, unit, 100, rounds, extra=extra)


# --- statistics ---


def test_spread():
    assert Spread.of([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


def test_ratios_are_taken_inside_a_round():
    # The machine was four times as slow in the second round, to both.
    assert timing.ratios([1.0, 4.0, 1.0], [2.0, 8.0, 3.0]) == (2.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        timing.ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize("count", [1, 2, 7, 200])
@pytest.mark.parametrize("percent", [50, 95])
def test_percentile(count, percent):
    values = list(np.random.default_rng(count).random(count))
    assert timing.percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_rounds_alternate_and_begin_with_another_each_time(monkeypatch):
    ran = []
    monkeypatch.setattr(timing, "settle", lambda: ran.append("idle"))
    results = timing.interleaved({name: lambda name=name: ran.append(name) or len(ran) for name in "abc"}, 3)
    assert "".join(name for name in ran if name != "idle") == "abcbcacab"
    assert ran[::2] == ["idle"] * 9
    assert {name: len(values) for name, values in results.items()} == {"a": 3, "b": 3, "c": 3}


def test_the_fastest_setting_is_tried_again(monkeypatch):
    took = {"slow": iter([9.0]), "lucky": iter([1.0, 5.0, 5.0]), "good": iter([3.0, 2.0, 2.0]), "fair": iter([4, 4, 4])}
    monkeypatch.setattr(timing, "settle", lambda: None)
    monkeypatch.setattr(timing, "seconds", lambda work: work())
    chosen, times = timing.fastest({name: lambda each=each: next(each) for name, each in took.items()})
    assert chosen == "lucky"
    assert times == {"slow": 9.0, "lucky": 1.0, "good": 2.0, "fair": 4}


def test_threads_that_spin_for_ever_stop_the_run(monkeypatch):
    clock = iter(np.arange(0, 1000, 0.5))
    ticking = SimpleNamespace(perf_counter=lambda: next(clock), process_time=lambda: next(clock), sleep=lambda _: None)
    monkeypatch.setattr(timing, "time", ticking)
    with pytest.raises(BenchmarkError, match="an idle runtime still use"):
        timing.settle()


# --- texts ---


def test_generated_texts_have_exactly_the_lengths(tokenizer):
    lengths = [3, 4, 64, 128, 256, 512]
    made = texts.generate(lengths, tokenizer)
    assert [len(tokenizer.encode(text).ids) for text in made] == lengths
    assert made == texts.generate(lengths, tokenizer)
    assert made != texts.generate(lengths, tokenizer, seed=1)


def test_a_text_of_special_tokens_alone_is_refused(tokenizer):
    with pytest.raises(BenchmarkError, match="a text of 2 tokens was asked for, wanted more than the 2 special ones"):
        texts.generate([5, 2], tokenizer)


def test_without_the_data_the_lengths_are_those_of_banking77(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("MINITRANS_DATA", str(tmp_path))
    corpus = texts.banking77(tokenizer)
    assert "of the lengths of BANKING77" in corpus.origin
    assert Counter(corpus.lengths) == texts.BANKING77_LENGTHS
    assert len(corpus.texts) == 3080
    part = corpus.part(300, tokenizer)
    assert len(part.texts) == 320
    assert part.lengths == texts.token_counts(part.texts, tokenizer)
    assert np.mean(part.lengths) == pytest.approx(np.mean(corpus.lengths), rel=0.1)


@pytest.mark.data
def test_the_histogram_is_that_of_the_test_set(tokenizer, data_folder, monkeypatch):
    monkeypatch.setenv("MINITRANS_DATA", str(data_folder))
    corpus = texts.banking77(tokenizer)
    assert corpus.origin == "the BANKING77 test set"
    assert Counter(corpus.lengths) == texts.BANKING77_LENGTHS


def test_a_sample_is_blocks_of_neighbours_in_length():
    lengths = list(np.random.default_rng(0).permutation(640))
    chosen = [int(text) for text in texts.sample([str(length) for length in lengths], lengths, 100)]
    assert sorted(chosen) == [*range(128, 192), *range(448, 512)]
    assert chosen != sorted(chosen)
    assert texts.sample(["b", "a"], [2, 1], 1) == ["b", "a"]


# --- contenders ---


def test_padding():
    ids, mask = padded([[1, 2, 3], [4]])
    assert ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("parallel", [False, True])
def test_peers_sort_by_length_and_give_back_in_order(parallel):
    words = [str(i) * (1 + i % 4) for i in range(10)]
    shapes = []

    def embed(ids, mask):
        shapes.append(ids.shape)
        return (ids * mask).sum(axis=1, keepdims=True).astype(np.float32)

    def tokenize(batch):
        return [[ord(character) for character in text] for text in batch]

    with ThreadPoolExecutor(2) as pool:
        vectors = encode_sorted(words, tokenize, embed, 4, pool if parallel else None)
    assert vectors[:, 0].tolist() == [sum(map(ord, text)) for text in words]
    assert sorted(shapes, reverse=True) == [(4, 4), (4, 2), (2, 1)]


def test_peers_that_are_not_installed_are_left_out_by_name(no_peers, plain, tmp_path):
    model = models.prepare("plain", plain, tmp_path)
    present, left = peers.build_peers(model, 1)
    assert present == []
    assert sorted(each.name for each in left) == sorted(PEERS)
    assert "left out: OpenVINO default (openvino not installed)" in map(str, left)
    assert "left out: torch float32 (torch, transformers not installed)" in map(str, left)


def test_a_peer_whose_graph_cannot_be_made_is_left_out(no_peers, plain, tmp_path, monkeypatch):
    monkeypatch.setitem(peers.PACKAGES, "OpenVINO float32", ())
    model = models.prepare("plain", plain, tmp_path)
    assert "making its graph needs torch, transformers, onnx" in peers.obstacle("OpenVINO float32", model)
    (model.home / "plain-float32.onnx").touch()
    assert peers.obstacle("OpenVINO float32", model) is None


def contender(name, vectors, least=0.999):
    return Contender(
        name,
        "float32",
        least,
        lambda *_: {"default": lambda many: np.array([vectors[text] for text in many])},
        {"default": lambda text: np.array(vectors[text])},
        list,
    )


def test_agreement_gives_the_least_cosine():
    straight = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    bent = straight | {"b": [0.01, 1.0]}
    field = [contender("minitrans float32", straight), contender("ONNX Runtime float32", straight)]
    least = agreement.check([*field, contender("other", bent)], ["a", "b"])
    assert least == {
        "minitrans float32": 1.0,
        "ONNX Runtime float32": 1.0,
        "other": pytest.approx(1 / np.hypot(1, 0.01)),
    }
    assert agreement.reference(field).name == "ONNX Runtime float32"


@pytest.mark.parametrize("wrong", [[0.1, 1.0], [np.nan, 1.0], [0.0, -1.0]])
def test_a_contender_that_disagrees_stops_the_run(wrong):
    straight = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    field = [contender("minitrans float32", straight), contender("other", straight | {"b": wrong})]
    with pytest.raises(
        BenchmarkError, match=r"other \(.*default\) disagrees with minitrans float32: .* for 'b'; nothing"
    ):
        agreement.check(field, ["a", "b"])


def test_a_reference_is_needed():
    with pytest.raises(BenchmarkError, match="the contenders are other, wanted one of torch float32"):
        agreement.check([contender("other", {"a": [1.0]})], ["a"])


# --- models ---


def test_a_random_model_of_another_depth_can_be_loaded(plain, tmp_path):
    folder = models.random_model(plain, tmp_path, layers=5)
    assert models.random_model(plain, tmp_path, layers=5) == folder
    model = models.prepare("random", folder, tmp_path)
    for form, precision in ((model.float32, "float32"), (model.int8, "int8")):
        encoder = SentenceEncoder(form)
        assert encoder.precision == precision
        assert encoder.config.num_hidden_layers == 5
        assert np.isfinite(encoder.encode("play music")).all()


def test_the_float32_model_is_asked_for_by_name(monkeypatch, tmp_path):
    monkeypatch.delenv("MINITRANS_FLOAT32", raising=False)
    monkeypatch.setattr(models, "find_local", lambda _: None)
    with pytest.raises(BenchmarkError, match="run `minitrans pull all-MiniLM-L6-v2`"):
        models.float32_folder()
    monkeypatch.setenv("MINITRANS_FLOAT32", str(tmp_path))
    with pytest.raises(BenchmarkError, match=r"wanted a folder with model\.safetensors"):
        models.float32_folder()


# --- figures ---


def test_figures_and_ratios():
    result = figures(ours=[1.0, 2.0], theirs=[2.0, 5.0])
    assert result.figure("ours") == (75.0, 50.0, 100.0)
    assert result.ratio("ours", "theirs") == (2.25, 2.0, 2.5)
    assert replace(result, unit="ms").figure("ours") == (1500.0, 1000.0, 2000.0)
    assert replace(result, unit="MB").figure("ours") == (1.5, 1.0, 2.0)


def test_saved_work_counts_the_rows_that_pruning_leaves():
    config = EncoderConfig(100, 384, 6, 12, 1536, 512)
    # 100 rows: layer 0 whole, in layer 1 the feed-forward block (2 of 3 parts) at 70 rows, then four layers at 70.
    assert workloads.work_saved([100], config) == pytest.approx(0.3 * (2 / 3 + 4) / 6)
    assert workloads.work_saved([8, 5], config) == 0


def test_saved_work_agrees_with_what_the_encoder_keeps():
    encoder = SentenceEncoder(bundled(INT8))
    many = ["play music", "why has the card that I ordered on the first of May not arrived at my new address yet?"]
    kept = encoder.pruned_tokens(many, pruning=POLICY)
    lengths = [len(each.tokens) for each in kept]
    rows = sum(sum(each.kept) for each in kept)
    saved = (sum(lengths) - rows) * (2 / 3 + 4) / (6 * sum(lengths))
    assert workloads.work_saved(lengths, encoder.config) == pytest.approx(saved)
    assert saved > 0


# --- bars ---


def test_bars_are_judged():
    results = {
        "banking77": measured("banking77"),
        "one-text": measured("one-text", "ms"),
        "pruning-banking77": measured("pruning-banking77", speedup_if_time_followed_work=1.25),
        "pruning-256": measured("pruning-256", speedup_if_time_followed_work=1.1),
    }
    verdicts = {(each.bar.result, each.bar.ours): each for each in judge(results)}
    assert len(judge(results)) == len(BARS)
    assert verdicts["banking77", "minitrans int8"].met == "bar"  # 2.1, wanted 1.6 and 2.2
    assert verdicts["one-text", "minitrans int8"].met == "goal"  # 2.1, wanted 1.2 and 2
    assert verdicts["pruning-banking77", "minitrans int8, pruned"].met == "bar"  # 1.18, wanted 1.12 and 1.25
    assert verdicts["pruning-256", "minitrans int8, pruned"].met == "no"  # 1.18, wanted 1.22
    assert verdicts["tokens-256", "minitrans int8"].met == "not measured"
    assert verdicts["banking77", "minitrans float32"].met == "not measured"  # its peer was left out

    lines = report.bars_table(judge(results)).splitlines()
    assert len(lines) == 2 + len(BARS)
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "bulk BANKING77: minitrans int8 over ONNX Runtime int8",
        "1.6",
        "2.20",
        "2.10x (2.00-2.20)",
        "yes",
    ]


def test_a_table_survives_hostile_cells():
    lines = report.table(["a|b", "c"], [["x\ny", "1"]]).splitlines()
    assert lines == ["| a\\|b |   c |", "| ---- | --: |", "| x y  |   1 |"]


def test_tables_show_ratios_to_the_others_only():
    text = report.result_table(figures(**{"minitrans int8": [1.0], "torch float32": [4.0]}))
    assert "| torch float32  |    25 (25-25) |      4.00x (4.00-4.00) |" in text
    assert "over it" not in report.result_table(figures(**{"minitrans int8": [1.0], "minitrans float32": [4.0]}))
    pruned = measured("pruning-256", work_saved=0.2, speedup_if_time_followed_work=1.25)
    assert "| pruning-256, int8       | 1.18x (1.11-1.25) |      20.0% |                        1.25 |" in (
        report.pruning_table([pruned])
    )


# --- files ---


def test_json_holds_every_round(tmp_path):
    result = figures(**{"minitrans int8": [1.0, 2.0], HOSTILE.replace("\ud800", ""): [2.0, 3.0]})
    file = tmp_path / "new" / "results.json"
    report.write_json(file, {"threads": 2}, [result], judge({"banking77": result}))
    read = json.loads(file.read_text(encoding="utf-8"))
    assert read["threads"] == 2
    assert read["results"][0]["rounds"] == result.rounds
    assert read["results"][0]["figures"]["minitrans int8"] == {"median": 75.0, "low": 50.0, "high": 100.0}
    assert [each["met"] for each in read["bars"]] == ["not measured"] * len(BARS)


def test_the_machine_is_described(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Some Processor\nflags\t\t: fpu avx2 avx512_vnni amx_int8\nmodel name\t: Other\n")
    machine = describe_machine(cpuinfo)
    assert machine["cpu"] == "Some Processor"
    assert machine["flags"] == ["avx2", "avx512_vnni", "amx_int8"]
    assert describe_machine(tmp_path / "absent")["cpu"]
    encoder = SimpleNamespace(
        backend="compiled", blocks=SimpleNamespace(isa="avx2", kernels=SimpleNamespace(built="now"))
    )
    assert describe_backend(encoder) == {"name": "compiled", "isa": "avx2", "built": "now"}
    assert versions()["numpy"] == np.__version__
    json.dumps(machine)


def test_the_picture_is_well_formed_whatever_the_names():
    drawn = [Group(HOSTILE, [Bar(HOSTILE, 2.0, HOSTILE, True), Bar("peer", 1.0, "1 text/s", False)])]
    root = ElementTree.fromstring(draw(drawn, HOSTILE, HOSTILE))
    assert root.tag == f"{SVG}svg"
    assert root.find(f"{SVG}title").text.startswith("a<b>&\"'|</svg>\ufffd\ufffd\ufffd")
    assert "longer is faster" in root.find(f"{SVG}desc").text
    assert [float(rect.get("width")) for rect in root.iter(f"{SVG}rect")] == [420.0, 210.0]
    assert {element.tag for element in root} == {
        f"{SVG}{tag}" for tag in ("title", "desc", "style", "text", "rect", "line")
    }
    assert "prefers-color-scheme: dark" in root.find(f"{SVG}style").text


def test_the_picture_shows_what_was_measured(tmp_path):
    results = {"banking77": measured("banking77"), "one-text": replace(measured("one-text", "ms"), amount=1)}
    bulk, single = groups(results)
    assert [bar.words for bar in bulk.bars][:2] == ["100 texts/s", "48 texts/s"]
    assert [bar.words for bar in single.bars][:2] == ["1000.00 ms", "2100.00 ms"]
    assert [bar.ours for bar in single.bars] == [True, False, True]
    assert single.bars[0].speed > single.bars[1].speed
    write_picture(tmp_path / "bars.svg", results, "a machine")
    assert ElementTree.parse(tmp_path / "bars.svg").getroot().get("role") == "img"
    write_picture(tmp_path / "none.svg", {}, "a machine")
    assert not (tmp_path / "none.svg").exists()


# --- whole runs ---


def test_a_whole_process_reports_its_time_and_memory(tmp_path):
    many = tmp_path / "texts.json"
    many.write_text(json.dumps(["play music", "help"]))
    folder = bundled(INT8)
    took = processes.run(processes.Program("minitrans", folder, folder), 1, many)
    assert took.first > 0
    assert 10 < took.peak < 2000
    with pytest.raises(BenchmarkError, match="ended with 1, wanted 0"):
        processes.run(processes.Program("minitrans", tmp_path, folder), 1, many)


@pytest.mark.slow
def test_a_run_without_any_peer(no_peers, tmp_path, monkeypatch, capsys):
    spec = random_models.ModelSpec("long", hidden_size=48, max_position_embeddings=512, seed=31)
    monkeypatch.setenv("MINITRANS_FLOAT32", str(random_models.write_model(tmp_path / "long", spec)))
    monkeypatch.setenv("MINITRANS_DATA", str(tmp_path / "absent"))
    json_file, svg_file = tmp_path / "r.json", tmp_path / "r.svg"
    cache = tmp_path / "cache"
    results = run(False, WORKLOADS, 1, 2, cache, tmp_path, json_file, svg_file, TINY)
    assert [result.key for result in results] == [
        *("banking77", "banking77-tokenisation", "banking77-engine", "banking77-tuned", "one-text", "tokens-256"),
        *("pruning-banking77", "pruning-256", "layers-12-banking77", "layers-12-one-text"),
        *("process-start", "process-memory"),
    ]
    assert all(len(values) == 2 for values in results[0].rounds.values())
    printed = capsys.readouterr().out
    for name in PEERS:
        assert f"left out: {name} (" in printed
    assert "left out: sentence-transformers (not installed)" in printed
    assert "how many times as fast" in printed
    read = json.loads(json_file.read_text(encoding="utf-8"))
    assert set(read["left_out"]) == set(PEERS)
    assert read["backend"]["name"] == SentenceEncoder().backend
    assert len(read["results"]) == len(results)
    assert ElementTree.parse(svg_file).getroot().tag == f"{SVG}svg"


def test_the_command_refuses_unknown_workloads():
    done = CliRunner().invoke(main, ["--workloads", "bulk,nonsense"])
    assert done.exit_code == 2
    assert "'nonsense' is no workload, wanted some of bulk,tuned,one-text" in done.output


def test_the_command_says_what_is_missing(monkeypatch, tmp_path):
    for name in ("MINITRANS_FLOAT32", "HF_HUB_OFFLINE", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, str(tmp_path))  # so that what the command changes is restored
    done = CliRunner().invoke(main, ["--quick"])
    assert done.exit_code == 1
    assert "run `minitrans pull all-MiniLM-L6-v2`" in done.output


# The observer


def test_loops_are_compared_before_they_are_timed(plain, monkeypatch):
    encoder = SentenceEncoder(plain)
    found = observer.measure(encoder, encoder.tokenize(["one text", "another"]), 3)
    assert [len(rounds) for rounds in found.values()] == [3] * 4
    monkeypatch.setattr(observer, "bare", lambda blocks, batch: np.zeros((1, 1), np.float32))
    with pytest.raises(BenchmarkError, match="no observer gives other numbers"):
        observer.measure(encoder, encoder.tokenize(["one text"]), 3)
