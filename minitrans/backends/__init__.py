"""What a backend supplies: three blocks over packed rows. The layer loop is in encoder.py and nowhere else."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from minitrans.errors import BackendError, one_of
from minitrans.parameters import Float32, Parameters
from minitrans.pruning import Ranking, Selection


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


BACKENDS = ("auto", "compiled", "reference")


def check_backend(name: str) -> None:
    """BackendError unless there is a backend of that name."""
    if not isinstance(name, str) or name not in BACKENDS:
        raise BackendError(f"backend is {name!r:.100}, wanted {one_of(BACKENDS)}")


def load_blocks(backend: str, parameters: Parameters) -> Blocks:
    """Prepare a backend for some weights; "auto" takes the fastest that can run here.

    Raises:
        BackendError: no backend of that name, or it cannot run here.
    """
    check_backend(backend)
    why_not = None
    if backend != "reference":
        from minitrans.kernels.loading import load_kernels

        try:
            kernels = load_kernels()
        except BackendError as error:
            if backend == "compiled":
                raise
            why_not = str(error)
        else:
            from minitrans.backends.compiled import CompiledBlocks

            return CompiledBlocks(parameters, kernels)
    from minitrans.backends.reference import ReferenceBlocks

    return ReferenceBlocks(parameters, why_not)
