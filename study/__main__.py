"""The commands of the study.

python -m study run [part ...]   compute the parts, all by default, and store what they find
python -m study report           write docs/study.md, the pictures and the table of the README from what is stored
"""

from __future__ import annotations

import sys

from study import parts, picture, report


def main(arguments: list[str]) -> None:
    """Run the command."""
    match arguments:
        case ["run", *names]:
            parts.run(names)
        case ["report"]:
            report.write()
            picture.write()
        case _:
            raise SystemExit(f"{__doc__}\nParts: {', '.join(parts.PARTS)}")


main(sys.argv[1:])
