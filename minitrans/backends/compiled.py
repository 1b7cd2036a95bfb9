"""The compiled backend: the same three blocks, as lists of kernel steps over memory laid out for them.

Only the backend hands addresses to the kernels. This module checks every array that comes from outside (dtype, shape,
order, range); all else that a kernel touches is a buffer of a workspace, made for as many rows as there are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from minitrans.backends.panels import address, pack_linears
from minitrans.backends.team import MOST_MEMBERS, Team, alone
from minitrans.backends.workspace import PackedLayer, PackedModel, Workspace
from minitrans.errors import InputError
from minitrans.kernels.library import Kernels
from minitrans.kernels.steps import BATCH, SCORE
from minitrans.parameters import AnyEmbedding, Float32, Int8Embedding, Parameters
from minitrans.quantization import dequantize_embedding

LEAST_ROWS = 64  # of a workspace


class CompiledBlocks:
    """The three blocks in compiled kernels (contract: backends/__init__.py)."""

    name = "compiled"

    def __init__(self, parameters: Parameters, kernels: Kernels) -> None:
        self.config = parameters.config
        self.num_layers = len(parameters.layers)
        self.kernels = kernels
        self._model = pack_model(parameters, kernels)
        self._idle: list[Workspace] = []  # append and pop are atomic
        self._teams: list[Team] = []
        self._local = threading.local()

    def session(self) -> AbstractContextManager[None]:
        """Nothing to prepare."""
        return nullcontext()

    def embed(self, ids: NDArray[np.int64], offsets: NDArray[np.int64]) -> Float32:
        """Word, position and token type embeddings, then layer norm."""
        _check("ids", ids, np.int64, (len(ids),))
        _check_offsets(offsets, len(ids))
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.config.vocab_size):
            raise InputError(f"token ids range from {ids.min()} to {ids.max()}, wanted 0 to {self.config.vocab_size - 1}")
        lengths = np.diff(offsets)
        positions = np.arange(len(ids)) - np.repeat(offsets[:-1], lengths)  # [T]
        if len(lengths) and lengths.max() > self.config.max_position_embeddings:
            raise InputError(
                f"a text has {lengths.max()} tokens, wanted at most {self.config.max_position_embeddings}"
            )
        out = np.empty((len(ids), self.config.hidden_size), np.float32)
        with self._workspace(len(ids)) as workspace:
            workspace.batch[[BATCH.tokens // 8, BATCH.ids // 8, BATCH.positions // 8, BATCH.out // 8]] = (
                len(ids),
                address(ids),
                address(positions),
                address(out),
            )
            self._run(workspace.embed)
        return out

    def attention_block(
        self, hidden: Float32, offsets: NDArray[np.int64], sizes: Float32 | None, layer: int, want: str | None
    ) -> tuple[Float32, Float32 | None]:
        """softmax(query key^T / sqrt(D)) value per head and text; then output map, residual, layer norm."""
        rows = len(hidden)
        _check("hidden", hidden, np.float32, (rows, self.config.hidden_size))
        _check_offsets(offsets, rows)
        log_sizes = None
        if sizes is not None:
            _check("sizes", sizes, np.float32, (rows,))
            log_sizes = np.log(sizes)
        score = SCORE.get(want, 0)
        out = np.empty_like(hidden)
        with self._workspace(rows) as workspace:
            received = workspace.received if score else None
            workspace.batch[:] = (
                rows,
                len(offsets) - 1,
                address(offsets),
                0,
                0,
                address(hidden),
                address(out),
                address(log_sizes),
                address(received),
                0 if received is None else received.strides[0],
                score,
            )
            self._run(workspace.attention[layer])
            scores = None if received is None else received[:, :rows].mean(axis=0)  # [T]
        return out, scores

    def feed_forward_block(self, hidden: Float32, offsets: NDArray[np.int64], layer: int) -> Float32:
        """output(activation(intermediate(x))) + x, then layer norm."""
        rows = len(hidden)
        _check("hidden", hidden, np.float32, (rows, self.config.hidden_size))
        out = np.empty_like(hidden)
        with self._workspace(rows) as workspace:
            workspace.batch[[BATCH.tokens // 8, BATCH.hidden // 8, BATCH.out // 8]] = rows, address(hidden), address(out)
            self._run(workspace.feed_forward[layer])
        return out

    @contextmanager
    def helped(self, helpers: int) -> Iterator[None]:
        """Threads that sleep between calls take part in the steps of this thread's blocks."""
        with alone() as idle:
            team = self._find_team() if idle and helpers > 0 else None
            if team is None:
                yield
                return
            team.open(min(helpers, MOST_MEMBERS - 1))
            self._local.team = team
            try:
                yield
            finally:
                self._local.team = None
                team.close()
                self._teams.append(team)

    def _find_team(self) -> Team:
        """One whose assistants have all left, or a new one."""
        try:
            team = self._teams.pop()
        except IndexError:
            return Team(self.kernels)
        return team if team.is_free else Team(self.kernels)

    def _run(self, program: NDArray[np.int64]) -> None:
        team: Team | None = getattr(self._local, "team", None)
        if team is None:
            self.kernels.run(address(program), len(program), 0, 0)
        else:
            team.run(address(program), len(program))

    @contextmanager
    def _workspace(self, rows: int) -> Iterator[Workspace]:
        """One that is idle, or a new one where none is or the idle one is too small."""
        try:
            workspace = self._idle.pop()
        except IndexError:
            workspace = None
        if workspace is None or workspace.rows < rows:
            workspace = Workspace(self._model, max(LEAST_ROWS, 1 << (rows - 1).bit_length()), MOST_MEMBERS)
        yield workspace
        self._idle.append(workspace)


def pack_model(parameters: Parameters, kernels: Kernels) -> PackedModel:
    """Lay the weights out for the kernels' level."""
    level, config = kernels.level, parameters.config
    layers = tuple(
        PackedLayer(
            pack_linears(level, layer.query, layer.key, layer.value),
            pack_linears(level, layer.attention_output),
            layer.attention_norm,
            pack_linears(level, layer.intermediate),
            pack_linears(level, layer.output),
            layer.output_norm,
        )
        for layer in parameters.layers
    )
    words = parameters.word_embeddings
    positions = dequantize_embedding(parameters.position_embeddings).weight  # [P, H]
    positions = positions + dequantize_embedding(parameters.token_type_embeddings).weight[0]
    return PackedModel(
        level,
        config.hidden_size,
        config.num_attention_heads,
        config.hidden_act,
        config.layer_norm_eps,
        _with_slack(words),
        words.scale if isinstance(words, Int8Embedding) else None,
        positions,
        parameters.embeddings_norm,
        layers,
    )


def _with_slack(words: AnyEmbedding) -> NDArray[np.generic]:
    """An int8 row is read a whole vector at a time: the last one needs bytes behind it unless it fills its vectors."""
    table = words.weight
    if not isinstance(words, Int8Embedding) or table.shape[1] % 16 == 0:
        return np.ascontiguousarray(table)
    return np.concatenate([table, np.zeros((16, table.shape[1]), table.dtype)])


def _check(name: str, array: NDArray[np.generic], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise InputError(
            f"{name} is {array.dtype} {list(array.shape)}, wanted C-contiguous {np.dtype(dtype)} {list(shape)}"
        )


def _check_offsets(offsets: NDArray[np.int64], rows: int) -> None:
    _check("offsets", offsets, np.int64, (len(offsets),))
    if not (len(offsets) and offsets[0] == 0 and offsets[-1] == rows and (np.diff(offsets) >= 0).all()):
        raise InputError(f"offsets are {offsets.tolist()}, wanted to rise from 0 to {rows}, the number of rows")
