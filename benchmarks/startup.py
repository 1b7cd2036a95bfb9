"""Start-up of whole processes: python -m benchmarks.startup

Median seconds from the start of a Python process to its end, for an empty one, NumPy, the import of minitrans and the
first vector of the bundled model.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 9
PROGRAMS = {
    "an empty process": "pass",
    "import numpy": "import numpy",
    "import minitrans": "import minitrans",
    "from minitrans import SentenceEncoder": "from minitrans import SentenceEncoder",
    "the first vector": "from minitrans import SentenceEncoder; SentenceEncoder().encode('hello')",
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(ROUNDS + 1):
        for name, program in PROGRAMS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            seconds[name].append(time.perf_counter() - start)
    for name, rounds in seconds.items():
        print(f"{name:40}{statistics.median(rounds[1:]):6.3f} s")  # the first round fills the caches


if __name__ == "__main__":
    main()
