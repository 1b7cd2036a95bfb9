"""The contract of a backend: three blocks over packed rows. The layer loop is in forward.py and nowhere else."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

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
        """Take out rows as pruning.select defines: [T, H] -> [T', H], which they are, sums [B, H] of the others."""
        ...

    def project(self, x: Float32, weight: Float32) -> Float32:
        """x @ weight.T in float32, whatever the precision of the model: [B, H], [H, H] -> [B, H].

        A row's result depends on that row alone, bit for bit. ``weight`` must not change afterwards.
        """
        ...
