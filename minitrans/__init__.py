"""minitrans: a small CPU sentence encoder. BERT embeddings in NumPy, native token pruning, few-shot intents."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minitrans.encoder.policy import PruningPolicy
    from minitrans.errors import MinitransError, TruncationWarning
    from minitrans.fewshot.classifier import FewShotClassifier
    from minitrans.hub.resolve import pull
    from minitrans.models.export import quantize_folder
    from minitrans.sentences.sentence_encoder import SentenceEncoder

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
    "FewShotClassifier": "minitrans.fewshot.classifier",
    "MinitransError": "minitrans.errors",
    "PruningPolicy": "minitrans.encoder.policy",
    "SentenceEncoder": "minitrans.sentences.sentence_encoder",
    "TruncationWarning": "minitrans.errors",
    "pull": "minitrans.hub.resolve",
    "quantize_folder": "minitrans.models.export",
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
