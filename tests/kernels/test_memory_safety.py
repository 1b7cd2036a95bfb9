"""The kernels are told addresses and trusted with them: here they run where a step beside a buffer is noticed.

Each place of guarded.Memory sees something else: a page that cannot be touched catches reads and writes, but only on
its side; known bytes on both sides catch writes. In all of them inputs have to stay as they were and results have to
be the same bits as in ordinary memory. Mistakes made on purpose show that each of the ways finds what it is meant to.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import guarded
import pytest

from minitrans.errors import BackendError
from minitrans.kernels.library.loading import load_kernels
from minitrans.kernels.library.processor import usable_levels
from minitrans.kernels.library.record import why_not_ahead

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="guard pages and forks as Linux has them")

LEVELS = [level.name for level in usable_levels()]
# Case 2 i is model i in float32, 2 i + 1 in int8. Most is found behind the end: there each model runs in both.
HALF = [2 * model + model % 2 for model in range(len(guarded.SPECS))]
CASES = {"end": list(range(2 * len(guarded.SPECS))), "begin": HALF, "between": HALF}
CRASH = -signal.SIGSEGV

MISTAKES = [
    ("end", "write behind", CRASH),
    ("end", "wide rows", CRASH),
    ("end", "few rows", CRASH),
    ("end", "read behind", CRASH),
    ("end", "rank behind", CRASH),
    ("end", "wide pruning", CRASH),
    ("begin", "write before", CRASH),
    ("between", "write before", 1),
    ("between", "write behind", 1),
    ("between", "write input", 1),
    ("between", "rank behind", 1),
]


@pytest.fixture(scope="module")
def outcomes(run_python):
    """A function: a job of guarded.in_children -> its exit status and last words. All of them run at the first call."""
    try:
        load_kernels()
    except BackendError as error:
        pytest.skip(f"no compiled kernels: {error}")
    jobs = [["cases", place, level, CASES[place], 3] for level in LEVELS for place in CASES]
    jobs += [["mistake", place, LEVELS[0], "float32", what] for place, what, _ in MISTAKES]
    jobs += [["mistake", place, LEVELS[0], "int8", "nothing"] for place in CASES]
    jobs.append(["late_assistants", LEVELS[0]])
    source = "import json, sys, guarded; guarded.in_children(json.loads(sys.argv[1]))"
    done = json.loads(run_python(source, json.dumps(jobs), PYTHONWARNINGS="ignore").stdout)
    by_job = {json.dumps(job): outcome[:2] for job, outcome in zip(jobs, done, strict=True)}
    return lambda *job: by_job[json.dumps(job)]


@pytest.mark.parametrize("place", CASES)
@pytest.mark.parametrize("level", LEVELS)
def test_nothing_beside_a_buffer_is_touched(outcomes, level, place):
    status, words = outcomes("cases", place, level, CASES[place], 3)
    assert status == 0, words
    assert words.count(" rows\n") == len(CASES[place])


@pytest.mark.parametrize(("place", "what", "wanted"), MISTAKES)
def test_mistakes_are_noticed(outcomes, place, what, wanted):
    status, words = outcomes("mistake", place, LEVELS[0], "float32", what)
    assert status == wanted, words
    assert ("Overrun: " in words) == (wanted == 1)


@pytest.mark.parametrize("place", CASES)
def test_the_same_steps_without_a_mistake_run(outcomes, place):
    assert outcomes("mistake", place, LEVELS[0], "int8", "nothing")[0] == 0


def test_assistants_that_come_late_find_their_memory(outcomes):
    status, words = outcomes("late_assistants", LEVELS[0])
    assert status == 0, words


# Under valgrind, at the levels whose instructions it knows: it sees every byte of the heap


EMULATED = ("avx2", "baseline")
EMULATED_CASES = [2, 3]  # widths that fill no vector; a case takes a second
VALGRIND = ["valgrind", "--leak-check=no", "--error-limit=no"]


@pytest.fixture(scope="module")
def complaints(tmp_path_factory):
    """A function: a job -> what valgrind says of the kernels in it."""
    if not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed")
    if problem := why_not_ahead():
        pytest.skip(f"valgrind runs the library of the build alone: {problem}")
    levels = [level for level in EMULATED if level in LEVELS]
    jobs = [["cases", "heap", level, EMULATED_CASES, 0] for level in levels]
    jobs += [["mistake", "heap", "baseline", "int8", what] for what in ("write behind", "read behind")]
    folder = tmp_path_factory.mktemp("valgrind")
    source = "import json, sys, guarded; guarded.in_children(json.loads(sys.argv[1]))"
    done = subprocess.run(
        [*VALGRIND, f"--log-file={folder}/%p", sys.executable, "-c", source, json.dumps(jobs)],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONWARNINGS": "ignore",
            "PYTHONMALLOC": "malloc",  # so that each piece of memory is valgrind's to watch
            "OPENBLAS_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    by_job = {
        json.dumps(job): (status, words, _complaints((folder / str(pid)).read_text()))
        for job, (status, words, pid) in zip(jobs, json.loads(done.stdout), strict=True)
    }
    return lambda *job: by_job[json.dumps(job)]


def _complaints(log):
    """Those whose innermost function is a kernel: what Python and NumPy do is not the question."""
    paragraphs = re.split(r"^==\d+== \n", log, flags=re.MULTILINE)
    return [text for text in paragraphs if re.search(r"^==\d+==    at 0x[^\n]*kernels\.so", text, flags=re.MULTILINE)]


@pytest.mark.parametrize("level", EMULATED)
def test_valgrind_has_nothing_to_say(complaints, level):
    if level not in LEVELS:
        pytest.skip(f"this processor does not run {level}")
    status, words, found = complaints("cases", "heap", level, EMULATED_CASES, 0)
    assert (status, found) == (0, []), words
    assert words.count(" rows\n") == len(EMULATED_CASES)


@pytest.mark.parametrize(("what", "kind"), [("write behind", "Invalid write"), ("read behind", "Invalid read")])
def test_valgrind_notices_mistakes(complaints, what, kind):
    _, words, found = complaints("mistake", "heap", "baseline", "int8", what)
    assert found, words
    assert all(kind in text for text in found)
