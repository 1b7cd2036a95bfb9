"""Scratch memory of one thread, and the steps of every block with the addresses of that scratch filled in."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from minitrans.backends.panels import PackedLinear, PackedModel, address, aligned, round_up
from minitrans.backends.products import PreparedLayer
from minitrans.encoder.selection import TOP, Ranking
from minitrans.kernels.steps import (
    ACTIVATION,
    BATCH,
    PER_ROWS,
    PRUNE,
    STEP,
    STEP_WORDS,
    float_bits,
    new_step,
    write_fields,
)
from minitrans.models.parameters import Float32, LayerNorm

_BATCH, _RESULTS = struct.Struct(f"{len(BATCH)}q"), struct.Struct("3q")
PRUNINGS = 16  # of policies, whose programs are kept
SLACK_ROWS = 32  # a tile may read and write this many rows behind the last one

Step: TypeAlias = NDArray[np.int64]  # [STEP_WORDS]


@dataclass(frozen=True)
class Program:
    """The steps of one block."""

    records: NDArray[np.int64]  # [steps, STEP_WORDS]
    address: int
    count: int


@dataclass(frozen=True)
class PreparedRanking:
    """What all calls with the same ranking share: it was checked, and its map laid out."""

    ranking: Ranking  # without scores; and without a scorer where there are some
    longest: int  # tokens of a text
    restore: PackedLinear | None
    bias: Float32 | None  # [H] of the map; None where it adds nothing


class Workspace:
    """Room for some number of rows, for one block at a time.

    Args:
        model: the packed weights.
        rows: the most rows of a batch; texts may be as long.
        members: the most threads that share a step.
    """

    def __init__(self, model: PackedModel, rows: int, members: int) -> None:
        self.rows, self.members = rows, members
        self._model = model
        level, hidden, heads = model.level, model.config.hidden_size, model.config.num_attention_heads
        layer = model.layers[0]
        inner = round_up(layer.intermediate.outputs, level.panel)
        room = round_up(rows, SLACK_ROWS) + SLACK_ROWS
        depth = max(round_up(layer.qkv.depth, 64), round_up(layer.output.depth, 64))
        self._batch = aligned((len(BATCH),), np.int64)
        self._batch_memory = memoryview(self._batch.data).cast("B")
        self.offsets = b""  # of the texts last placed
        self.longest = 0  # of their lengths
        self._qkv = aligned((room, round_up(3 * hidden, level.panel) + level.panel), np.float32)
        self._context = aligned((room, round_up(hidden, 16)), np.float32)
        self._y = aligned((room, round_up(hidden, level.panel)), np.float32)
        self._inner = aligned((room, inner), np.float32)
        is_int8 = layer.qkv.is_int8
        self._x = aligned((room, depth), np.uint8) if is_int8 else aligned((room, round_up(hidden, 16)), np.float32)
        self._scale, self._zero = aligned((room,), np.float32), aligned((room,), np.int32)
        self.received = aligned((heads, round_up(rows, 16)), np.float32)
        self._received = address(self.received), self.received.strides[0]
        head_size = hidden // heads
        logits = round_up(rows, level.panel) * 4 * level.float32_heights[0]
        turned = round_up(rows, level.panel) * 4 * round_up(head_size, level.lanes)
        self._attention = aligned((members, logits + turned), np.uint8)
        self._prunings: dict[int, tuple[PreparedRanking, Program, memoryview, Float32 | None]] = {}  # by the first's id
        self.embed = self._program([self._embed()])
        self._per_text = aligned((len(BATCH),), np.int64)  # a batch whose rows are texts
        self._ranking, self._worth = aligned((rows,), np.float32), aligned((rows,), np.float32)
        self.attention = [self._program(self._attention_block(layer)) for layer in model.layers]
        self.feed_forward = [self._program(self._feed_forward_block(layer)) for layer in model.layers]

    def place_texts(self, offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        """Where texts begin, [B + 1], and their lengths [B]; to be called before the rows are described."""
        self._offsets = offsets.copy()  # what was checked is what the kernels read
        self.offsets = offsets.tobytes()
        self.longest = int(lengths.max(initial=0))
        self._texts = len(lengths), address(self._offsets)

    def describe(self, rows: int, ids: int, positions: int, hidden: int, out: int, log_sizes: int, score: int) -> None:
        """Tell the kernels what a block works on: the addresses of arrays that were checked, 0 for none."""
        texts, offsets = self._texts
        received = self._received if score else (0, 0)
        _BATCH.pack_into(
            self._batch_memory, 0, rows, texts, offsets, ids, positions, hidden, out, log_sizes, *received, score
        )

    def _program(self, steps: list[Step], per_text: int = 0) -> Program:
        """The steps on the batch, the last ``per_text`` of them on one row for each of its texts."""
        records = aligned((len(steps), STEP_WORDS), np.int64)
        for place, (record, step) in enumerate(zip(records, steps, strict=True)):
            record[:] = step
            batch = self._per_text if place >= len(steps) - per_text else self._batch
            write_fields(record, STEP, batch=address(batch))
        return Program(records, address(records), len(steps))

    def _embed(self) -> Step:
        model = self._model
        return new_step(
            "embed",
            tasks=PER_ROWS,
            table=address(model.table),
            scales=address(model.table_scale),
            positions=address(model.positions),
            weight=address(model.embeddings_norm.weight),
            bias=address(model.embeddings_norm.bias),
            width=model.config.hidden_size,
            epsilon=float_bits(model.config.layer_norm_eps),
        )

    def _attention_block(self, layer: PreparedLayer[PackedLinear]) -> list[Step]:
        heads, head_size = self._model.config.num_attention_heads, self._model.config.head_size
        attention = new_step(
            "attention",
            tasks=-1 - heads,
            qkv=address(self._qkv),
            qkv_bytes=self._qkv.strides[0],
            heads=heads,
            head_size=head_size,
            factor=float_bits(1 / np.sqrt(head_size)),
            context=address(self._context),
            context_bytes=self._context.strides[0],
            scratch=address(self._attention),
            scratch_bytes=self._attention.strides[0],
        )
        return [
            *self._product(None, layer.qkv, self._qkv),
            attention,
            *self._product(self._context, layer.attention_output, self._y),
            self._layer_norm(layer.attention_norm),
        ]

    def _feed_forward_block(self, layer: PreparedLayer[PackedLinear]) -> list[Step]:
        return [
            *self._product(None, layer.intermediate, self._inner, self._model.config.hidden_act),
            *self._product(self._inner, layer.output, self._y),
            self._layer_norm(layer.output_norm),
        ]

    def _product(
        self, x: Float32 | None, linear: PackedLinear, y: Float32, activation: str | None = None
    ) -> list[Step]:
        """y = activation(linear(x)), x None for the batch's hidden states: two steps, the first of which fills scratch.

        float32 rows that lie in scratch already are multiplied there, in one step.
        """
        product = {
            "tasks": linear.panels,
            "weight": address(linear.weight),
            "panel_bytes": linear.weight.strides[0],
            "bias": address(linear.bias),
            "depth": linear.depth,
            "y": address(y),
            "y_bytes": y.strides[0],
            "activation": ACTIVATION[activation],
        }
        if linear.is_int8:
            row_bytes = round_up(linear.depth, 64)
            quantize = new_step(
                "quantize_activations",
                tasks=PER_ROWS,
                x=address(x),
                x_bytes=linear.inputs * 4 if x is None else x.strides[0],
                width=linear.inputs,
                to=address(self._x),
                to_bytes=row_bytes,
                scale=address(self._scale),
                zero=address(self._zero),
            )
            multiply = new_step(
                "int8_product",
                **product,
                x=address(self._x),
                x_bytes=row_bytes,
                column_scale=address(linear.scale),
                column_sum=address(linear.column_sum),
                row_scale=address(self._scale),
                row_zero=address(self._zero),
            )
            return [quantize, multiply]
        source = self._x if x is None else x
        multiply = new_step("float32_product", **product, x=address(source), x_bytes=source.strides[0])
        if x is not None:
            return [multiply]
        to, to_bytes = address(self._x), self._x.strides[0]
        return [new_step("load_rows", tasks=PER_ROWS, to=to, to_bytes=to_bytes, width=linear.inputs), multiply]

    def _layer_norm(self, norm: LayerNorm) -> Step:
        """hidden + y, normalised."""
        return new_step(
            "layer_norm",
            tasks=PER_ROWS,
            x=address(self._y),
            x_bytes=self._y.strides[0],
            weight=address(norm.weight),
            bias=address(norm.bias),
            width=self._model.config.hidden_size,
            epsilon=float_bits(self._model.config.layer_norm_eps),
        )

    def pruning(
        self, prepared: PreparedRanking, scores: int, kept: int, offsets: int
    ) -> tuple[Program, Float32 | None]:
        """The program that prunes, told where the scores are or go, and where the rest goes: addresses.

        Returns:
            the program, and where it leaves what `restore` makes of the sum of each text's rows that go: [rows, H].
        """
        known = self._prunings.get(id(prepared))
        if known is None:
            if len(self._prunings) >= PRUNINGS:
                self._prunings.clear()
            program = self._pruning(prepared)
            memory = memoryview(program.records.data).cast("B")
            mapped = None if prepared.restore is None else self._y[:, : prepared.restore.outputs]
            # The ranking is kept, so that no other one has its id.
            known = self._prunings[id(prepared)] = prepared, program, memory, mapped
        _, program, memory, mapped = known
        _RESULTS.pack_into(memory, PRUNE.scores, scores, kept, offsets)
        return program, mapped

    def _pruning(self, prepared: PreparedRanking) -> Program:
        ranking, restore = prepared.ranking, prepared.restore
        scorer = ranking.scorer
        prune = new_step(
            "prune",
            tasks=1,
            width=self._model.config.hidden_size,
            ranking=address(self._ranking),
            worth=address(self._worth),
            top=float_bits(TOP),
            weight=0 if scorer is None else address(scorer.weight),
            bias=0 if scorer is None else float_bits(scorer.bias[0]),
            least=address(ranking.least),
            budgets=address(ranking.budgets),
            prefix=ranking.prefix,
            suffix=ranking.suffix,
        )
        if restore is None:
            return self._program([prune])
        sums = {"sums": address(self._context), "sums_bytes": self._context.strides[0]}
        write_fields(prune, PRUNE, **sums, mapped=address(self._per_text))
        products = self._product(self._context, restore, self._y)
        return self._program([prune, *products], per_text=len(products))
