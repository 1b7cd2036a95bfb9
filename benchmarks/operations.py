"""What each operation of the compiled backend costs: python -m benchmarks.operations

One thread runs every step of every block by itself. Times are the least of some rounds, summed over the layers; the
share is of all time inside the kernels, GOP/s counts a multiplication and an addition as two.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

import click
import numpy as np

from minitrans.backends.compiled import CompiledBlocks
from minitrans.backends.workspace import Program, Workspace
from minitrans.encoder.forward import forward
from minitrans.encoder.packing import pack
from minitrans.hub.resolve import resolve
from minitrans.kernels.library.loading import load_kernels
from minitrans.kernels.steps import KERNELS, PRODUCT, STEP_BYTES
from minitrans.models.parameters import Parameters
from minitrans.models.quantization import with_precision
from minitrans.models.weights import load_parameters

ROUNDS = 20


class TimedBlocks(CompiledBlocks):
    """Runs the steps of a block one at a time, and notes how long each took."""

    def __init__(self, parameters: Parameters, level: str | None) -> None:
        super().__init__(parameters, load_kernels(level))
        self.seconds: dict[str, float] = defaultdict(float)
        self.operations: dict[str, int] = defaultdict(int)

    def _run(self, workspace: Workspace, program: Program, rows: int, *addresses: int, **more: int) -> None:
        names = ("hidden", "out", "log_sizes", "score", "ids", "positions")
        given = dict.fromkeys(names, 0) | dict(zip(names, addresses, strict=False)) | more
        workspace.describe(rows, **given)
        for number in range(program.count):
            start = time.perf_counter()
            self.kernels.run(program.address + number * STEP_BYTES, 1, 0, 0)
            took = time.perf_counter() - start
            name = KERNELS[program.records[number, 0]]
            if "product" in name:
                depth, panels = (int(program.records[number, field // 8]) for field in (PRODUCT.depth, PRODUCT.tasks))
                outputs = panels * self.kernels.level.panel
                name += f", {depth} -> {outputs}"
                self.operations[name] += 2 * rows * depth * outputs
            self.seconds[name] += took


def measure(blocks: TimedBlocks, lengths: list[int]) -> dict[str, float]:
    """Least seconds of each operation over the rounds, summed over the layers."""
    draw = np.random.default_rng(0)
    batch = pack([draw.integers(1000, blocks.config.vocab_size, length).tolist() for length in lengths])
    rounds = []
    for _ in range(ROUNDS):
        blocks.seconds.clear()
        blocks.operations.clear()
        with blocks.chunk(len(batch.ids), 0) as inside:
            forward(inside, batch)
        rounds.append(dict(blocks.seconds))
    return {name: min(each[name] for each in rounds) for name in rounds[0]}


@click.command(help=__doc__)
@click.option("--model", help="Folder or name; the default is the bundled int8 model.")
@click.option("--precision", type=click.Choice(["int8", "float32"]), default="int8", show_default=True)
@click.option("--level", help="Instruction-set level; the default is the best.")
@click.option("--tokens", type=click.IntRange(1, 512), default=15, show_default=True, help="Of each text.")
@click.option("--texts", type=click.IntRange(min=1), default=32, show_default=True)
def main(model: str | None, precision: str, level: str | None, tokens: int, texts: int) -> None:
    parameters = with_precision(load_parameters(Path(resolve(model, local_files_only=True))), precision)
    blocks = TimedBlocks(parameters, level)
    seconds = measure(blocks, [tokens] * texts)
    total = sum(seconds.values())
    click.echo(
        f"{precision}, {blocks.kernels.level.name}, {texts} texts of {tokens} tokens, {blocks.num_layers} layers, "
        f"one thread: {total * 1e6:,.0f} us, {texts * tokens / total:,.0f} tokens/s"
    )
    click.echo("| operation | us | share | GOP/s |\n| --- | ---: | ---: | ---: |")
    for name, took in seconds.items():
        rate = f"{blocks.operations[name] / took / 1e9:,.0f}" if name in blocks.operations else ""
        click.echo(f"| {name} | {took * 1e6:,.0f} | {took / total:.1%} | {rate} |")
    products = sum(took for name, took in seconds.items() if "product" in name)
    click.echo(f"| all products | {products * 1e6:,.0f} | {products / total:.1%} | |")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.operations")
