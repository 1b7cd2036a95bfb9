"""What the site needs beside its plugins: see mkdocs.yml. No part of the package, and no page."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from griffe import Attribute, Class, Docstring, Extension, Function
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pygments.formatters import HtmlFormatter

from minitrans.cli.main import cli

LOGGER = logging.getLogger("mkdocs.hooks.minitrans")  # below "mkdocs", whose warnings end a strict build
SECTIONS = ("Args:", "Attributes:", "Raises:")
TOGETHER = re.compile(r"    (\*{0,2}\w+(?:, \*{0,2}\w+)+): (.*)")
COMMANDS = "<!-- commands -->"
LINK = re.compile(r"\[(?P<words>[^\]\[]+)\]\((?P<path>\.\./[^)#\s]+)(?:#[^)\s]*)?\)")  # to what lies above the page
# What a browser fetches by itself: not links, which wait for a click.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\ssrc\s*=\s*["']?(?:https?:)?//[^\s"'>]+"""
    r"""|<link\b[^>]*?\shref\s*=\s*["']?(?:https?:)?//[^\s"'>]+"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//[^\s"')]+"""
    r"""|url\(\s*["']?(?:https?:)?//[^\s"')]+""",
    re.IGNORECASE,
)


class Docstrings(Extension):
    """Reads docstrings as this project writes them.

    Several names may share a description ("rows, columns: ..."). The comment behind a field of a dataclass or behind a
    constant, which often is its shape, is its description.
    """

    def on_function_instance(self, *, func: Function, **_: Any) -> None:
        """Give every name in a function's docstring an entry of its own."""
        if func.docstring is not None:
            func.docstring.value = apart(func.docstring.value)

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """The same for a class; list the fields of a dataclass."""
        if cls.docstring is None:
            return
        text = apart(cls.docstring.value)
        if any(decorator.callable_path == "dataclasses.dataclass" for decorator in cls.decorators):
            fields = [member for member in cls.members.values() if isinstance(member, Attribute)]
            described = [f"    {field.name}: {words}" for field in fields if (words := comment_behind(field))]
            if described and "\nAttributes:\n" not in text:
                text = "\n".join([text, "", "Attributes:", *described])
        cls.docstring.value = text

    def on_module_members(self, *, mod: Any, **_: Any) -> None:
        """Describe constants."""
        for member in mod.members.values():
            if isinstance(member, Attribute) and member.docstring is None and (words := comment_behind(member)):
                member.docstring = Docstring(words, lineno=member.lineno, parent=member)


def apart(text: str) -> str:
    """A docstring in which names that share a description have it each."""
    return "\n".join(_apart(text.splitlines()))


def _apart(lines: list[str]) -> Iterator[str]:
    section, names, shared = "", [], []
    for line in [*lines, ""]:
        if names and line.startswith("     "):
            shared.append(line)
            continue
        for name in names:
            yield f"    {name}: {shared[0]}"
            yield from shared[1:]
        names = []
        section = line if line and not line.startswith(" ") else section
        if section in SECTIONS and (match := TOGETHER.fullmatch(line)):
            names, shared = match[1].split(", "), [match[2]]
        else:
            yield line


def comment_behind(attribute: Attribute) -> str:
    """The comment on the last line of a definition; nothing if there is none, or one for a tool."""
    if not isinstance(attribute.filepath, Path) or attribute.endlineno is None:
        return ""
    line = attribute.filepath.read_text(encoding="utf-8").splitlines()[attribute.endlineno - 1]
    words = line.partition("  # ")[2].strip()
    return "" if words.startswith(("type:", "noqa", "fmt:")) else words


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave out the page 404.html, whose links need to know where on a host the site will lie."""
    config.theme.static_templates.discard("404.html")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the colours of code, for light and for dark pages."""
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs("[data-bs-theme=dark] .highlight")
    files.append(File.generated(config, "highlight.css", content=f"{light}\n{dark}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Fill in what the commands say of themselves; links to files of the repository keep only their words."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n".join(_help(cli, "minitrans")))
    docs = Path(config.docs_dir).resolve()
    folder = (docs / page.file.src_path).parent

    def words(link: re.Match[str]) -> str:
        target = (folder / link["path"]).resolve()
        of_the_repository = target.is_relative_to(docs.parent) and not target.is_relative_to(docs)
        return link["words"] if of_the_repository and target.exists() else link[0]

    return LINK.sub(words, markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Put in what the theme's script, which switches between light and dark, looks for: two styles of a highlighter."""
    return output.replace("</head>", '<style id="hljs-light"></style><style id="hljs-dark"></style></head>', 1)


def _help(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[str]:
    context = click.Context(command, parent, name, terminal_width=100, **command.context_settings)
    yield from (f"## {context.command_path}", "", "```text", command.get_help(context), "```", "")
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            yield from _help(command.commands[inner], inner, context)


@event_priority(-100)  # when the search has written its index
def on_post_build(config: MkDocsConfig) -> None:
    """Put the search index where a page that was opened as a file can read it; refuse pages that call other hosts."""
    site = Path(config.site_dir)
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    (site / "search" / "search_index.js").write_text(f"var searchIndex = {json.dumps(index)};\n", encoding="utf-8")
    for file in sorted(site.rglob("*")):
        if file.suffix in (".html", ".css", ".svg"):
            for match in FETCHED.finditer(file.read_text(encoding="utf-8")):
                LOGGER.warning("%s fetches from another host: %s", file.relative_to(site), match[0])
