"""Step 1: attention. Every token of a text looks at all of them and takes a weighted mean of what they offer.

A token is a row of numbers, its hidden state. Three linear maps make of it a query (what the token looks for), a key
(what it is found by) and a value (what it passes on). Query i times key j, over sqrt(D), says how much i wants of j;
softmax makes weights of that. A head does this on its own D columns, so that 12 heads look for 12 different things.

Look at: head 1, where "arrived" finds out what it is that has not arrived; head 2, which looks at the token before.
Try: another TEXT; another HEAD (9 is curious); attend() without the division by sqrt(D).

T tokens, H hidden size (384), A heads (12), D size of a head (H / A = 32)
"""

import numpy as np

from minitrans.backends.reference import ReferenceBlocks
from minitrans.hub import resolve
from minitrans.quantization import with_precision
from minitrans.tokenizer import Tokenizer
from minitrans.weights import load_parameters

TEXT, HEAD = "my parcel has not arrived", 1


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
    maps = (layer.query, layer.key, layer.value)
    query, key, value = (hidden @ each.weight.T + each.bias for each in maps)  # [T, H] each
    D = query.shape[1] // A
    own = slice(HEAD * D, (HEAD + 1) * D)
    weights, _ = attend(query[:, own], key[:, own], value[:, own])  # [T, T], [T, D]
    every, _ = attend(*(split_heads(x, A) for x in (query, key, value)))  # [A, T, T]: all heads at once
    assert np.allclose(every[HEAD], weights, atol=1e-6)  # the same arithmetic with one more axis
    print(f"{f'head {HEAD}':<17}" + "".join(f"{token:>9}" for token in tokens))
    names = [*tokens, "", *(f"'{tokens[-2]}', head {head}" for head in range(6))]
    for name, row in zip(names, [*weights, [], *every[:6, -2]], strict=True):
        print(f"{name:>17}" + "".join(f"{weight:9.2f}" for weight in row))

# Prints:
# head 1               [CLS]       my   parcel      has      not  arrived    [SEP]
#             [CLS]     0.66     0.05     0.07     0.02     0.03     0.02     0.14
#                my     0.28     0.04     0.23     0.07     0.08     0.18     0.11
#            parcel     0.38     0.07     0.11     0.07     0.08     0.06     0.24
#               has     0.22     0.08     0.24     0.06     0.07     0.29     0.05
#               not     0.21     0.11     0.29     0.06     0.05     0.22     0.06
#           arrived     0.05     0.01     0.86     0.01     0.00     0.05     0.01
#             [SEP]     0.36     0.09     0.16     0.08     0.08     0.16     0.07
#
# 'arrived', head 0     0.55     0.12     0.05     0.07     0.03     0.07     0.10
# 'arrived', head 1     0.05     0.01     0.86     0.01     0.00     0.05     0.01
# 'arrived', head 2     0.00     0.00     0.00     0.00     1.00     0.00     0.00
# 'arrived', head 3     0.02     0.17     0.13     0.28     0.13     0.20     0.06
# 'arrived', head 4     0.25     0.02     0.01     0.07     0.13     0.16     0.35
# 'arrived', head 5     0.07     0.02     0.00     0.51     0.19     0.02     0.19
