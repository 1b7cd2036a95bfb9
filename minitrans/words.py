"""Words for people: text from anywhere made safe to print, its width on a terminal, lists in plain English."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

# Joiners shape Persian, Hindi and families of emoji: between two characters beyond Latin they are part of the writing.
_JOINED = re.compile("(?<=[^\x00-\xff])[\u200c\u200d](?=[^\x00-\xff])")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_ISOLATE, _POP = "\u2068", "\u2069"  # first strong isolate, pop directional isolate
_JOINER, _EMOJI = "\u200d", "\ufe0f"


def printable(text: str) -> str:
    r"""The text with whatever could steer a terminal, break a line or hide written out: an escape becomes ``\x1b``.

    Written out are control characters, tabs, line and paragraph ends, bidirectional and other invisible marks, lone
    surrogates, spaces other than the common one, and characters that Unicode has not assigned.
    """
    if text.isprintable():
        return text
    joiners = {found.start() for found in _JOINED.finditer(text)}
    return "".join(
        c if c.isprintable() or place in joiners else c.encode("unicode_escape").decode("ascii")
        for place, c in enumerate(text)
    )


def escaped(value: object) -> str:
    r"""The value for a line with tabs: `printable`, and a backslash doubled, so that ``\t`` can only be a tab."""
    return printable(str(value).replace("\\", "\\\\"))


def without_surrogates(text: str) -> str:
    """The text with the usual replacement for half of a surrogate pair, which is no character and has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _LONE_SURROGATE.sub("\ufffd", text)
    return text


def isolated(text: str) -> str:
    """The text; if it is written from right to left, between marks that keep this from what stands around it."""
    if any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in text):
        return f"{_ISOLATE}{text}{_POP}"
    return text


def columns(text: str) -> int:
    """How many columns of a terminal a printable text takes: Chinese characters and emoji two, combining marks none."""
    total = 0
    before = ""
    for c in text:
        if c == _EMOJI:  # what stands before it is drawn as an emoji, two columns wide
            total += _width(before) == 1
        elif before != _JOINER:
            total += _width(c)
        before = c
    return total


def _width(c: str) -> int:
    # The vowels and last consonants of a Korean syllable, and skin tones, go into the character before them.
    inside = "\u1160" <= c <= "\u11ff" or "\U0001f3fb" <= c <= "\U0001f3ff"
    if not c or inside or unicodedata.category(c) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1


def padded(text: str, width: int, right: bool = False) -> str:
    """The text with spaces up to a number of terminal columns, behind it or (``right``) before it."""
    space = " " * (width - columns(text))
    return space + text if right else text + space


def shortened(text: str, width: int) -> str:
    """The text, cut to so many terminal columns if it is longer; then it ends in ``~``."""
    if columns(text) <= width:
        return text
    end = len(text)
    while columns(text[:end]) > width - 1:
        end -= 1
    return text[:end] + "~"


def counted(number: int, what: str) -> str:
    """ "1 file", "2 files"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"; "" of none."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def some(items: Sequence[str], most: int = 5) -> str:
    """The first few items, `printable`, and how many more there are: "a, b and 7 more"."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(printable, items[:most])) + more


def one_of(choices: Iterable[object]) -> str:
    """The choices for a message: "'a', 'b' or 'c'"."""
    *first, last = [repr(choice) for choice in choices] or ["None, as there is nothing to choose from"]
    return f"{', '.join(first)} or {last}" if first else last
