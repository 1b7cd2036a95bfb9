"""How many processors this process may use, on made-up cgroup folders; and work that is spread over threads."""

import gc
import os
import threading
from pathlib import Path

import pytest

from minitrans.errors import InputError
from minitrans.sentences import threads as module
from minitrans.sentences.threads import available_cpus, in_order, resolve_threads


@pytest.fixture
def sixteen_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def cgroup(folder: Path, membership: str, files: dict[str, str]) -> dict[str, Path]:
    """The arguments of available_cpus."""
    root = folder / "cgroup"
    root.mkdir()
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (folder / "self").write_text(membership)
    return {"cgroup_root": root, "self_cgroup": folder / "self"}


V2, V2_DEEP = "0::/\n", "0::/a.slice/b.service\n"
V1 = "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/\n"


@pytest.mark.parametrize(
    ("membership", "files", "wanted"),
    [
        pytest.param(V2, {}, 16, id="no files"),
        pytest.param("", {"cpu.max": "100000 100000"}, 16, id="no membership"),
        pytest.param("nonsense", {}, 16, id="nonsense membership"),
        pytest.param(V2, {"cpu.max": "max 100000\n"}, 16, id="v2 unlimited"),
        pytest.param(V2, {"cpu.max": "400000 100000\n"}, 4, id="v2"),
        pytest.param(V2, {"cpu.max": "250000 100000\n"}, 3, id="v2, a part of a processor counts"),
        pytest.param(V2, {"cpu.max": "10000 100000\n"}, 1, id="v2, at least one"),
        pytest.param(V2, {"cpu.max": "0 100000\n"}, 1, id="v2, zero"),
        pytest.param(V2, {"cpu.max": "9900000 100000\n"}, 16, id="v2, more than there are"),
        pytest.param(V2, {"cpu.max": "100000"}, 16, id="v2, one field"),
        pytest.param(V2, {"cpu.max": "100000 0"}, 16, id="v2, no period"),
        pytest.param(V2, {"cpu.max": "-5 100000"}, 16, id="v2, negative"),
        pytest.param(V2_DEEP, {"a.slice/b.service/cpu.max": "200000 100000"}, 2, id="v2, own folder"),
        pytest.param(V2_DEEP, {"a.slice/cpu.max": "300000 100000"}, 3, id="v2, parent"),
        pytest.param(V2_DEEP, {"cpu.max": "500000 100000"}, 5, id="v2, root"),
        pytest.param(
            V2_DEEP,
            {"a.slice/b.service/cpu.max": "max 100000", "a.slice/cpu.max": "700000 100000", "cpu.max": "600000 100000"},
            6,
            id="v2, the least",
        ),
        pytest.param(V1, {}, 16, id="v1, no files"),
        pytest.param(
            V1,
            {"cpu/docker/x/cpu.cfs_quota_us": "200000\n", "cpu/docker/x/cpu.cfs_period_us": "100000\n"},
            2,
            id="v1",
        ),
        pytest.param(
            V1, {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 3, id="v1, the root's"
        ),
        pytest.param(
            V1,
            {"cpu/docker/x/cpu.cfs_quota_us": "-1\n", "cpu/docker/x/cpu.cfs_period_us": "100000\n"},
            16,
            id="v1, unlimited",
        ),
        pytest.param(V1, {"cpu/docker/x/cpu.cfs_quota_us": "200000\n"}, 16, id="v1, no period"),
        pytest.param(
            V1,
            {"cpu/docker/x/cpu.cfs_quota_us": "200000\n", "cpu/docker/x/cpu.cfs_period_us": "0\n"},
            16,
            id="v1, zero period",
        ),
    ],
)
def test_cgroup_quota(sixteen_cpus, tmp_path, membership, files, wanted):
    assert available_cpus(**cgroup(tmp_path, membership, files)) == wanted


def test_affinity(monkeypatch, tmp_path):
    nowhere = {"cgroup_root": tmp_path / "none", "self_cgroup": tmp_path / "none"}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6}, raising=False)
    assert available_cpus(**nowhere) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert available_cpus(**nowhere) == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cpus(**nowhere) == 1


def test_resolve_threads():
    assert resolve_threads(None) == available_cpus() >= 1
    assert resolve_threads(1) == 1
    assert resolve_threads(64) == 64


@pytest.mark.parametrize("threads", [0, -1, True, 2.0, "2"])
def test_resolve_threads_refuses(threads):
    with pytest.raises(InputError, match=r"threads is .*, wanted a positive integer"):
        resolve_threads(threads)


# Work spread over threads


def helpers():
    return [thread for thread in threading.enumerate() if thread.name == "minitrans"]


def name_of(item, helpers=0):
    return item, threading.current_thread().name


@pytest.fixture(params=[0, 1, None])
def refused(request, monkeypatch):
    """The system starts so many threads and refuses the others; None: it refuses none."""
    start, left = threading.Thread.start, [] if request.param is None else [True] * request.param

    def refuse(thread):
        if request.param is not None and not (left and left.pop()):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return request.param


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_results_in_order(refused, count, threads):
    seen = list(in_order(name_of, range(count), threads))
    assert [item for item, _ in seen] == list(range(count))
    assert helpers() == []


def test_all_threads_work_at_once():
    together = threading.Barrier(3, timeout=60)
    seen = {name for _, name in in_order(lambda item: (together.wait(), name_of(item)[1]), range(3), 3)}
    assert len(seen) == 2  # the caller's and that of the helpers
    assert helpers() == []


def test_the_first_error_in_order(refused):
    def work(item):
        if item % 10 == 7:
            raise ValueError(item)
        return item

    results = in_order(work, range(40), 3)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(ValueError, match=r"^7$"):
        next(results)
    assert helpers() == []


def test_an_iterator_that_is_left(refused):
    begun = []
    results = in_order(lambda item: begun.append(item) or item, range(1000), 3)
    assert next(results) == 0
    del results
    gc.collect()
    assert helpers() == []
    assert len(begun) < 20


def test_an_interrupt_is_not_kept_for_later(refused):
    """Ctrl-C in the calling thread ends the work at once, whatever item it is at."""
    caller, begun = threading.current_thread(), []

    def work(item):
        begun.append(item)
        if threading.current_thread() is caller:
            raise KeyboardInterrupt
        return item

    with pytest.raises(KeyboardInterrupt):
        list(in_order(work, range(1000), 3))
    assert helpers() == []
    assert len(begun) < 20


def test_work_within_work():
    """As when a signal handler encodes in the middle of a call."""
    seen = list(in_order(lambda item: list(in_order(name_of, range(item), 2)), range(6), 3))
    assert [[item for item, _ in each] for each in seen] == [list(range(n)) for n in range(6)]
    assert helpers() == []


LATE = """
import atexit, sys, threading, time
import numpy as np
from minitrans import SentenceEncoder

encoder = SentenceEncoder(sys.argv[1], threads=3)
texts = [f"play music {n}" for n in range(9)]
wanted = encoder.encode(texts, batch_size=1)

def work(place):
    print(place, np.array_equal(encoder.encode(texts, batch_size=1), wanted), flush=True)

def late():
    threading.main_thread().join()
    work("late thread")

atexit.register(work, "atexit")
threading.Thread(target=late).start()
"""


def test_batches_while_the_interpreter_ends(run_python, plain):
    done = run_python(LATE, plain)
    assert sorted(done.stdout.splitlines()) == ["atexit True", "late thread True"]
    assert done.stderr == ""


def test_helpers_end_though_an_interrupt_cuts_the_end_short(monkeypatch):
    class Interrupted:
        def __init__(self, *_):
            raise KeyboardInterrupt

    results = in_order(lambda item, helpers=0: item, range(100), 3)
    next(results)
    helpers = [thread for thread in threading.enumerate() if thread.name == "minitrans"]
    assert helpers
    monkeypatch.setattr(module, "suppress", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        results.close()
    monkeypatch.undo()
    del results
    gc.collect()
    for helper in helpers:
        helper.join(60)
        assert not helper.is_alive()
