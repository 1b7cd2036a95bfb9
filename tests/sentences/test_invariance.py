"""The embedding of a text is the same to the last bit, whatever else is in the call and whoever calls."""

import json
import os
import platform
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import random_models
from fitted_policies import fitted_to
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from minitrans import FewShotClassifier, PruningPolicy, SentenceEncoder
from minitrans.errors import InputError, NumericalError, TruncationError
from minitrans.fewshot import logistic, rejection
from minitrans.sentences import batches

POLICIES = {
    "unpruned": None,
    "attention": PruningPolicy(min_tokens=4, quantile=0.4, layer=1),
    "attention value": PruningPolicy(min_tokens=2, quantile=0.5, layer=0, score="attention_value"),
    "merge": PruningPolicy(min_tokens=3, quantile=0.5, layer=0, reduce="merge"),
    "two stages": PruningPolicy(min_tokens=3, stages=((0, 0.3), (1, 0.4))),
    "two stages of merging": PruningPolicy(min_tokens=3, stages=((0, 0.3), (1, 0.4)), reduce="merge"),
    "random": PruningPolicy(min_tokens=3, quantile=0.5, layer=1, score="random", seed=7),
    "first": PruningPolicy(min_tokens=3, quantile=0.5, layer=1, score="first"),
    "protected": PruningPolicy(min_tokens=3, quantile=0.6, layer=0, protect_special=True),
}
FITTED_POLICIES = {  # fields; the arrays come with the model
    "learned": {"min_tokens": 3, "quantile": 0.5, "layer": 0, "score": "learned"},
    "restore": {"min_tokens": 3, "quantile": 0.5, "layer": 1, "reduce": "restore"},
    "all of it": {
        "min_tokens": 3,
        "stages": ((0, 0.5), (1, 0.8)),
        "score": "learned",
        "reduce": "restore",
    },
    "max_turn": {
        "min_tokens": 3,
        "quantile": 0.9,
        "layer": 0,
        "score": "learned",
        "reduce": "restore",
        "max_turn": 20,
    },
}
OTHER_MODELS = ["head_dim_64", "head_dim_16"]  # wide products, gelu_new; with those policies between which most differs
DIFFERENT = ["unpruned", "merge", "max_turn", "all of it"]
PRECISIONS = ["float32", "int8"]
THREADS = (1, 2, 4)

WORDS = st.sampled_from([*random_models.WORDS, "zyx", "東京", "café", "!", "4821"])
TEXTS = st.lists(WORDS, max_size=70).map(" ".join)  # 2 tokens to more than max_seq_length, which is 64


class Encoders:
    """One model at several thread counts, and each text as it is when it is encoded alone."""

    def __init__(self, folder, precision, backend, policy):
        if isinstance(policy, dict):
            policy = fitted_to(SentenceEncoder(folder), **policy)
        options = {"precision": precision, "backend": backend, "pruning": policy, "on_truncation": "ignore"}
        self.by_threads = {n: SentenceEncoder(folder, threads=n, **options) for n in THREADS}
        self._alone = {}

    def alone(self, text):
        """[H] and [n, H]"""
        if text not in self._alone:
            encoder = self.by_threads[1]
            self._alone[text] = encoder.encode(text), encoder.encode(text, output_value="token_embeddings")
        return self._alone[text]


SETTINGS = [*product(["plain"], [*POLICIES, *FITTED_POLICIES]), *product(OTHER_MODELS, DIFFERENT)]


@pytest.mark.parametrize("backend", ["reference", "auto"])  # "auto" is the compiled one wherever there is one
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "policy"), SETTINGS)
def test_a_text_depends_on_nothing_but_itself(random_folder, name, policy, precision, backend):
    encoders = Encoders(random_folder(name), precision, backend, (POLICIES | FITTED_POLICIES)[policy])

    @settings(max_examples=settings.default.max_examples // 10)  # of each of very many
    @given(
        texts=st.lists(TEXTS, min_size=1, max_size=9),
        order=st.randoms(use_true_random=False),
        batch_size=st.integers(1, 10),
        budget=st.sampled_from([1, 9, 40, 512]),
        threads=st.sampled_from(THREADS),
    )
    def check(texts, order, batch_size, budget, threads):
        texts = [*texts, texts[0]]
        order.shuffle(texts)
        encoder = encoders.by_threads[threads]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batches, "CHUNK_TOKENS", budget)
            vectors = encoder.encode(texts, batch_size=batch_size)
            tokens = encoder.encode(texts, batch_size=batch_size, output_value="token_embeddings")
        for text, vector, rows in zip(texts, vectors, tokens, strict=True):
            wanted, wanted_rows = encoders.alone(text)
            assert np.array_equal(vector, wanted)
            assert np.array_equal(rows, wanted_rows)

    check()


MANY = [*random_models.texts(), "", "one more", *random_models.texts()[::-1], " ".join(random_models.texts()[:4])]


@pytest.mark.parametrize("policy", [None, POLICIES["merge"]], ids=["unpruned", "merge"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_groups_do_not_matter(plain, monkeypatch, precision, policy):
    encoder = SentenceEncoder(plain, precision=precision, pruning=policy, on_truncation="ignore")
    wanted = encoder.encode(MANY)
    for characters in (0.01, 0.1, 0.3):
        monkeypatch.setattr(batches, "CHARACTERS", characters)
        assert np.array_equal(encoder.encode(MANY), wanted)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_number_formats_and_shorter_vectors_do_not_matter(plain, precision):
    encoder = SentenceEncoder(plain, precision=precision, on_truncation="ignore")
    for stored in ("int8", "uint8", "binary", "ubinary"):
        options = {"precision": stored, "truncate_dim": 20, "normalize_embeddings": True}
        together = encoder.encode(MANY, **options)
        for text, vector in zip(MANY, together, strict=True):
            assert np.array_equal(encoder.encode(text, **options), vector)


COMPARE = """
import sys
import numpy as np
from threadpoolctl import threadpool_info
from minitrans import PruningPolicy, SentenceEncoder

sys.path.insert(0, sys.argv[1])
import random_models

texts = [*random_models.texts()[:8], *(" ".join(random_models.texts()[i : i + 3]) for i in (0, 3, 8)), ""]
for precision in ("int8", "float32"):
    for policy in (None, PruningPolicy(layer=1), PruningPolicy(layer=0, quantile=0.5, reduce="merge")):
        encoder = SentenceEncoder(precision=precision, pruning=policy)
        alone = np.stack([encoder.encode(text) for text in texts])
        for order, batch_size in ((slice(None), 32), (slice(None, None, -1), 4)):
            together = encoder.encode(texts[order], batch_size=batch_size)
            assert np.array_equal(together, alone[order]), (precision, policy, batch_size)
print([library["architecture"] for library in threadpool_info() if library["internal_api"] == "openblas"])
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="Haswell kernels are x86-64's")
def test_blas_kernels_in_which_the_position_of_a_row_matters(run_python):
    done = run_python(COMPARE, Path(__file__).parents[1], OPENBLAS_CORETYPE="Haswell")
    if "Haswell" not in done.stdout:
        pytest.skip(f"NumPy's BLAS has no such kernels: {done.stdout}")


# Several callers


@pytest.mark.parametrize("policy", [None, POLICIES["two stages of merging"]], ids=["unpruned", "pruned"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("threads", [1, 2])
def test_eight_threads_call_one_encoder(plain, precision, policy, threads):
    encoder = SentenceEncoder(plain, precision=precision, pruning=policy, threads=threads, on_truncation="ignore")
    wanted = encoder.encode(MANY)
    callers = 8
    barrier = threading.Barrier(callers, timeout=60)

    def call(shift):
        barrier.wait()
        return [np.roll(encoder.encode(MANY[shift:] + MANY[:shift], batch_size=5), shift, axis=0) for _ in range(2)]

    with ThreadPoolExecutor(callers) as pool:
        for results in pool.map(call, range(callers)):
            assert all(np.array_equal(vectors, wanted) for vectors in results)


FORK = """
import os, signal, sys, warnings
import numpy as np
from minitrans import PruningPolicy, SentenceEncoder

# Python 3.12 and later warn of the fork itself, because BLAS has threads; that it is safe is what is tested here.
warnings.simplefilter("ignore", DeprecationWarning)
folder, precision, before, path = sys.argv[1:]
texts = [word * n for n in (1, 5, 9, 2) for word in ("play music ", "is there a fee ", "")]
square = np.ones((600, 600), np.float32)
square @ square  # BLAS threads start
encoder = SentenceEncoder(folder or None, precision=precision, pruning=PruningPolicy(layer=1), threads=2)
wanted = encoder.encode(texts, batch_size=2) if before == "encoded" else None
child = os.fork()
if child == 0:
    signal.alarm(60)  # a deadlock ends here
    np.save(path, encoder.encode(texts, batch_size=2))
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
mine = encoder.encode(texts, batch_size=2)
assert wanted is None or np.array_equal(mine, wanted)
assert np.array_equal(np.load(path), mine)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("name", "precision", "before"),
    [("", "int8", "loaded"), ("", "float32", "encoded"), ("plain", "float32", "loaded"), ("plain", "int8", "encoded")],
)
def test_a_forked_child_gives_the_same_bits(run_python, random_folder, tmp_path, name, precision, before):
    done = run_python(FORK, random_folder(name) if name else "", precision, before, tmp_path / "child.npy")
    assert (done.stdout, done.stderr) == ("", "")


# The BLAS limit


NUMPY_BLAS = """
import json, numpy, threadpoolctl
print(json.dumps([library["filepath"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]))
"""


@pytest.fixture(scope="module")
def blas_threads(run_python):
    """A function: how many threads NumPy's BLAS has now (SciPy, once it is imported, brings one of its own)."""
    files = json.loads(run_python(NUMPY_BLAS).stdout)
    return lambda: [library["num_threads"] for library in threadpool_info() if library["filepath"] in files]


@pytest.fixture
def three_blas_threads(blas_threads):
    """A number that is neither one nor likely the default."""
    with threadpool_limits(3, user_api="blas"):
        before = blas_threads()
        if not before or 1 in before:
            pytest.skip(f"this BLAS has no threads to limit: {before}")
        yield before
        assert blas_threads() == before


@pytest.fixture
def watched(plain, blas_threads):
    """An encoder that notes how many BLAS threads there are while it runs."""
    encoder = SentenceEncoder(plain, threads=2, on_truncation="error", backend="reference")
    embed, seen = encoder.blocks.embed, []

    def watch(ids, offsets):
        seen.append(blas_threads())
        return embed(ids, offsets)

    encoder.blocks.embed = watch
    return SimpleNamespace(encoder=encoder, seen=seen, embed=embed)


def test_blas_is_at_one_thread_during_a_call_alone(blas_threads, three_blas_threads, watched):
    watched.encoder.encode(random_models.texts(), batch_size=3)
    assert len(watched.seen) == 4
    assert set(map(tuple, watched.seen)) == {(1,) * len(three_blas_threads)}
    assert blas_threads() == three_blas_threads


def test_blas_is_as_before_after_an_error(blas_threads, three_blas_threads, watched):
    with pytest.raises(TruncationError):
        watched.encoder.encode("play " * 100)
    assert blas_threads() == three_blas_threads

    def broken(ids, offsets):
        return watched.embed(ids, offsets) * np.float32(np.nan)

    watched.encoder.blocks.embed = broken
    with pytest.raises(NumericalError):
        watched.encoder.encode(random_models.texts(), batch_size=1)
    assert blas_threads() == three_blas_threads


def test_blas_in_another_thread_than_the_first(blas_threads, three_blas_threads, watched):
    """A server loads and warms up in one thread and answers in others."""
    watched.encoder.encode("play music")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(watched.encoder.encode, "play music").result()
        watched.encoder.encode("play music")
        assert set(map(tuple, watched.seen)) == {(1,) * len(three_blas_threads)}
        assert blas_threads() == three_blas_threads


def test_blas_with_overlapping_calls(blas_threads, three_blas_threads, watched):
    """The first call in sets the limit, the last one out lifts it, whatever thread they come from."""
    alone = [1] * len(three_blas_threads)
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        one, other = watched.encoder.blocks.session(), watched.encoder.blocks.session()
        first.submit(one.__enter__).result()
        assert blas_threads() == alone
        second.submit(other.__enter__).result()
        watched.encoder.encode("play music")
        assert blas_threads() == alone
        first.submit(one.__exit__, None, None, None).result()
        assert blas_threads() == alone
        second.submit(other.__exit__, None, None, None).result()
        assert blas_threads() == three_blas_threads


FORK_WITHIN_A_CALL = """
import os, signal, threading, warnings
from threadpoolctl import threadpool_info, threadpool_limits
from minitrans.backends import blas

warnings.simplefilter("ignore", DeprecationWarning)

def threads():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

def call():
    with blas.single_threaded_blas(), blas._limit.lock:
        inside.set()
        leave.wait()

inside, leave = threading.Event(), threading.Event()
with threadpool_limits(3, user_api="blas"):
    before = threads()
    other = threading.Thread(target=call)
    other.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        with blas.single_threaded_blas():
            assert threads() <= {1}, threads()
        assert threads() == before, threads()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    leave.set()
    other.join()
    assert threads() == before
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_blas_in_a_child_forked_while_another_thread_encoded(run_python):
    run_python(FORK_WITHIN_A_CALL)


def test_blas_with_many_callers(blas_threads, three_blas_threads, watched):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: watched.encoder.encode(random_models.texts(), batch_size=4), range(24)))
    assert set(map(tuple, watched.seen)) == {(1,) * len(three_blas_threads)}
    assert blas_threads() == three_blas_threads


@pytest.mark.parametrize("what", ["fit_logistic", "cross_fit", "score", "logits", "predict"])
def test_blas_is_at_one_thread_while_a_classifier_works(blas_threads, three_blas_threads, monkeypatch, what):
    """Another thread may fork meanwhile: a product that OpenBLAS has shared out would then never end."""
    seen = []

    def watch(module, name):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: seen.append(blas_threads()) or function(*given))

    X, y = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32), np.arange(20) % 4
    classifier = FewShotClassifier(label_names=False).fit_embeddings(X, list(y.astype(str)))
    watch(logistic, "_minimise")
    watch(rejection, "row_products")
    known = rejection.KnownClasses(classifier.coef_, classifier.intercept_, X, y)
    calls = {
        "fit_logistic": lambda: logistic.fit_logistic(X, y),
        "cross_fit": lambda: rejection.cross_fit(X, y, None, C=1.0),
        "score": lambda: known.score("mahalanobis", X),
        "logits": lambda: rejection.logits(X, classifier.coef_, classifier.intercept_),
        "predict": lambda: classifier.predict_embeddings(X),
    }
    calls[what]()
    assert seen
    assert set(map(tuple, seen)) == {(1,) * len(three_blas_threads)}
    assert blas_threads() == three_blas_threads
    with pytest.raises(InputError):
        logistic.fit_logistic(X, y, C=-1.0)
    assert blas_threads() == three_blas_threads
