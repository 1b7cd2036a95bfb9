"""The exception tree. Every message names the value seen, what was wanted and the remedy.

Each class can be caught as its built-in base class, too.
"""

from __future__ import annotations


class MinitransError(Exception):
    """Base class of every error that minitrans raises on purpose."""


class InputError(MinitransError, ValueError):
    """An argument, text or data file has a value that cannot be used."""


class TruncationError(InputError):
    """A text is longer than ``max_seq_length`` and ``on_truncation="error"`` was asked for."""


class InputTypeError(MinitransError, TypeError):
    """An argument or a text is of the wrong type."""


class ModelError(MinitransError, ValueError):
    """A model folder cannot be used."""


class ConfigError(ModelError):
    """A JSON file of a model folder is missing, broken or contradicts another."""


class UnsupportedModelError(ModelError):
    """The model is of a kind that minitrans does not run."""


class WeightsError(ModelError):
    """A safetensors file is broken, or its tensors do not fit the configuration."""


class TokenizerError(ModelError):
    """The tokenizer is broken, or its ids do not fit the vocabulary."""


class PolicyError(MinitransError, ValueError):
    """A pruning policy is invalid or does not fit the model."""


class ClassifierError(MinitransError, ValueError):
    """A saved classifier is broken or was made with another model."""


class ModelNotFoundError(MinitransError, FileNotFoundError):
    """No model of that name or path is at hand."""


class DownloadError(MinitransError, OSError):
    """Neither the hub nor a mirror could deliver a model."""


class DigestError(MinitransError, ValueError):
    """A file's sha256 digest is not the one that was published for it."""


class WriteError(MinitransError, OSError):
    """A file or folder could not be written: no room, no permission, or something in the way; see ``errno``."""

    def __str__(self) -> str:
        return str(self.args[0])  # not the "[Errno ...] None" of an OSError that has an errno


class BackendError(MinitransError, RuntimeError):
    """The backend asked for cannot run on this machine."""


class NumericalError(MinitransError, ArithmeticError):
    """NaN or infinity appeared in the forward pass."""


class NotFittedError(MinitransError, ValueError, AttributeError):
    """The classifier was used before it was fitted."""


class TruncationWarning(UserWarning):
    """Some texts of a call were longer than ``max_seq_length`` and lost their end."""


class DataWarning(UserWarning):
    """Texts or labels that can be used, but may not be what was meant."""


class PruningWarning(UserWarning):
    """Some texts of a call were pruned at lengths that their policy was not fitted on."""
