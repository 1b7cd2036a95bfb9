"""The compiled backend: the same three blocks, as lists of kernel steps over memory laid out for them.

Only the backend hands addresses to the kernels. This module checks every array that comes from outside (dtype, shape,
order, range); all else that a kernel touches is a buffer of a workspace, made for as many rows as there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from minitrans.backends.panels import address, pack_linears, pack_model, unpack_model
from minitrans.backends.team import MOST_MEMBERS, Team, register_chunk
from minitrans.backends.workspace import PRUNINGS, PreparedRanking, Program, Workspace
from minitrans.encoder.selection import Ranking, Selection, positions
from minitrans.errors import InputError
from minitrans.kernels.library.loading import Kernels, load_kernels
from minitrans.kernels.steps import SCORE
from minitrans.models.parameters import Float32, Linear, Parameters

LEAST_ROWS = 64  # of a workspace
MOST_IDLE = 64  # workspaces that are kept: as many as were ever in use at once, up to this
# Calling other threads costs a tenth of a millisecond (measured). It pays where the weights alone take longer to come
# from memory, or for so many rows.
MANY_BYTES = 16_000_000
MUCH_WORK = 1_000_000_000  # rows times bytes of weights
_FLOAT32, _INT64 = np.dtype(np.float32), np.dtype(np.int64)


class _Chunk:
    """What the blocks use inside ``chunk``."""

    workspace: Workspace | None = None
    team: Team | None = None


P = ParamSpec("P")
T = TypeVar("T")


def _in_a_chunk(
    block: Callable[Concatenate[CompiledBlocks, P], T],
) -> Callable[Concatenate[CompiledBlocks, P], T]:
    """Outside of ``chunk`` a block is a chunk by itself."""

    @wraps(block)
    def run(blocks: CompiledBlocks, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if blocks._chunk is not None:
            return block(blocks, *args, **kwargs)
        with blocks.chunk(0, 0) as inside:
            return block(inside, *args, **kwargs)

    return run


class CompiledBlocks:
    """The three blocks in compiled kernels (contract: encoder/blocks.py)."""

    _chunk: _Chunk | None = None

    name = "compiled"

    def __init__(self, parameters: Parameters, kernels: Kernels) -> None:
        self.config = parameters.config
        self.num_layers = len(parameters.layers)
        self.kernels = kernels
        self._model = pack_model(parameters, kernels.level)
        self._weight_bytes = sum(
            linear.weight.nbytes
            for layer in self._model.layers
            for linear in (layer.qkv, layer.attention_output, layer.intermediate, layer.output)
        )
        self._workspaces: list[Workspace] = []  # idle ones; append and pop are atomic
        self._teams: list[Team] = []
        self._rankings: dict[tuple[int, ...], PreparedRanking] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Memory addresses and a library of this machine: elsewhere the weights are laid out anew.
        return _restored, (unpack_model(self._model),)

    def info(self) -> dict[str, str | None]:
        """How the kernels were built, and the level in use."""
        return {"kernels": self.kernels.built, "instruction_set": self.kernels.level.name}

    def session(self) -> AbstractContextManager[None]:
        """Nothing to prepare."""
        return nullcontext()

    @contextmanager
    def chunk(self, rows: int, helpers: int) -> Iterator[CompiledBlocks]:
        """Blocks with a workspace of their own, and with threads that share the steps where it pays."""
        inside = object.__new__(type(self))
        inside.__dict__.update(self.__dict__)
        chunk = inside._chunk = _Chunk()
        pays = self._weight_bytes >= MANY_BYTES or rows * self._weight_bytes >= MUCH_WORK
        with register_chunk() as is_only:
            try:
                if is_only and pays and helpers > 0:
                    chunk.team = self._open_team(min(helpers, MOST_MEMBERS - 1))
                yield inside
            finally:
                inside._chunk = None
                if chunk.team is not None:
                    chunk.team.close()
        # After an error they may be half written to, and are given up.
        if chunk.team is not None:
            self._teams.append(chunk.team)
        if chunk.workspace is not None and len(self._workspaces) < MOST_IDLE:
            self._workspaces.append(chunk.workspace)

    @_in_a_chunk
    def embed(self, ids: NDArray[np.int64], offsets: NDArray[np.int64]) -> Float32:
        """Word, position and token type embeddings, then layer norm."""
        rows = len(ids)
        _check("ids", ids, _INT64, (rows,))
        workspace = self._workspace(rows, offsets)
        if rows and not (ids.min() >= 0 and ids.max() < self.config.vocab_size):
            raise InputError(f"token ids go from {ids.min()} to {ids.max()}, wanted 0 to {self.config.vocab_size - 1}")
        if workspace.longest > self.config.max_position_embeddings:
            raise InputError(
                f"a text has {workspace.longest} tokens, wanted at most {self.config.max_position_embeddings}"
            )
        out = np.empty((rows, self.config.hidden_size), np.float32)
        places = positions(offsets)  # [T]
        self._run(workspace, workspace.embed, rows, ids=address(ids), positions=address(places), out=address(out))
        return out

    @_in_a_chunk
    def attention_block(
        self, hidden: Float32, offsets: NDArray[np.int64], sizes: Float32 | None, layer: int, want: str | None
    ) -> tuple[Float32, Float32 | None]:
        """softmax(query key^T / sqrt(D)) value per head and text; then output map, residual, layer norm."""
        rows = len(hidden)
        _check("hidden", hidden, _FLOAT32, (rows, self.config.hidden_size))
        self._check_layer(layer)
        workspace = self._workspace(rows, offsets)
        log_sizes = None
        if sizes is not None:
            _check("sizes", sizes, _FLOAT32, (rows,))
            log_sizes = np.log(sizes)  # [T]
        score = SCORE.get(want, 0)
        out = np.empty((rows, self.config.hidden_size), np.float32)
        self._run(workspace, workspace.attention[layer], rows, address(hidden), address(out), address(log_sizes), score)
        return out, workspace.received[:, :rows].mean(axis=0) if score else None  # [T, H], [T]

    @_in_a_chunk
    def feed_forward_block(self, hidden: Float32, offsets: NDArray[np.int64], layer: int) -> Float32:
        """output(activation(intermediate(x))) + x, then layer norm."""
        rows = len(hidden)
        _check("hidden", hidden, _FLOAT32, (rows, self.config.hidden_size))
        self._check_layer(layer)
        workspace = self._workspace(rows, offsets)
        out = np.empty((rows, self.config.hidden_size), np.float32)
        self._run(workspace, workspace.feed_forward[layer], rows, address(hidden), address(out))
        return out

    @_in_a_chunk
    def select(
        self, hidden: Float32, offsets: NDArray[np.int64], ranking: Ranking
    ) -> tuple[Float32, Selection, Float32 | None]:
        """Scores, ranking, copies, sums and the map that restores in one call of the kernels."""
        rows, texts, width = len(hidden), len(offsets) - 1, self.config.hidden_size
        _check("hidden", hidden, _FLOAT32, (rows, width))
        workspace = self._workspace(rows, offsets, max(rows, texts))
        prepared = self._prepared(ranking)
        if workspace.longest > prepared.longest:
            raise InputError(f"a text has {workspace.longest} tokens, the ranking's tables end at {prepared.longest}")
        if ranking.scores is not None:
            _check("scores", ranking.scores, _FLOAT32, (rows,))
        scores = np.empty(rows, np.float32) if ranking.scores is None else ranking.scores
        out, places = np.empty((rows, width), np.float32), np.empty(rows + texts + 1, np.int64)
        kept, new_offsets = places[:rows], places[rows:]
        at = address(places)
        program, mapped = workspace.pruning(prepared, address(scores), at, at + 8 * rows)
        self._run(workspace, program, rows, address(hidden), address(out))
        stayed, restored = int(new_offsets[-1]), None
        if mapped is not None:
            restored = mapped[:texts].copy() if stayed < rows else np.zeros((texts, width), np.float32)  # [B, H]
            if prepared.bias is not None:
                gone = np.diff(offsets) - np.diff(new_offsets)  # [B]
                restored += gone[:, None].astype(np.float32) * prepared.bias
        return out[:stayed], Selection(scores, kept[:stayed], new_offsets), restored

    def _prepared(self, ranking: Ranking) -> PreparedRanking:
        """A policy's ranking, checked and laid out for the kernels when it is first seen."""
        scorer = ranking.scorer if ranking.scores is None else None
        if scorer is None and ranking.scores is None:
            raise InputError("a ranking has neither scores nor a scorer, wanted one of them")
        tables = scorer, ranking.least, ranking.budgets, ranking.restore
        key = *map(id, tables), ranking.prefix, ranking.suffix
        known = self._rankings.get(key)
        if known is None:
            if len(self._rankings) >= PRUNINGS:
                self._rankings.clear()
            kept = replace(ranking, scores=None, scorer=scorer)  # with it the tables, and so their ids
            known = self._rankings[key] = self._prepare(kept)
        return known

    def _prepare(self, ranking: Ranking) -> PreparedRanking:
        width, restore, bias = self.config.hidden_size, None, None
        if ranking.scorer is not None:
            _check("scorer", ranking.scorer.weight, _FLOAT32, (1, width))
        _check("least", ranking.least, _INT64, (len(ranking.least),))
        if ranking.budgets is not None:
            _check("budgets", ranking.budgets, _FLOAT32, (len(ranking.least),))
        if ranking.restore is not None:
            _check("restore", ranking.restore.weight, _FLOAT32, (width, width))
            _check("restore", ranking.restore.bias, _FLOAT32, (width,))
            no_bias = np.zeros(width, np.float32)
            restore = pack_linears(self.kernels.level, Linear(ranking.restore.weight, no_bias))
            bias = ranking.restore.bias if ranking.restore.bias.any() else None
        return PreparedRanking(ranking, len(ranking.least) - 1, restore, bias)

    def _run(
        self,
        workspace: Workspace,
        program: Program,
        rows: int,
        hidden: int = 0,
        out: int = 0,
        log_sizes: int = 0,
        score: int = 0,
        ids: int = 0,
        positions: int = 0,
    ) -> None:
        """Run the steps on arrays that were checked; the numbers are their addresses."""
        workspace.describe(rows, ids, positions, hidden, out, log_sizes, score)
        team = None if self._chunk is None else self._chunk.team
        if team is None:
            self.kernels.run(program.address, program.count, 0, 0)
        else:
            team.run(program)

    def _workspace(self, rows: int, offsets: NDArray[np.int64], room: int = 0) -> Workspace:
        """That of the chunk, with room for so many rows, or more, told where the texts begin."""
        room = max(rows, room)
        chunk = self._chunk or _Chunk()
        workspace = chunk.workspace
        if workspace is None:
            with suppress(IndexError):
                workspace = self._workspaces.pop()
        if workspace is None or workspace.rows < room:
            workspace = Workspace(self._model, max(LEAST_ROWS, 1 << (room - 1).bit_length()), MOST_MEMBERS)
        chunk.workspace = workspace
        _check("offsets", offsets, _INT64, (len(offsets),))
        if offsets.tobytes() != workspace.offsets or offsets[-1] != rows:
            lengths = np.diff(offsets)
            if not (len(offsets) and offsets[0] == 0 and offsets[-1] == rows and (lengths >= 0).all()):
                raise InputError(f"offsets are {offsets.tolist()}, wanted to rise from 0 to {rows}, the number of rows")
            workspace.place_texts(offsets, lengths)
        return workspace

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.num_layers:
            raise InputError(f"layer is {layer}, wanted 0 to {self.num_layers - 1}")

    def _open_team(self, assistants: int) -> Team | None:
        """A team whose former assistants have all left, or a new one; None where no assistant comes."""
        team = None
        with suppress(IndexError):
            team = self._teams.pop()
        if team is None or not team.is_free:
            team = Team(self.kernels)
        if not team.open(assistants):
            self._teams.append(team)
            return None
        return team


def _restored(parameters: Parameters) -> CompiledBlocks:
    return CompiledBlocks(parameters, load_kernels())


def _check(name: str, array: NDArray[np.generic], dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise InputError(f"{name} is {array.dtype} {list(array.shape)}, wanted C-contiguous {dtype} {list(shape)}")
