"""minitrans: a small CPU sentence encoder. BERT embeddings in NumPy, native token pruning, few-shot intents."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minitrans.classifier import FewShotClassifier
    from minitrans.errors import MinitransError, TruncationWarning
    from minitrans.hub import pull
    from minitrans.model import SentenceEncoder
    from minitrans.policy import PruningPolicy
    from minitrans.quantization import quantize_folder

__version__ = "0.1.0"
__all__ = [
    "FewShotClassifier",
    "MinitransError",
    "PruningPolicy",
    "SentenceEncoder",
    "TruncationWarning",
    "__version__",
    "pull",
    "quantize_folder",
]

_HOME = {
    "FewShotClassifier": "minitrans.classifier",
    "MinitransError": "minitrans.errors",
    "PruningPolicy": "minitrans.policy",
    "SentenceEncoder": "minitrans.model",
    "TruncationWarning": "minitrans.errors",
    "pull": "minitrans.hub",
    "quantize_folder": "minitrans.quantization",
}


def __getattr__(name: str) -> object:
    # Names load on first use, so that `import minitrans` costs next to nothing.
    if name not in _HOME:
        raise AttributeError(f"module 'minitrans' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
