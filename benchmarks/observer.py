"""What the observer of the layer loop costs: python -m benchmarks.observer

The loop as it is, without an observer, against the same blocks called one after the other with no loop of ours around
them; then with an observer that does nothing, and with the trace. Interleaved, ratios inside a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import click
import numpy as np

from benchmarks.timing import BenchmarkError, interleaved, ratios, seconds
from minitrans.encoder.blocks import Blocks
from minitrans.encoder.forward import forward
from minitrans.encoder.packing import PackedBatch, pack
from minitrans.explain.trace import Trace, reference_blocks
from minitrans.models.parameters import Float32
from minitrans.sentences.sentence_encoder import SentenceEncoder

BARE = "blocks alone"


def bare(blocks: Blocks, batch: PackedBatch) -> Float32:
    """The blocks in their order, and nothing else."""
    hidden = blocks.embed(batch.ids, batch.offsets)  # [T, H]
    for layer in range(blocks.num_layers):
        hidden, _ = blocks.attention_block(hidden, batch.offsets, None, layer, None)
        hidden = blocks.feed_forward_block(hidden, batch.offsets, layer)
    return hidden


def measure(encoder: SentenceEncoder, batch: PackedBatch, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of each way to run a batch; all give the same bits, or nothing is timed."""
    reference = reference_blocks(encoder)
    runs = {
        BARE: lambda: bare(blocks, batch),
        "no observer": lambda: forward(blocks, batch).hidden,
        "an observer that does nothing": lambda: forward(blocks, batch, observer=lambda *_: None).hidden,
        "the trace": lambda: forward(blocks, batch, observer=Trace(reference)).hidden,
    }
    with encoder.blocks.session(), encoder.blocks.chunk(len(batch.ids), 0) as blocks:
        wanted = bare(blocks, batch)
        for name, run in runs.items():
            if not np.array_equal(run(), wanted):
                raise BenchmarkError(f"{name} gives other numbers than {BARE}: nothing was timed")
        return interleaved({name: lambda run=run: _warm(run) for name, run in runs.items()}, rounds)


def _warm(run: Callable[[], object]) -> float:
    """Seconds of the second of two runs: the first brings back what whoever ran before drove out of the caches."""
    run()
    return seconds(run)


@click.command(help=__doc__)
@click.option("--texts", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--tokens", type=click.IntRange(2, 256), default=15, show_default=True, help="Of each text.")
@click.option("--rounds", type=click.IntRange(min=3), default=200, show_default=True)
def main(texts: int, tokens: int, rounds: int) -> None:
    encoder = SentenceEncoder()
    draw = np.random.default_rng(0)
    batch = pack([draw.integers(1000, encoder.config.vocab_size, tokens).tolist() for _ in range(texts)])
    found = measure(encoder, batch, rounds)
    click.echo(
        f"{encoder.precision}, {encoder.backend}, one thread, {texts} texts of {tokens} tokens, {rounds} rounds\n"
    )
    click.echo("| run | us, median | over the blocks alone, median |\n| --- | ---: | ---: |")
    for name, each in found.items():
        click.echo(f"| {name} | {statistics.median(each) * 1e6:,.0f} | {ratios(found[BARE], each).median:.3f} |")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.observer")
