"""How much memory the encoder takes and keeps, in processes of their own, as Linux counts it."""

import sys

import pytest

from minitrans.kernels.library.record import why_not_ahead

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")

STATUS = """
import random, sys
from pathlib import Path

def status(field):  # sizes in kB
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1])
"""

# The pages of the memmap that were written count as resident until the system takes them back.
MANY = """
import numpy as np
from minitrans import SentenceEncoder

count, path = int(sys.argv[1]), sys.argv[2]
words = "please play music what is the exchange rate for my card today can you tell me why it was stolen".split()
texts = [" ".join(words[(7 * i + k) % len(words)] for k in range(3 + i % 7)) for i in range(count)]
vectors = np.memmap(path, np.float32, "w+", shape=(count, 384))
encoder = SentenceEncoder()
before = status("RssAnon")
encoder.encode(texts, out=vectors)
assert abs(np.linalg.norm(vectors[-1]) - 1) < 1e-3
print(status("VmHWM"), status("RssAnon") - before)
"""


@pytest.mark.parametrize("count", [600, pytest.param(30_000, marks=pytest.mark.slow)])
def test_many_texts_into_a_memmap(run_python, tmp_path, count):
    """Of 100,000: 147 MiB of vectors, 98 MiB of everything else."""
    if problem := why_not_ahead():
        pytest.skip(f"Numba, which then compiles the kernels, takes more than the encoder: {problem}")
    most, grown = map(int, run_python(STATUS + MANY, count, tmp_path / "vectors").stdout.split())
    assert most * 1024 < 250 * 2**20
    assert most * 1024 - count * 384 * 4 < 120 * 2**20  # all but the vectors
    assert grown * 1024 < 40 * 2**20  # what the call leaves behind or has cached


# One arena of malloc, because what another thread's arena keeps looks like growth. At the beginning as many threads as
# an encoder has work at once on the largest chunk there is, so that all the scratch is there that will ever be.
SOAK = """
import threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from minitrans import PruningPolicy, SentenceEncoder

random.seed(0)
policies = (None, PruningPolicy(layer=1), PruningPolicy(layer=0, quantile=0.5, reduce="merge"))
encoders = [SentenceEncoder(threads=threads, on_truncation="ignore") for threads in (1, 2, 4)]
ids, offsets = np.ones(512, np.int64), np.array([0, 512])

def work(blocks, together):
    with blocks.chunk(512, 0) as inside:
        hidden = inside.embed(ids, offsets)
        hidden, _ = inside.attention_block(hidden, offsets, None, 0, None)
        inside.feed_forward_block(hidden, offsets, 0)
        together.wait(60)

for encoder in encoders:
    together = threading.Barrier(encoder.threads)
    with ThreadPoolExecutor(encoder.threads) as pool:
        list(pool.map(lambda _: work(encoder.blocks, together), range(encoder.threads)))
    encoder.encode(["now " * 125] * 32)
for turn in range(20):
    for encoder in encoders:
        short = ["play music now please " * random.randint(0, 12) for _ in range(random.randint(1, 12))]
        texts = [*short, "yes " * 250]
        encoder.encode(texts, batch_size=random.choice([1, 4, 32]), pruning=random.choice(policies))
        encoder.encode("is there a fee " * random.choice([1, 8, 60]), pruning=random.choice(policies))
        encoder.encode(short, output_value="token_embeddings")
    print(status("VmRSS"), status("Threads"))
"""


@pytest.mark.slow
def test_many_calls_leave_nothing_behind(run_python):
    done = run_python(STATUS + SOAK, MALLOC_ARENA_MAX="1", OPENBLAS_NUM_THREADS="1")
    resident, threads = zip(*(map(int, line.split()) for line in done.stdout.splitlines()), strict=True)
    # 2 MB in the last 126 calls; measured: 0.1 to 0.2 MB.
    assert max(resident[6:]) - resident[5] < 2 * 1024, resident
    assert max(threads) <= 1 + 6, threads  # those of a call end with it; assistants stay, at most team.MOST_ASSISTANTS
