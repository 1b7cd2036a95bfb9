"""Unlabelled texts of 3 to 190 words to fit policies on: utterances, and prose of free packages, which are named here.

Put the packages into a folder, and name it with MINITRANS_STUDY_TEXTS:

    pip download --no-deps --only-binary :all: gensim==4.4.0
    apt-get download dict-foldoc gnome-user-docs python3.11-doc
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import html
import io
import math
import os
import random
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from minitrans.data.tasks import Task
from study.settings import ADAPTATION, ROOT, task

LEAST_LETTERS = 60  # of a paragraph
WORDS = 6, 190  # of a piece of prose: as many pieces of 6 to 12 words as of 12 to 24, ...
PROSE, UTTERANCES = 1000, 1200
HELD_OUT = 350  # of each, to foresee turns by


@dataclass(frozen=True)
class Source:
    """A package whose prose is used: how much of it, under which licence, and how its paragraphs are read."""

    name: str
    package: str  # how the file's name begins
    share: float
    licence: str
    paragraphs: Callable[[Path], Iterator[str]]


def folder() -> Path:
    """Where the packages lie."""
    place = Path(os.environ.get("MINITRANS_STUDY_TEXTS", ROOT.parent / "texts"))
    if not place.is_dir():
        raise SystemExit(f"{place} is missing: name the folder of the packages with MINITRANS_STUDY_TEXTS.\n{__doc__}")
    return place


def fit_texts() -> tuple[list[str], list[str], dict[str, str]]:
    """Texts to fit on, texts held out to foresee turns by, and the sha256 of every source."""
    chance, seen, learn, held_out = random.Random(0), {}, [], []
    for source in SOURCES:
        files = sorted(folder().glob(f"{source.package}*"))
        if not files:
            raise SystemExit(f"{folder()} has no {source.package}*.\n{__doc__}")
        seen[f"{source.name} ({files[0].name}, {source.licence})"] = hashlib.sha256(files[0].read_bytes()).hexdigest()
        found = list(dict.fromkeys(each for each in source.paragraphs(files[0]) if len(each) >= LEAST_LETTERS))
        if not found:
            raise SystemExit(f"{files[0]} holds no prose where {source.name} should be.\n{__doc__}")
        cut = len(found) * PROSE // (PROSE + HELD_OUT) or 1  # no paragraph is on both sides, where there are several
        learn += _pieces(found[:cut], round(PROSE * source.share), chance)
        held_out += _pieces(found[cut:] or found, round(HELD_OUT * source.share), chance)
    utterances: dict[str, None] = {}
    for name in ADAPTATION:
        data: Task = task(name)
        seen[name] = data.digest
        texts = sorted({*data.splits["train"].texts})
        few = min(len(texts), (UTTERANCES + HELD_OUT) // len(ADAPTATION))
        utterances |= dict.fromkeys(chance.sample(texts, few))
    short = list(utterances)
    chance.shuffle(short)
    return learn + short[HELD_OUT:], held_out + short[:HELD_OUT], seen


def _pieces(paragraphs: list[str], count: int, chance: random.Random) -> list[str]:
    """Pieces that begin where a paragraph does; their lengths are even on a logarithmic scale."""
    pieces = []
    for _ in range(count):
        wanted = int(math.exp(chance.uniform(*map(math.log, WORDS))))
        words: list[str] = []
        at = chance.randrange(len(paragraphs))
        while len(words) < wanted and at < len(paragraphs):
            words += paragraphs[at].split()
            at += 1
        pieces.append(" ".join(words[:wanted]))
    return pieces


def _wikipedia(wheel: Path) -> Iterator[str]:
    """The articles of a sample of the English Wikipedia, without their markup."""
    with zipfile.ZipFile(wheel) as archive:
        names = [each for each in archive.namelist() if re.search(r"enwiki-latest-pages-articles1.*\.bz2$", each)]
        dump = b"".join(bz2.decompress(archive.read(name)) for name in names).decode("utf-8", "replace")
    for title, text in re.findall(r"<title>(.*?)</title>.*?<text[^>]*>(.*?)</text>", dump, re.DOTALL):
        if text.startswith("#REDIRECT") or ":" in title:
            continue
        plain = html.unescape(text)
        for markup in (r"<!--.*?-->", r"<ref[^>]*/>", r"<ref.*?</ref>", r"<math.*?</math>"):
            plain = re.sub(markup, "", plain, flags=re.DOTALL)
        for nested in (r"\{\{[^{}]*\}\}",) * 6 + (r"\{\|[^{}]*?\|\}",) * 3:
            plain = re.sub(nested, "", plain)
        plain = re.sub(r"\[\[(?:File|Image|Category)[^\[\]]*(?:\[\[[^\]]*\]\][^\[\]]*)*\]\]", "", plain)
        plain = re.sub(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1", plain)
        plain = re.sub(r"\[http\S+ ?([^\]]*)\]", r"\1", plain)
        for line in re.sub(r"'{2,}|<[^>]+>", "", plain).split("\n"):
            paragraph = _plain(line)
            if paragraph and paragraph[0] not in "=*#:;|!{}" and "{{" not in paragraph and "|" not in paragraph:
                yield paragraph


def _foldoc(package: Path) -> Iterator[str]:
    """The entries of the free on-line dictionary of computing."""
    for data in _files(package, r"usr/share/dictd/foldoc\.dict\.dz"):
        for entry in re.split(r"\n(?=\S)", gzip.decompress(data).decode("utf-8", "replace")):
            body = "\n".join(line.strip() for line in entry.split("\n")[1:])
            for paragraph in re.split(r"\n\s*\n", body):
                plain = re.sub(r"^(<[^>]*> )+", "", " ".join(re.sub(r"[{}]", "", paragraph).split()))
                if not plain.startswith("("):
                    yield plain


def _pages(pattern: str) -> Callable[[Path], Iterator[str]]:
    """The paragraphs between <p> and </p> in files of a package."""

    def read(package: Path) -> Iterator[str]:
        for data in _files(package, pattern):
            for paragraph in re.findall(r"<p>(.*?)</p>", data.decode("utf-8", "replace"), re.DOTALL):
                yield _plain(re.sub(r"<[^>]+>", "", paragraph))

    return read


def _plain(text: str) -> str:
    return " ".join(html.unescape(text).split())


def _files(package: Path, pattern: str) -> Iterator[bytes]:
    """The files of a Debian package whose paths match: an archive of archives."""
    data = package.read_bytes()
    at = 8
    while at < len(data):
        name, size = data[at : at + 16].decode().strip(), int(data[at + 48 : at + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(data[at + 60 : at + 60 + size])) as archive:
                for member in sorted(archive.getmembers(), key=lambda each: each.name):
                    found = archive.extractfile(member) if re.fullmatch(rf"\./{pattern}", member.name) else None
                    if found is not None:
                        yield found.read()
        at += 60 + size + size % 2


SOURCES = (
    Source("Wikipedia", "gensim-", 0.45, "CC BY-SA", _wikipedia),
    Source("FOLDOC", "dict-foldoc_", 0.25, "GFDL", _foldoc),
    Source("GNOME Help", "gnome-user-docs_", 0.15, "CC BY-SA", _pages(r"usr/share/help/C/gnome-help/.*\.page")),
    Source("Python's documentation", "python3.11-doc_", 0.15, "PSF",
           _pages(r"usr/share/doc/python3\.11/html/(tutorial|howto)/.*\.html")),
)  # fmt: skip
