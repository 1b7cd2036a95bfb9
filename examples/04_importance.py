"""Step 4: which tokens matter. A token that no other token looks at can go without much loss (arXiv 2408.11799).

The importance of token j is the attention that it receives, averaged over all heads and all tokens that look:

    importance[j] = 1 / (A T) * sum over heads a and tokens i of weights[a, i, j]

The quantile q is the share to give up: of T tokens max(s, T - floor(q T)) stay, the most important ones, in their old
order; of two alike the earlier one. Texts of up to s = 8 tokens are left alone. `minitrans explain "..."` shows these
scores for any text (with int8 they differ in the third digit), and the page of its --html lets one move q.

What a token is worth can also be measured: take it out and see how far the embedding moves (the shift, 1 - cosine).
That takes T more runs, and attention costs next to nothing. Between them lies the policy "balanced": from a token's
hidden state a linear map guesses the logarithm of its shift (docs/pruning.md, minitrans/adaptation/fitting.py).

Look at: [CLS], with more than half of all attention, for a head's weights sum to 1 even where it finds nothing; how
well attention does, and where not: "the" receives as much of it as "morning", whose shift is far larger.
Try: LAYER = 0, where attention thinks much of [SEP] and the shift does not; another TEXT in step 1; least = 2.

T tokens, H hidden size (384), A heads (12)
"""

import math
from importlib import import_module

import numpy as np

from minitrans import PruningPolicy, SentenceEncoder

step1, step2, step3 = (import_module(name) for name in ("01_attention", "02_layer", "03_encoder"))
LAYER, QUANTILES = 2, (0.1, 0.3, 0.5)


def kept(scores, quantile, least=8):
    """Scores [T] -> which tokens stay, ascending: [T']"""
    T = len(scores)
    count = min(T, max(least, T - math.floor(quantile * T + 1e-9)))  # 0.29 * 100 is 28.999..., 29 is meant
    best_first = np.argsort(-scores, kind="stable")  # [T]; stable: the earlier of two alike stays before the later
    return np.sort(best_first[:count])  # [T']


def finish(mixed, parameters):
    """What comes out of LAYER's attention block [T', H] -> the embedding [H]"""
    hidden = step2.feed_forward_block(mixed, parameters.layers[LAYER])  # [T', H]
    for layer in parameters.layers[LAYER + 1 :]:
        mixed, _ = step2.attention_block(hidden, layer, parameters.config.num_attention_heads)  # [T', H]
        hidden = step2.feed_forward_block(mixed, layer)  # [T', H]
    return step3.pool(hidden)


if __name__ == "__main__":
    tokenizer, parameters = step1.load()
    ids = np.array(tokenizer.encode([step1.TEXT]).ids[0])  # [T]
    hidden = step3.hidden_states(ids, parameters)[LAYER]  # [T, H]: what comes into the layer
    mixed, weights = step2.attention_block(hidden, parameters.layers[LAYER], parameters.config.num_attention_heads)
    importance = weights.mean(axis=(0, 1))  # [T], from [A, T, T]; the sum is 1
    without = [finish(np.delete(mixed, j, axis=0), parameters) for j in range(len(ids))]  # T of [H]
    shifts = 1 - np.array(without) @ finish(mixed, parameters)  # [T]
    print(f"{'layer ' + str(LAYER):<11}" + "".join(f"{token:>8}" for token in tokenizer.tokens(ids.tolist())))
    for name, scores in {"attention": importance, "shift": shifts}.items():
        print(f"{name:<11}" + "".join(f"{score:8.3f}" for score in scores))
        for quantile in QUANTILES:
            marks = ("stays" if j in kept(scores, quantile) else "-" for j in range(len(ids)))
            print(f"  q = {quantile:<5}" + "".join(f"{mark:>8}" for mark in marks))

    encoder = SentenceEncoder(precision="float32", backend="reference")
    for quantile in QUANTILES:
        theirs = encoder.pruned_tokens([step1.TEXT], pruning=PruningPolicy(layer=LAYER, quantile=quantile))[0].kept
        assert np.array_equal(np.flatnonzero(theirs), kept(importance, quantile))

# Prints:
# layer 2       [CLS]   where      is     the  parcel    that       i ordered      on  monday morning       ?   [SEP]
# attention     0.580   0.047   0.026   0.032   0.064   0.025   0.033   0.070   0.016   0.034   0.031   0.030   0.013
#   q = 0.1     stays   stays   stays   stays   stays   stays   stays   stays   stays   stays   stays   stays       -
#   q = 0.3     stays   stays   stays   stays   stays       -   stays   stays       -   stays   stays   stays       -
#   q = 0.5     stays   stays       -   stays   stays       -   stays   stays       -   stays   stays       -       -
# shift         0.140   0.045   0.005   0.001   0.090   0.002   0.013   0.034   0.001   0.033   0.015   0.002   0.001
#   q = 0.1     stays   stays   stays   stays   stays   stays   stays   stays       -   stays   stays   stays   stays
#   q = 0.3     stays   stays   stays       -   stays   stays   stays   stays       -   stays   stays   stays       -
#   q = 0.5     stays   stays   stays       -   stays       -   stays   stays       -   stays   stays       -       -
