"""Scratch memory of one thread, and the steps of every block with the addresses of that scratch filled in."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitrans.backends.panels import PackedLayer, PackedLinear, PackedModel, address, aligned, round_up
from minitrans.encoder.selection import Ranking, positions
from minitrans.kernels.steps import (
    ACTIVATION,
    ATTENTION,
    BATCH,
    EMBED,
    KERNEL,
    LAYER_NORM,
    LOAD_ROWS,
    PRODUCT,
    PRUNE,
    QUANTIZE,
    STEP_WORDS,
)
from minitrans.models.parameters import Float32, LayerNorm

PER_ROWS = -1  # tasks: see kernels/steps.py
_BATCH = struct.Struct(f"{len(BATCH)}q")
PROJECTIONS = 16  # of policies, whose programs are kept
SLACK_ROWS = 32  # a tile may read and write this many rows behind the last one


@dataclass(frozen=True)
class Program:
    """The steps of one block."""

    records: NDArray[np.int64]  # [steps, STEP_WORDS]
    address: int
    count: int


def _float_bits(number: float) -> int:
    return int(np.float32(number).view(np.int32))


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
        self._projections: dict[int, tuple[PackedLinear, Program]] = {}
        self.embed = self._program(self._embed())
        self._ranking = aligned((rows,), np.float32)
        self.prune = self._program([self._prune()])
        self.attention = [self._program(self._attention_block(layer)) for layer in model.layers]
        self.feed_forward = [self._program(self._feed_forward_block(layer)) for layer in model.layers]

    def place_texts(self, offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        """Where texts begin, [B + 1], and their lengths [B]; to be called before the rows are described."""
        self._offsets = offsets.copy()  # what was checked is what the kernels read
        self.offsets = offsets.tobytes()
        self.longest = int(lengths.max(initial=0))
        self._positions = positions(offsets)  # [T]
        self._texts = len(lengths), address(self._offsets), address(self._positions)

    def describe(self, rows: int, ids: int, hidden: int, out: int, log_sizes: int, score: int) -> None:
        """Tell the kernels what a block works on: the addresses of arrays that were checked, 0 for none."""
        texts, offsets, positions = self._texts
        received = self._received if score else (0, 0)
        _BATCH.pack_into(
            self._batch_memory, 0, rows, texts, offsets, ids, positions, hidden, out, log_sizes, *received, score
        )

    def projection(self, linear: PackedLinear) -> tuple[Float32, Program, Float32]:
        """The program of a float32 linear map, the rows [rows, K] that it reads and those [rows, N] that it writes."""
        known = self._projections.get(id(linear))
        if known is None:
            if len(self._projections) >= PROJECTIONS:
                self._projections.clear()
            # The record is kept with its program, which holds its address.
            known = self._projections[id(linear)] = (
                linear,
                self._program(self._product(self._context, linear, self._y)),
            )
        return self._context[:, : linear.inputs], known[1], self._y[:, : linear.outputs]

    def _program(self, steps: list[Mapping[int, int]]) -> Program:
        records = aligned((len(steps), STEP_WORDS), np.int64)
        for record, step in zip(records, steps, strict=True):
            for offset, value in step.items():
                record[offset // 8] = value
            record[EMBED.batch // 8] = address(self._batch)
        return Program(records, address(records), len(steps))

    def _embed(self) -> list[Mapping[int, int]]:
        model = self._model
        step = {
            EMBED.kernel: KERNEL["embed"],
            EMBED.tasks: PER_ROWS,
            EMBED.table: address(model.table),
            EMBED.scales: address(model.table_scale),
            EMBED.positions: address(model.positions),
            EMBED.weight: address(model.embeddings_norm.weight),
            EMBED.bias: address(model.embeddings_norm.bias),
            EMBED.width: model.config.hidden_size,
            EMBED.epsilon: _float_bits(model.config.layer_norm_eps),
        }
        return [step]

    def _attention_block(self, layer: PackedLayer) -> list[Mapping[int, int]]:
        config = self._model.config
        head_size = config.head_size
        attention = {
            ATTENTION.kernel: KERNEL["attention"],
            ATTENTION.tasks: -1 - config.num_attention_heads,
            ATTENTION.qkv: address(self._qkv),
            ATTENTION.qkv_bytes: self._qkv.strides[0],
            ATTENTION.heads: config.num_attention_heads,
            ATTENTION.head_size: head_size,
            ATTENTION.factor: _float_bits(1 / np.sqrt(head_size)),
            ATTENTION.context: address(self._context),
            ATTENTION.context_bytes: self._context.strides[0],
            ATTENTION.scratch: address(self._attention),
            ATTENTION.scratch_bytes: self._attention.strides[0],
        }
        return [
            *self._product(None, layer.qkv, self._qkv),
            attention,
            *self._product(self._context, layer.attention_output, self._y),
            self._layer_norm(layer.attention_norm),
        ]

    def _feed_forward_block(self, layer: PackedLayer) -> list[Mapping[int, int]]:
        return [
            *self._product(None, layer.intermediate, self._inner, self._model.config.hidden_act),
            *self._product(self._inner, layer.output, self._y),
            self._layer_norm(layer.output_norm),
        ]

    def _product(
        self, x: Float32 | None, linear: PackedLinear, y: Float32, activation: str | None = None
    ) -> list[Mapping[int, int]]:
        """y = activation(linear(x)), x None for the batch's hidden states; float32 scratch is multiplied in place."""
        width = linear.inputs
        step = {
            PRODUCT.tasks: linear.panels,
            PRODUCT.weight: address(linear.weight),
            PRODUCT.panel_bytes: linear.weight.strides[0],
            PRODUCT.bias: address(linear.bias),
            PRODUCT.depth: linear.depth,
            PRODUCT.y: address(y),
            PRODUCT.y_bytes: y.strides[0],
            PRODUCT.activation: ACTIVATION[activation],
        }
        if linear.is_int8:
            quantize = {
                QUANTIZE.kernel: KERNEL["quantize_rows"],
                QUANTIZE.tasks: PER_ROWS,
                QUANTIZE.x: address(x),
                QUANTIZE.x_bytes: width * 4 if x is None else x.strides[0],
                QUANTIZE.width: width,
                QUANTIZE.to: address(self._x),
                QUANTIZE.to_bytes: round_up(linear.depth, 64),
                QUANTIZE.scale: address(self._scale),
                QUANTIZE.zero: address(self._zero),
            }
            step |= {
                PRODUCT.kernel: KERNEL["int8_product"],
                PRODUCT.x: address(self._x),
                PRODUCT.x_bytes: round_up(linear.depth, 64),
                PRODUCT.column_scale: address(linear.scale),
                PRODUCT.column_sum: address(linear.column_sum),
                PRODUCT.row_scale: address(self._scale),
                PRODUCT.row_zero: address(self._zero),
            }
            return [quantize, step]
        step[PRODUCT.kernel] = KERNEL["float32_product"]
        source = self._x if x is None else x
        step |= {PRODUCT.x: address(source), PRODUCT.x_bytes: source.strides[0]}
        if x is not None:
            return [step]
        load = {
            LOAD_ROWS.kernel: KERNEL["load_rows"],
            LOAD_ROWS.tasks: PER_ROWS,
            LOAD_ROWS.to: address(self._x),
            LOAD_ROWS.to_bytes: self._x.strides[0],
            LOAD_ROWS.width: width,
        }
        return [load, step]

    def _prune(self) -> Mapping[int, int]:
        return {
            PRUNE.kernel: KERNEL["prune"],
            PRUNE.tasks: 1,
            PRUNE.width: self._model.config.hidden_size,
            PRUNE.ranking: address(self._ranking),
        }

    def describe_pruning(
        self,
        ranking: Ranking,
        scores: Float32,
        kept: NDArray[np.int64],
        offsets: NDArray[np.int64],
        sums: Float32 | None,
    ) -> None:
        """Tell the pruning step what to rank and where its results go: arrays that were checked."""
        scorer = ranking.scorer if ranking.scores is None else None
        record = self.prune.records[0]
        for field, value in (
            (PRUNE.scores, address(scores)),
            (PRUNE.weight, 0 if scorer is None else address(scorer.weight)),
            (PRUNE.bias, 0 if scorer is None else _float_bits(scorer.bias[0])),
            (PRUNE.least, address(ranking.least)),
            (PRUNE.threshold, _float_bits(ranking.threshold)),
            (PRUNE.prefix, ranking.prefix),
            (PRUNE.suffix, ranking.suffix),
            (PRUNE.kept, address(kept)),
            (PRUNE.offsets, address(offsets)),
            (PRUNE.sums, address(sums)),
        ):
            record[field // 8] = value

    def _layer_norm(self, norm: LayerNorm) -> Mapping[int, int]:
        """hidden + y, normalised."""
        return {
            LAYER_NORM.kernel: KERNEL["layer_norm"],
            LAYER_NORM.tasks: PER_ROWS,
            LAYER_NORM.x: address(self._y),
            LAYER_NORM.x_bytes: self._y.strides[0],
            LAYER_NORM.weight: address(norm.weight),
            LAYER_NORM.bias: address(norm.bias),
            LAYER_NORM.width: self._model.config.hidden_size,
            LAYER_NORM.epsilon: _float_bits(self._model.config.layer_norm_eps),
        }
