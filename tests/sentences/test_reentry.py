"""A call in the middle of another on the same thread (a signal handler, `__del__`, a debugger), and calls cut short."""

import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import random_models
from fitted_policies import fitted_to

import minitrans
from minitrans import SentenceEncoder
from minitrans.backends import blas, team

PACKAGE = str(Path(minitrans.__file__).parent)
TEXTS = random_models.texts()[:6]


@pytest.fixture(params=["compiled", "reference"])
def encoder(request, plain):
    return SentenceEncoder(plain, backend=request.param, threads=1, on_truncation="ignore")


def interrupted_by(handler):
    """The same at each place where Python lets a signal handler or the collector run: tells of calls and returns."""

    def profile(frame, event, _):
        if event in ("call", "c_return"):
            handler()

    return profile


def at_each_line(handler):
    def trace(frame, event, _):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            handler()
        return trace

    return trace


@pytest.mark.parametrize("place", [3, 5])
def test_a_call_within_the_lines_of_another(encoder, place):
    policy = fitted_to(encoder, score="learned", reduce="restore", layer=1, min_tokens=3, quantile=0.5)
    wanted = [encoder.encode(text, pruning=policy) for text in TEXTS]
    lines = nested = 0

    def call():
        nonlocal lines, nested
        lines += 1
        if (lines + place) % 4 == 0:
            nested += 1
            assert np.array_equal(encoder.encode(TEXTS[nested % 6], pruning=policy), wanted[nested % 6])

    sys.settrace(at_each_line(call))
    try:
        seen = encoder.encode(TEXTS[place], pruning=policy)
    finally:
        sys.settrace(None)
    assert np.array_equal(seen, wanted[place])
    assert nested > 50


def test_batches_within_a_batch(encoder):
    encoder.threads = 2
    wanted = encoder.encode(TEXTS, batch_size=1)
    turn = nested = 0

    def call():
        nonlocal turn, nested
        turn += 1
        if turn % 23 == 0:
            nested += 1
            assert np.array_equal(encoder.encode(TEXTS, batch_size=2), wanted)

    sys.settrace(at_each_line(call))
    try:
        seen = encoder.encode(TEXTS, batch_size=1)
    finally:
        sys.settrace(None)
    assert np.array_equal(seen, wanted)
    assert nested > 5


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_a_signal_handler_that_encodes(encoder):
    wanted = [encoder.encode(text) for text in TEXTS]
    came = []

    def handler(*_):
        place = len(came) % len(TEXTS)
        came.append(np.array_equal(encoder.encode(TEXTS[place]), wanted[place]))
        signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.00003 * (len(came) * 37 % 100))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        seen = [np.array_equal(encoder.encode(TEXTS[i % 6]), wanted[i % 6]) for i in range(60)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert all(seen)
    assert all(came)


def test_idle_scratch_is_bounded(plain, monkeypatch):
    monkeypatch.setattr("minitrans.backends.compiled.MOST_IDLE", 3)
    encoder = SentenceEncoder(plain, backend="compiled", threads=1)
    ids, offsets = np.arange(5), np.array([0, 5])
    with encoder.blocks.chunk(9, 0) as one, encoder.blocks.chunk(9, 0) as two, encoder.blocks.chunk(9, 0) as three:
        for blocks in (one, two, three, encoder.blocks, encoder.blocks):
            blocks.embed(ids, offsets)
    assert len(encoder.blocks._workspaces) == 3
    with encoder.blocks.chunk(9, 0) as inside:
        inside.embed(ids, offsets)
        assert len(encoder.blocks._workspaces) == 2
    assert len(encoder.blocks._workspaces) == 3


# What is raised while a generator is taken apart Python can only print; the call goes on then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_call_that_is_cut_short_leaves_nothing_torn(encoder, threads):
    """As by Ctrl-C, at one place after another."""
    encoder.threads = threads
    texts = TEXTS[:3] if threads == 1 else TEXTS
    wanted = encoder.encode(texts, batch_size=1)
    limits = [library.num_threads for library in blas._libraries()]
    for place in range(1, 100_000, 11 if threads == 1 else 101):
        left = place

        def interrupt():
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        before = sys.getprofile()
        sys.setprofile(interrupted_by(interrupt))
        try:
            encoder.encode(texts, batch_size=1)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(before)
        if left > 0:
            break
        for thread in threading.enumerate():
            if thread.name == "minitrans" and thread.is_alive():
                thread.join(60)
        assert team._chunks == []
        assert blas._limit.inside == {}
        assert [library.num_threads for library in blas._libraries()] == limits
        assert np.array_equal(encoder.encode(texts, batch_size=1), wanted)
    assert place > 100
