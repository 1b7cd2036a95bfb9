"""The library that a build leaves beside this file, and whether it can be used."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from minitrans.kernels.vector.levels import this_machine

HERE = Path(__file__).parent
SOURCES = HERE.parent
LIBRARY, RECORD = "kernels.so", "kernels.json"


def source_digest() -> str:
    """sha256 of the source that the kernels are compiled from."""
    digest = hashlib.sha256()
    for file in sorted([*SOURCES.rglob("*.py"), SOURCES.parent / "encoder" / "activations.py"]):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def why_not_ahead() -> str | None:
    """Why the library that a build made cannot be used; None if it can."""
    if not (HERE / LIBRARY).exists():
        return "this installation was built without compiled kernels"
    try:
        record = json.loads((HERE / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{HERE / RECORD} cannot be read ({error})"
    built_for, here = (record.get("machine"), record.get("platform")), (this_machine(), sys.platform)
    if built_for != here:
        return f"the kernels were built for {built_for}, and this is {here}"
    if record.get("source") != source_digest():
        return "the kernels were built from other source files; install again to build them"
    return None
