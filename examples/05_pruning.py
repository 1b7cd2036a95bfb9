"""Step 5: pruning inside the layer loop. At one layer, between its two blocks, the rows that matter least are removed.

There is no padding and no mask: a token is a row, and a row that is gone costs nothing in all that follows. The blocks
used here are the package's own (compiled, where they can be); minitrans/encoder/forward.py is this loop with all its
options.

Look at: work saved beside time saved. The earlier the layer the more is saved, and the less do the scores know: see how
far the embedding moves (cosine to the unpruned one).
Try: other POLICIES; the shortest texts, [:8]; precision="int8", which is faster and gains about the same share.

B texts, T tokens of one of them, T' those that are left, H hidden size (384), I intermediate size (1536)
"""

import statistics
import time
from importlib import import_module
from pathlib import Path

import numpy as np

from minitrans import PruningPolicy, SentenceEncoder
from minitrans.data.files import read_examples

step3, step4 = import_module("03_encoder"), import_module("04_importance")
POLICIES = ((0, 0.0), (0, 0.3), (2, 0.3), (0, 0.5), (2, 0.5), (4, 0.5))  # layer, quantile; the first prunes nothing


def forward(blocks, ids, prune_at, quantile):
    """Token ids [T] -> hidden [T', H]"""
    hidden = blocks.embed(ids, np.array([0, len(ids)]))  # [T, H]
    for layer in range(blocks.num_layers):
        offsets = np.array([0, len(hidden)])  # where each text of a batch begins, and the end; here there is one text
        want = "attention" if layer == prune_at else None  # the scores of step 4
        hidden, scores = blocks.attention_block(hidden, offsets, None, layer, want)  # [T, H], [T]
        if layer == prune_at:
            hidden = hidden[step4.kept(scores, quantile)]  # [T', H]: this is all there is to it
        hidden = blocks.feed_forward_block(hidden, np.array([0, len(hidden)]), layer)  # [T', H]
    return hidden


def multiply_adds(T, prune_at, quantile, layers=6, H=384):
    """Of a text of T tokens. A row goes through 4 maps of H x H in an attention block, then 2 of H x I, I = 4 H."""
    left = len(step4.kept(np.zeros(T), quantile))  # T'
    attended = [T] * (prune_at + 1) + [left] * (layers - prune_at - 1)  # rows in each layer's attention block
    fed_forward = [T] * prune_at + [left] * (layers - prune_at)  # rows in its feed-forward block
    pairs = sum(2 * H * n * n for n in attended)  # H for a pair of tokens in the logits, and H in the means
    return pairs + sum(4 * H * H * n for n in attended) + sum(8 * H * H * n for n in fed_forward)


if __name__ == "__main__":
    encoder = SentenceEncoder(precision="float32")
    texts = sorted(read_examples(Path(__file__).parent / "data" / "test.csv").texts, key=len)[-8:]
    batch = [np.array(ids) for ids in encoder.tokenizer.encode(texts).ids]  # [T] each
    seconds, found = {policy: [] for policy in POLICIES}, {}
    with encoder.blocks.session():
        for _ in range(3):  # in turn, so that what disturbs the machine disturbs all of them
            for policy in POLICIES:
                start = time.perf_counter()
                found[policy] = [forward(encoder.blocks, ids, *policy) for ids in batch]
                seconds[policy].append((time.perf_counter() - start) / len(batch))
    vectors = {policy: np.array([step3.pool(hidden) for hidden in found[policy]]) for policy in POLICIES}  # [B, H]
    work = {policy: sum(multiply_adds(len(ids), *policy) for ids in batch) for policy in POLICIES}
    print("layer  quantile  rows left  multiply-adds  cosine  worst      time")
    for policy in POLICIES:
        left, took = np.mean([len(hidden) for hidden in found[policy]]), statistics.median(seconds[policy]) * 1e3
        cosine, share = np.sum(vectors[policy] * vectors[0, 0.0], axis=1), work[policy] / work[0, 0.0]  # [B], -
        row = f"{policy[0]:5} {policy[1]:9} {left:10.1f} {share:14.1%} {cosine.mean():7.3f} {cosine.min():6.3f}"
        print(f"{row} {took:9.2f} ms")
    theirs = encoder.encode(texts, pruning=PruningPolicy(layer=2, quantile=0.3), normalize_embeddings=True)  # [B, H]
    assert np.allclose(vectors[2, 0.3], theirs, atol=1e-5)

# Prints:
# layer  quantile  rows left  multiply-adds  cosine  worst      time
#     0       0.0       70.4         100.0%   1.000  1.000     15.89 ms
#     0       0.3       49.6          71.7%   0.927  0.865     13.81 ms
#     2       0.3       49.6          81.8%   0.979  0.943     13.94 ms
#     0       0.5       35.4          52.6%   0.870  0.758     10.58 ms
#     2       0.5       35.4          69.4%   0.906  0.874     12.62 ms
#     4       0.5       35.4          86.2%   0.977  0.963     14.13 ms
