"""The backends: which there are, and which one a model gets. What each supplies is in encoder/blocks.py."""

from __future__ import annotations

from minitrans.encoder.blocks import Blocks
from minitrans.errors import BackendError
from minitrans.models.parameters import Parameters
from minitrans.words import one_of

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
        from minitrans.kernels.library.loading import load_kernels

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
