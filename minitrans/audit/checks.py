"""What an audit found: checks with their verdicts, as lines for a terminal and as JSON."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from minitrans.audit.digests import Digests
from minitrans.models.identity import Identity
from minitrans.words import counted, listed, printable

Verdict = Literal["PASS", "FAIL", "SKIP"]
Values = Mapping[str, float]

FOLDER, TOKENIZER, NUMBERS, PRUNING, INVARIANCE = "Folder", "Tokenizer", "Numbers", "Pruning", "Invariance"
PEER, SENTENCES = "transformers", "sentence-transformers"
NOTES = {
    NUMBERS: "NumPy reference against compiled kernels; 1e-02 is 1% of the numbers' usual size (root mean square)",
    PRUNING: "which tokens both keep; a tie: a score so near the cut that rounding decides (1e-02: 1% of a mean score)",
    PEER: "its BertModel with these weights in float32, against ours",
    SENTENCES: "SentenceTransformer, which reads the folder by itself, in float32, against ours",
}
DIGESTS = "digests"  # the check that is skipped where nothing says what the files should be
FORMAT, VERSION = "minitrans-audit", 1
MEASURED = 46  # characters; what is longer pushes the wanted value out of its column
SHOWN = 12  # lines of detail below a check on a terminal; JSON has them all


@dataclass(frozen=True)
class Check:
    """One line of an audit.

    Attributes:
        group: heading that it stands under.
        name: short, unique within its group.
        verdict: PASS; FAIL; or SKIP where it could not be checked.
        measured: what was found; of a skipped check, why it was skipped.
        wanted: what would pass; of a skipped check, how to have it checked.
        detail: more lines: per layer, or what is broken and where.
        values: the numbers behind ``measured``, unrounded; "checks" of a skipped one: how many it stands for.
        reason: why it was skipped, in a few words for the last line.
    """

    group: str
    name: str
    verdict: Verdict
    measured: str
    wanted: str = ""
    detail: tuple[str, ...] = ()
    values: Values = field(default_factory=dict)
    reason: str = ""

    @property
    def stands_for(self) -> int:
        """How many checks this is, or would have been."""
        return int(self.values.get("checks", 1))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        # JSON has no NaN and no infinity.
        values = {key: each if math.isfinite(each) else None for key, each in self.values.items()}
        plain = asdict(self) | {"detail": list(self.detail), "values": values}
        del plain["reason"]
        return plain


def judged(
    group: str,
    name: str,
    passes: bool,
    measured: str,
    wanted: str,
    detail: Iterable[str] = (),
    values: Values | None = None,
) -> Check:
    """A check that was made: PASS or FAIL."""
    return Check(group, name, "PASS" if passes else "FAIL", measured, wanted, tuple(detail), values or {})


def broken(group: str, name: str, wanted: str, error: Exception) -> Check:
    """A check that failed because what it is about raised an error."""
    return judged(group, name, False, "no result", wanted, [str(error)])


def skipped(
    group: str, name: str, why: str, remedy: str = "", detail: Iterable[str] = (), *, reason: str = "", checks: int = 1
) -> Check:
    """A check that could not be made (or several, ``checks`` of them): why, and how to have it made.

    ``reason`` says why in the few words that the last line of an audit has room for.
    """
    values = {"checks": checks} if checks > 1 else {}
    return Check(group, name, "SKIP", why, remedy, tuple(detail), values, reason or why)


@dataclass(frozen=True)
class Audit:
    """A model folder, what it was checked with, and every check.

    Attributes:
        model: as it was asked for.
        folder: where its files lie.
        known_as: the published model that it was compared with; None for any other.
        date: UTC, ISO 8601.
        versions: name -> version of what did the checking.
        machine: name -> value: architecture, kernels, instruction_set, backend, precision, threads.
        checks: in the order in which they were made.
        digests: of the folder as it is; None where it could not be opened.
        identity: what its files were compared with: "published digests", "given digests", both joined by " and ";
            None where nothing says what they should be.
        encoder_identity: which encoder was checked; None where it could not be loaded.
    """

    model: str
    folder: str
    known_as: str | None
    date: str
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    checks: tuple[Check, ...]
    digests: Digests | None = None
    identity: str | None = None
    encoder_identity: Identity | None = None

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.verdict == "FAIL")

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def skipped(self) -> tuple[Check, ...]:
        """The checks that were not made."""
        return tuple(check for check in self.checks if check.verdict == "SKIP")

    def summary(self) -> str:
        """The last line: the verdict, which checks failed, and what was not checked and why."""
        made = len(self.checks) - len(self.skipped)
        if self.passed:
            parts = [f"PASS: {counted(made, 'check')}"]
        else:
            names = ", ".join(f"{check.group}: {check.name}" for check in self.failed)
            parts = [f"FAIL: {len(self.failed)} of {counted(made, 'check')}: {names}"]
        if self.identity is None:
            parts.append("identity not checked: no digests of this folder")
        reasons: dict[str, list[Check]] = {}
        for check in self.skipped:
            if (check.group, check.name) != (FOLDER, DIGESTS):
                reasons.setdefault(check.reason, []).append(check)
        if reasons:
            parts.append("not checked: " + ", ".join(_because(why, checks) for why, checks in reasons.items()))
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "folder": self.folder,
            "known_as": self.known_as,
            "date": self.date,
            "versions": dict(self.versions),
            "machine": dict(self.machine),
            "verdict": "PASS" if self.passed else "FAIL",
            "summary": self.summary(),
            "identity": self.identity,
            "encoder_identity": None if self.encoder_identity is None else self.encoder_identity.to_dict(),
            "skipped": [
                {"group": check.group, "name": check.name, "checks": check.stands_for, "reason": check.measured}
                for check in self.skipped
            ],
            "files": {} if self.digests is None else dict(self.digests.files),
            "checks": [check.to_dict() for check in self.checks],
        }

    def to_json(self) -> str:
        """One JSON object, with a line end."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def lines(self) -> Iterator[str]:
        """The audit for a terminal, a line each: names of a hostile folder hold no control characters any more."""
        return map(printable, self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.model}" + (f", known as {self.known_as}" if self.known_as not in (None, self.model) else "")
        if self.folder not in ("", self.model):
            yield self.folder
        weights = {} if self.digests is None else self.digests.files
        yield from (f"{name} {sha256}" for name, sha256 in weights.items() if name.endswith(".safetensors"))
        yield ", ".join([*(f"{name} {version}" for name, version in self.versions.items()), self.date])
        machine = (f"{name.replace('_', ' ')} {value.partition(':')[0]}" for name, value in self.machine.items())
        yield from textwrap.wrap(", ".join(machine), 100)
        width = max((len(check.name) for check in self.checks), default=0)
        column = max((len(check.measured) for check in self.checks if check.verdict != "SKIP"), default=0)
        column = min(column, MEASURED)
        yield ""
        yield f"        {'check'.ljust(width)}  {'found'.ljust(column)}  wanted"
        group = None
        for check in self.checks:
            if check.group != group:
                group = check.group
                yield ""
                yield f"{group}: {NOTES[group]}" if group in NOTES else group
            made = check.verdict != "SKIP"
            text = f"{check.measured.ljust(column)}  {check.wanted}" if made and check.wanted else check.measured
            if not made and check.stands_for > 1:
                text += f" ({check.stands_for} checks)"
            yield f"  {check.verdict}  {check.name.ljust(width)}  {text}".rstrip()
            below = [check.wanted] * (not made and bool(check.wanted)) + [*check.detail[:SHOWN]]
            if len(check.detail) > SHOWN:
                below.append(f"... and {len(check.detail) - SHOWN} lines more, which --json shows")
            yield from (f"{' ' * (width + 10)}{line}" for line in below)
        yield ""
        yield self.summary()


def _because(why: str, checks: Sequence[Check]) -> str:
    """Names of skipped checks with their reason, and how many they are where the names do not tell."""
    names = [check.group if check.name == "all" else check.name for check in checks]
    total = sum(check.stands_for for check in checks)
    return f"{listed(names)} ({why}{f'; {total} checks' if total > len(checks) else ''})"
