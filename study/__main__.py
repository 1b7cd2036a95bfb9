"""The commands of the study.

python -m study run [part ...]   compute the parts, all by default, and store what they find
python -m study report           write docs/study.md and its pictures from what is stored
"""

from __future__ import annotations

import sys

from study import parts, report


def main(arguments: list[str]) -> None:
    """Run the command."""
    match arguments:
        case ["run", *names]:
            parts.run(names)
        case ["report"]:
            report.write()
        case _:
            raise SystemExit(f"{__doc__}\nParts: {', '.join(parts.PARTS)}")


main(sys.argv[1:])
