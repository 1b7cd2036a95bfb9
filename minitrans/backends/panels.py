"""Weights laid out for the kernels: panels of columns, as wide as a tile, filled up with zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitrans.kernels.levels import Level
from minitrans.parameters import AnyLinear, Float32, Int8Linear

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


def aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array of zeros whose first byte stands at a multiple of ALIGNMENT."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(count + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    array: NDArray[Any] = memory[begin : begin + count].view(dtype).reshape(shape)
    return array


def address(array: NDArray[Any] | None) -> int:
    """Where the array's first byte stands; 0 for None."""
    return 0 if array is None else int(array.ctypes.data)


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is not below the number."""
    return -(-number // multiple) * multiple


@dataclass(frozen=True)
class PackedLinear:
    """One linear map, or several of the same input side by side."""

    outputs: int  # N
    depth: int  # K, rounded up to what the level's int8 products take
    weight: NDArray[Any]  # float32 [N / panel, K, panel] or int8 [N / panel, K / 4, panel, 4]
    bias: Float32  # [N rounded up]
    scale: Float32 | None  # [N rounded up], int8 only
    column_sum: NDArray[np.int32] | None  # [N rounded up], int8 only: for the zero points

    @property
    def panels(self) -> int:
        """How many there are."""
        return len(self.weight)

    @property
    def is_int8(self) -> bool:
        """Whether the weights are bytes."""
        return self.scale is not None


def pack_linears(level: Level, *linears: AnyLinear) -> PackedLinear:
    """Lay out the weights of one or more linear maps of the same input and precision."""
    outputs = sum(len(linear.bias) for linear in linears)
    is_int8 = isinstance(linears[0], Int8Linear)
    inputs = linears[0].weight.shape[1]
    depth = round_up(inputs, level.depth_multiple) if is_int8 else inputs
    columns = round_up(outputs, level.panel)
    weight = np.zeros((columns, depth), linears[0].weight.dtype)  # [N rounded up, K rounded up]
    weight[:outputs, :inputs] = np.concatenate([linear.weight for linear in linears])
    panels = weight.reshape(-1, level.panel, depth)  # [panels, panel, K]
    if not is_int8:
        packed = _copy(panels.transpose(0, 2, 1), np.float32)  # [panels, K, panel]
        return PackedLinear(outputs, depth, packed, _row([linear.bias for linear in linears], columns), None, None)
    fours = panels.reshape(-1, level.panel, depth // 4, 4).transpose(0, 2, 1, 3)  # [panels, K / 4, panel, 4]
    scales = [linear.scale for linear in linears if isinstance(linear, Int8Linear)]
    return PackedLinear(
        outputs,
        depth,
        _copy(fours, np.int8),
        _row([linear.bias for linear in linears], columns),
        _row(scales, columns),
        _copy(weight.sum(axis=1, dtype=np.int32), np.int32),
    )


def _copy(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    array = aligned(values.shape, dtype)
    array[...] = values
    return array


def _row(parts: list[Float32], columns: int) -> Float32:
    row = aligned((columns,), np.float32)
    values = np.concatenate(parts)
    row[: len(values)] = values
    return row
