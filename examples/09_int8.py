"""Step 9: int8. Bytes in place of floats: a quarter of the memory, and instructions that multiply 64 pairs at once.

A row of weights becomes whole numbers from -127 to 127 and one scale. A token becomes bytes from 0 to 255, with a scale
and a zero point of its own, so that its result does not depend on other tokens (minitrans/models/quantization.py):

    scale = (high - low) / 255    zero = rint(-low / scale)    q = rint(x / scale) + zero
    y = (sum over k of (q[k] - zero) * w[k]) * scale * weight_scale + bias

The sum is one of whole numbers, so it is exact in any order: all that is lost, is lost in rounding x and w.
Look at: the row of four numbers by hand; how errors of 1 % in every map add up to a cosine of 0.999 in the end.
Try, without the assert: 4 bits, 15 for 255 and 7 for 127; half of the range, x.max() / 2 for x.max().

T tokens, K inputs and N outputs of a map
"""

from importlib import import_module

import numpy as np

from minitrans import SentenceEncoder
from minitrans.backends.products import prepare
from minitrans.models.quantization import quantize_linear

step1, step2, step3 = (import_module(name) for name in ("01_attention", "02_layer", "03_encoder"))


def quantize_weights(w):
    """[N, K] -> int8 [N, K], scale [N]"""
    scale = np.abs(w).max(axis=-1) / np.float32(127)  # [N]
    return np.rint(w / scale[:, None]).astype(np.int8), scale


def quantize_tokens(x):
    """[T, K] -> uint8 [T, K], scale [T], zero [T]"""
    low, high = np.minimum(x.min(axis=-1), 0), np.maximum(x.max(axis=-1), 0)  # [T] each; 0 stays 0 exactly
    scale = (high - low) / np.float32(255)  # [T]
    zero = np.rint(-low / scale)  # [T]
    q = np.clip(np.rint(x / scale[:, None]) + zero[:, None], 0, 255)  # [T, K]
    return q.astype(np.uint8), scale, zero.astype(np.int32)


def whole_product(q, zero, w):
    """uint8 [T, K], int32 [T], int8 [N, K] -> int32 [T, N]"""
    return (q.astype(np.int32) - zero[:, None]) @ w.T.astype(np.int32)


if __name__ == "__main__":
    x, w = np.array([[0.7, -1.2, 2.1, 0.4]], np.float32), np.array([[0.2, -0.6, 0.1, 0.4]], np.float32)  # [1, 4] each
    (q, scale, zero), (whole, weight_scale) = quantize_tokens(x), quantize_weights(w)
    for name, row in {"x": x[0], "q": q[0], "q - zero": q[0] - zero, "w": w[0], "w in int8": whole[0]}.items():
        print(f"{name:<10}" + "".join(f"{number:7.3g}" for number in row))
    total = whole_product(q, zero, whole)  # [1, 1]
    y = (total * scale * weight_scale).item()
    print(f"{total.item()} * {scale[0]:.5f} * {weight_scale[0]:.7f} = {y:.4f}; in floats {(x @ w.T).item():.4f}")

    tokenizer, parameters = step1.load()
    x = step3.embed(np.array(tokenizer.encode([step1.TEXT]).ids[0]), parameters)  # [T, K]
    q, scale, zero = quantize_tokens(x)  # [T, K], [T], [T]
    for name in ("query", "value"):
        linear = getattr(parameters.layers[0], name)
        (w, weight_scale), theirs = quantize_weights(linear.weight), quantize_linear(linear)  # [N, K], [N], -
        total, exact = whole_product(q, zero, w), step2.linear(x, linear)  # [T, N] each
        assert np.array_equal(total, prepare(theirs).accumulate(q, zero))  # the package's sums, to the last bit
        error = np.linalg.norm(total * scale[:, None] * weight_scale + linear.bias - exact) / np.linalg.norm(exact)
        print(f"{name}: {w.nbytes + weight_scale.nbytes} bytes in place of {linear.weight.nbytes}, error {error:.1%}")
    a, b = (SentenceEncoder(precision=p, backend="reference").encode(step1.TEXT) for p in ("float32", "int8"))  # [K]
    print(f"embedding: cosine of float32 and int8 {a @ b:.3f}")

# Prints:
# x             0.7   -1.2    2.1    0.4
# q             147      0    255    124
# q - zero       54    -93    162     31
# w             0.2   -0.6    0.1    0.4
# w in int8      42   -127     21     85
# 20116 * 0.01294 * 0.0047244 = 1.2299; in floats 1.2300
# query: 148992 bytes in place of 589824, error 0.9%
# value: 148992 bytes in place of 589824, error 0.9%
# embedding: cosine of float32 and int8 0.999
