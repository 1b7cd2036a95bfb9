"""Step 2: one layer. Attention mixes the tokens of a text; the feed-forward block then works on each token by itself.

Both blocks end alike: their result is added to what came in (the residual), and layer norm brings each row to one
scale. A layer edits its tokens, it does not replace them: look at how alike a row is before and after a block (cosine).
The feed-forward block widens a token to I numbers and maps them back to H. See how few of them get through GELU.
Try: ReLU, np.maximum(x, 0), in place of GELU; leaving out a residual. The assert tells whether it is still BERT.

T tokens, H hidden size (384), A heads (12), D size of a head (32), I intermediate size (1536)
"""

import math
from importlib import import_module

import numpy as np

from minitrans.backends.reference import ReferenceBlocks
from minitrans.sentences.vectors import similarity_pairwise

step1 = import_module("01_attention")  # a name that begins with a digit cannot stand behind `import`


def linear(x, layer_map):
    """[T, inputs] -> [T, outputs]"""
    return x @ layer_map.weight.T + layer_map.bias  # [T, outputs]


def layer_norm(x, norm):
    """Every row gets mean 0 and variance 1, then a learned scale and shift for each column: [T, H] -> [T, H]"""
    centered = x - x.mean(axis=-1, keepdims=True)  # [T, H]
    return centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-12) * norm.weight + norm.bias  # [T, H]


def gelu(x):
    """x times the share of a normal distribution that lies below x: large x stay, negative ones end near 0."""
    return x * 0.5 * (1 + np.vectorize(math.erf, otypes=[np.float32])(x / math.sqrt(2)))  # [T, I]


def attention_block(x, layer, A):
    """[T, H] -> [T, H], and the weights [A, T, T]"""
    query, key, value = (step1.split_heads(linear(x, m), A) for m in (layer.query, layer.key, layer.value))  # [A, T, D]
    weights, means = step1.attend(query, key, value)  # [A, T, T], [A, T, D]
    context = means.transpose(1, 0, 2).reshape(x.shape)  # [T, H]: the heads side by side again
    return layer_norm(x + linear(context, layer.attention_output), layer.attention_norm), weights


def feed_forward_block(x, layer):
    """[T, H] -> [T, H]"""
    inner = gelu(linear(x, layer.intermediate))  # [T, I]
    return layer_norm(x + linear(inner, layer.output), layer.output_norm)  # [T, H]


if __name__ == "__main__":
    tokenizer, parameters = step1.load()
    blocks, difference = ReferenceBlocks(parameters), 0.0
    ids = np.array(tokenizer.encode([step1.TEXT]).ids[0])  # [T]
    offsets = np.array([0, len(ids)])  # where each text of a batch begins, and the end; here there is one
    x = blocks.embed(ids, offsets)  # [T, H]
    print("         attention block   feed-forward block   above 0.2 after GELU")
    for number, layer in enumerate(parameters.layers):
        mixed, _ = attention_block(x, layer, parameters.config.num_attention_heads)  # [T, H]
        out = feed_forward_block(mixed, layer)  # [T, H]
        first, second = (similarity_pairwise(*pair, "cosine").mean() for pair in ((x, mixed), (mixed, out)))
        through = np.mean(gelu(linear(mixed, layer.intermediate)) > 0.2)
        print(f"layer {number} {first:17.3f} {second:20.3f} {through:22.0%}")
        theirs, _ = blocks.attention_block(x, offsets, None, number, None)  # [T, H]
        errors = mixed - theirs, out - blocks.feed_forward_block(mixed, offsets, number)  # [T, H] each
        x, difference = out, max(difference, np.abs(errors).max())
    print(f"largest difference to the reference backend, any block: {difference:.1e}")
    assert difference < 1e-5, difference

# Prints:
#          attention block   feed-forward block   above 0.2 after GELU
# layer 0             0.878                0.929                    11%
# layer 1             0.925                0.915                     9%
# layer 2             0.900                0.895                     9%
# layer 3             0.901                0.878                    11%
# layer 4             0.909                0.897                    12%
# layer 5             0.915                0.722                    12%
# largest difference to the reference backend, any block: 1.9e-06
