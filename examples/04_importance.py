"""Step 4: which tokens matter. A token that no other token looks at can go without much loss (arXiv 2408.11799).

The importance of token j is the attention that it receives, averaged over all heads and all tokens that look:

    importance[j] = 1 / (A T) * sum over heads a and tokens i of weights[a, i, j]

The quantile q is the share to give up: of T tokens max(s, T - floor(q T)) stay, the most important ones, in their old
order; of two alike the earlier one. Texts of up to s = 8 tokens are left alone.

Look at: [CLS], with half of all attention, for a head's weights sum to 1 even where it finds nothing; what goes first.
Try: another LAYER (at 0 the scores are much alike, at 5 little work is left to save); another TEXT; least = 2.

T tokens, H hidden size (384), A heads (12)
"""

import math
from importlib import import_module

import numpy as np

from minitrans import PruningPolicy, SentenceEncoder

step1, step2, step3 = (import_module(name) for name in ("01_attention", "02_layer", "03_encoder"))
TEXT, LAYER = "I would like to know where the parcel is that I ordered from you on Monday", 2
QUANTILES = (0.1, 0.3, 0.5)


def importance(weights):
    """[A, T, T] -> [T]; the scores of a text sum to 1"""
    return weights.mean(axis=(0, 1))  # [T]


def kept(scores, quantile, least=8):
    """Scores [T] -> which tokens stay, ascending: [T']"""
    T = len(scores)
    count = min(T, max(least, T - math.floor(quantile * T + 1e-9)))  # 0.29 * 100 is 28.999..., 29 is meant
    best_first = np.argsort(-scores, kind="stable")  # [T]; stable: the earlier of two alike stays before the later
    return np.sort(best_first[:count])  # [T']


if __name__ == "__main__":
    tokenizer, parameters = step1.load()
    ids = np.array(tokenizer.encode([TEXT]).ids[0])  # [T]
    hidden = step3.hidden_states(ids, parameters)[LAYER]  # [T, H]: what comes into the layer
    _, weights = step2.attention_block(hidden, parameters.layers[LAYER], parameters.config.num_attention_heads)
    scores = importance(weights)  # [T]
    stay = [kept(scores, quantile) for quantile in QUANTILES]  # [T'] each
    print(f"{'layer ' + str(LAYER):>9}  score    q = " + "   ".join(f"{quantile:.1f}" for quantile in QUANTILES))
    for j, token in enumerate(tokenizer.tokens(ids.tolist())):
        marks = "".join(f"{'stays' if j in rows else '-':>6}" for rows in stay)
        print(f"{token:>9} {scores[j]:6.1%} {marks}  {'#' * round(300 * min(scores[j], 0.1))}")  # a bar ends at 10 %
    print("of four alike", kept(np.full(4, 0.25), 0.5, least=1), "stay")

    encoder = SentenceEncoder(precision="float32", backend="reference")
    for quantile, rows in zip(QUANTILES, stay, strict=True):
        policy = PruningPolicy(layer=LAYER, quantile=quantile, min_tokens=8)
        assert np.flatnonzero(encoder.pruned_tokens([TEXT], pruning=policy)[0].kept).tolist() == rows.tolist()

# Prints:
#   layer 2  score    q = 0.1   0.3   0.5
#     [CLS]  49.1%  stays stays stays  ##############################
#         i   2.0%  stays     -     -  ######
#     would   2.1%  stays     -     -  ######
#      like   3.1%  stays stays stays  #########
#        to   1.4%  stays     -     -  ####
#      know   3.9%  stays stays stays  ############
#     where   3.4%  stays stays stays  ##########
#       the   2.5%  stays stays     -  #######
#    parcel   5.7%  stays stays stays  #################
#        is   3.0%  stays stays     -  #########
#      that   2.7%  stays stays     -  ########
#         i   3.1%  stays stays stays  #########
#   ordered   5.4%  stays stays stays  ################
#      from   1.8%  stays     -     -  #####
#       you   3.7%  stays stays stays  ###########
#        on   1.2%      -     -     -  ####
#    monday   3.0%  stays stays stays  #########
#     [SEP]   3.0%  stays stays     -  #########
# of four alike [0 1] stay
