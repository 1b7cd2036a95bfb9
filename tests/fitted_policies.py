"""Fitted arrays for random models: any finite maps will do, as long as they fit."""

from dataclasses import replace

import numpy as np

from minitrans import PruningPolicy, SentenceEncoder
from minitrans.encoder.fitted import Fitted
from minitrans.models.parameters import Linear


def random_fitted(model: str, width: int, layers=(0, 1, 2), seed: int = 0) -> Fitted:
    """Scorers, restoring maps and turns of layers, for the model of those weights (`Identity.weights`)."""
    random = np.random.default_rng(seed)

    def linear(outputs: int) -> Linear:
        weight = random.standard_normal((outputs, width)) / np.sqrt(width)
        return Linear(weight.astype(np.float32), random.standard_normal(outputs).astype(np.float32))

    turn = Linear(np.float32([[0.4, -0.9, -0.02]]), np.float32([4.1]))
    scorers, restore = {layer: linear(1) for layer in layers}, {layer: linear(width) for layer in layers}
    return Fitted(model, scorers, restore, dict.fromkeys(layers, turn))


def fitted_to(encoder: SentenceEncoder, **fields: object) -> PruningPolicy:
    """A policy with arrays for that encoder."""
    layers = range(encoder.config.num_hidden_layers)
    fitted = random_fitted(encoder.identity.weights, encoder.config.hidden_size, layers)
    return PruningPolicy(fitted=fitted, **fields)


def fitted_to_lengths(encoder: SentenceEncoder, least: int, most: int) -> PruningPolicy:
    """A policy of learned scores that was fitted on texts of so many tokens, as it says."""
    policy = fitted_to(encoder, score="learned", layer=1, min_tokens=4, quantile=0.5)
    return replace(policy, fitted=replace(policy.fitted, lengths=(least, most)))
