"""Step 1: attention. Every token of a text looks at all of them and takes a weighted mean of what they offer.

A token is a row of numbers, its hidden state. Three linear maps make of it a query (what the token looks for), a key
(what it is found by) and a value (what it passes on). Query i times key j, over sqrt(D), says how much i wants of j;
softmax makes weights of that. A head does this on its own D columns, so that 12 heads look for 12 different things.
Look at: what "ordered" takes. Head 1 finds what was ordered, the parcel; head 3 when, Monday and morning; head 2 the
token before it, whatever that is; head 0 nothing much, it takes a bit of everything, as "the" does in head 1.
Try: another TEXT; HEAD = 4, where "on" finds Monday and Monday the morning; attend() without the division by sqrt(D).

T tokens, H hidden size (384), A heads (12), D size of a head (H / A = 32)
"""

import numpy as np

from minitrans.backends.reference import ReferenceBlocks
from minitrans.hub.resolve import resolve
from minitrans.models.quantization import with_precision
from minitrans.models.tokenization.tokenizer import Tokenizer
from minitrans.models.weights import load_parameters

TEXT, HEAD, WORD, OTHERS = "where is the parcel that I ordered on Monday morning?", 1, "ordered", [0, 2, 3]


def load():
    """The bundled model: its tokenizer, and its weights as float32."""
    parameters = with_precision(load_parameters(resolve(None)), "float32")
    return Tokenizer.from_folder(resolve(None), parameters.config), parameters


def softmax(x):
    """exp(x) / sum(exp(x)) over the last axis: numbers above 0 that sum to 1."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))  # [.., T]; the shift cancels out, and exp() cannot overflow
    return e / e.sum(axis=-1, keepdims=True)  # [.., T]


def attend(query, key, value):
    """[.., T, D] each -> weights [.., T, T], row i: what token i takes from every token; their means [.., T, D]."""
    weights = softmax(query @ np.swapaxes(key, -1, -2) / query.shape[-1] ** 0.5)  # [.., T, T]
    return weights, weights @ value  # [.., T, T], [.., T, D]


def split_heads(x, A):
    """The first D columns are the first head's, and so on: [T, H] -> [A, T, D]"""
    return x.reshape(len(x), A, -1).transpose(1, 0, 2)  # [A, T, D]


if __name__ == "__main__":
    tokenizer, parameters = load()
    ids = tokenizer.encode([TEXT]).ids[0]  # [T]
    tokens, layer, A = tokenizer.tokens(ids), parameters.layers[0], parameters.config.num_attention_heads
    hidden = ReferenceBlocks(parameters).embed(np.array(ids), np.array([0, len(ids)]))  # [T, H]; written out in step 3
    query, key, value = (hidden @ m.weight.T + m.bias for m in (layer.query, layer.key, layer.value))  # [T, H] each
    weights, _ = attend(*(np.split(x, A, axis=1)[HEAD] for x in (query, key, value)))  # [T, T]: from D columns of each
    every, _ = attend(*(split_heads(x, A) for x in (query, key, value)))  # [A, T, T]: all heads at once
    assert np.allclose(every[HEAD], weights, atol=1e-6)  # the same arithmetic with one more axis
    print(f"{f'head {HEAD}':>9}" + "".join(f"{token:>8}" for token in tokens))
    names = [*tokens, repr(WORD), *(f"head {head}" for head in OTHERS)]
    for name, row in zip(names, [*weights, [], *every[OTHERS, tokens.index(WORD)]], strict=True):
        print(f"{name:>9}" + "".join(f"{weight:8.2f}" for weight in row))

# Prints:
#    head 1   [CLS]   where      is     the  parcel    that       i ordered      on  monday morning       ?   [SEP]
#     [CLS]    0.50    0.03    0.04    0.03    0.05    0.03    0.02    0.02    0.04    0.03    0.03    0.07    0.10
#     where    0.10    0.05    0.04    0.07    0.08    0.11    0.11    0.06    0.05    0.18    0.08    0.04    0.04
#        is    0.17    0.06    0.04    0.07    0.07    0.05    0.07    0.11    0.03    0.16    0.07    0.06    0.04
#       the    0.22    0.04    0.06    0.04    0.08    0.05    0.08    0.09    0.05    0.11    0.08    0.05    0.06
#    parcel    0.17    0.22    0.05    0.05    0.06    0.08    0.04    0.01    0.08    0.04    0.02    0.06    0.11
#      that    0.11    0.04    0.04    0.04    0.15    0.04    0.08    0.15    0.04    0.15    0.10    0.05    0.03
#         i    0.07    0.01    0.02    0.04    0.36    0.02    0.01    0.15    0.02    0.16    0.11    0.02    0.01
#   ordered    0.08    0.01    0.02    0.03    0.50    0.04    0.01    0.20    0.02    0.01    0.01    0.02    0.04
#        on    0.17    0.06    0.05    0.06    0.09    0.03    0.06    0.13    0.04    0.11    0.11    0.04    0.06
#    monday    0.19    0.01    0.06    0.05    0.09    0.03    0.02    0.09    0.05    0.12    0.15    0.04    0.11
#   morning    0.16    0.02    0.06    0.08    0.09    0.05    0.10    0.06    0.06    0.05    0.08    0.08    0.12
#         ?    0.21    0.02    0.05    0.08    0.08    0.05    0.03    0.11    0.03    0.14    0.10    0.04    0.04
#     [SEP]    0.21    0.02    0.05    0.07    0.11    0.04    0.08    0.12    0.03    0.11    0.08    0.04    0.04
# 'ordered'
#    head 0    0.18    0.09    0.07    0.02    0.16    0.07    0.05    0.12    0.05    0.04    0.04    0.05    0.05
#    head 2    0.00    0.00    0.00    0.00    0.00    0.00    1.00    0.00    0.00    0.00    0.00    0.00    0.00
#    head 3    0.01    0.02    0.14    0.01    0.10    0.03    0.03    0.03    0.02    0.32    0.24    0.04    0.02
