"""The contract of a backend: blocks over packed rows, and a tap that shows what goes into them and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minitrans.encoder.selection import Ranking, Selection
from minitrans.models.parameters import Float32


class Blocks(Protocol):
    """The contract between the layer loop and a backend.

    All arrays are C-contiguous. A row's result may depend on the rows of its own text only, bit for bit: not on the
    texts beside it, their number or their order.
    """

    name: str
    num_layers: int

    def info(self) -> dict[str, str | None]:
        """How the kernels in use were built, and for which instruction set."""
        ...

    def session(self) -> AbstractContextManager[None]:
        """Entered around the work of a call; may overlap with others."""
        ...

    def chunk(self, rows: int, helpers: int) -> AbstractContextManager[Blocks]:
        """Entered around the blocks of a batch, or of some, one after the other. Gives the blocks to use meanwhile.

        They hold memory of their own, and are for whoever entered: whatever else encodes at the same time, in another
        thread or in the middle of a block (a signal handler), has others.

        Args:
            rows: T of the batch, or about as many.
            helpers: processors that would be idle meanwhile.
        """
        ...

    def embed(self, ids: NDArray[np.int64], offsets: NDArray[np.int64]) -> Float32:
        """Token ids [T], offsets [B + 1] -> hidden [T, H]: the three embeddings added, then normalised."""
        ...

    def attention_block(
        self, hidden: Float32, offsets: NDArray[np.int64], sizes: Float32 | None, layer: int, want: str | None
    ) -> tuple[Float32, Float32 | None]:
        """Self-attention, residual and layer norm.

        Args:
            hidden: [T, H].
            offsets: [B + 1].
            sizes: [T] tokens that each row stands for, None for one each; log(size) is added to a key's logits.
            layer: 0-based.
            want: the score to gather, "attention" or "attention_value"; None and any other gather nothing.

        Returns:
            hidden [T, H], and scores [T] if they were wanted, else None.
        """
        ...

    def feed_forward_block(self, hidden: Float32, offsets: NDArray[np.int64], layer: int) -> Float32:
        """Two linear maps with the activation between them, residual and layer norm: [T, H] -> [T, H]."""
        ...

    def select(
        self, hidden: Float32, offsets: NDArray[np.int64], ranking: Ranking
    ) -> tuple[Float32, Selection, Float32 | None]:
        """Take out rows as `minitrans.encoder.selection.select` defines.

        Maps are float32, whatever the precision of the model; the ranking's must not change afterwards.

        Returns:
            what is left of hidden [T', H], which rows that are, and what the others are expected to add [B, H].
        """
        ...


Tap: TypeAlias = Callable[[str, tuple[Any, ...], Any], None]  # the name of a block, its arguments and its result


class Tapped:
    """Blocks that show a tap each block that is run. The tap must not change what it is shown.

    Args:
        blocks: a backend's.
        tap: called behind each block, by the thread that runs it.
    """

    def __init__(self, blocks: Blocks, tap: Tap) -> None:
        self.blocks, self.tap = blocks, tap
        self.name, self.num_layers = blocks.name, blocks.num_layers
        self.info, self.session = blocks.info, blocks.session
        self.embed = partial(self._shown, "embed")
        self.attention_block = partial(self._shown, "attention_block")
        self.feed_forward_block = partial(self._shown, "feed_forward_block")
        self.select = partial(self._shown, "select")

    @contextmanager
    def chunk(self, rows: int, helpers: int) -> Iterator[Tapped]:
        """See `Blocks.chunk`."""
        with self.blocks.chunk(rows, helpers) as inside:
            yield Tapped(inside, self.tap)

    def _shown(self, block: str, *arguments: Any) -> Any:
        result = getattr(self.blocks, block)(*arguments)
        self.tap(block, arguments, result)
        return result
