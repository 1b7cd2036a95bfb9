"""Step 3: the whole encoder. Text -> token ids -> a row of numbers each -> six layers -> the mean row: the embedding.

The first rows come from tables: a row for the token, one for its position, one for the type of text (here always 0).
They are added and normalised, and the layer of step 2 is applied six times. The mean over the tokens, scaled to
length 1, is the embedding; the cosine of two embeddings says how alike the two texts are.

Look at: the cosines (that of the last two texts is lower in README.md, with int8 and pruning); whether all is right:
stored/encoder.safetensors holds what BertModel of transformers gave in float64 for the same weights, in 8 columns of
each layer (stored/make.py). Try: positions that begin at 1; the layers in another order; tanh in step 2's GELU.

B texts, T tokens of one of them, H hidden size (384)
"""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
from safetensors import safe_open

step1, step2 = import_module("01_attention"), import_module("02_layer")
STORED = Path(__file__).parent / "stored" / "encoder.safetensors"


def embed(ids, parameters):
    """Token ids [T] -> the first hidden states [T, H]"""
    word = parameters.word_embeddings.weight[ids]  # [T, H]
    position = parameters.position_embeddings.weight[: len(ids)]  # [T, H]
    return step2.layer_norm(word + position + parameters.token_type_embeddings.weight[0], parameters.embeddings_norm)


def hidden_states(ids, parameters):
    """Token ids [T] -> hidden [T, H] after the embeddings and after each layer"""
    states = [embed(ids, parameters)]
    for layer in parameters.layers:
        mixed, _ = step2.attention_block(states[-1], layer, parameters.config.num_attention_heads)  # [T, H]
        states.append(step2.feed_forward_block(mixed, layer))
    return states


def pool(hidden):
    """[T, H] -> [H] of length 1"""
    mean = hidden.mean(axis=0)  # [H]
    return mean / np.linalg.norm(mean)


if __name__ == "__main__":
    tokenizer, parameters = step1.load()
    vectors, differences = [], []
    with safe_open(STORED, "np") as stored:
        texts = json.loads(stored.metadata()["record"])["texts"]
        for b, text in enumerate(texts):
            ids = tokenizer.encode([text]).ids[0]  # [T]
            assert ids == stored.get_tensor(f"ids.{b}").tolist()
            states = hidden_states(np.array(ids), parameters)  # 7 of [T, H]
            vectors.append(pool(states[-1]))  # [H]
            errors = np.abs(np.array(states)[..., :8] - stored.get_tensor(f"hidden.{b}")).max(axis=(1, 2))  # [7]
            differences.append([*errors, np.abs(vectors[-1] - stored.get_tensor(f"vector.{b}")).max()])
            print(*tokenizer.tokens(ids))
    print("\ncosines")
    for text, row in zip(texts, np.array(vectors) @ np.array(vectors).T, strict=True):
        print(f"{text:<54}" + "".join(f"{value:7.3f}" for value in row))
    *layers, vector = np.max(differences, axis=0)
    print("\nlargest difference to transformers, layer by layer " + " ".join(f"{value:.0e}" for value in layers))
    print(f"largest difference to transformers, of an embedding {vector:.0e}")
    assert max(*layers, vector) < 1e-5

# Prints:
# [CLS] where is the parcel that i ordered on monday morning ? [SEP]
# [CLS] my order has not arrived [SEP]
# [CLS] play some jazz [SEP]
#
# cosines
# where is the parcel that I ordered on Monday morning?   1.000  0.541 -0.010
# my order has not arrived                                0.541  1.000  0.069
# play some jazz                                         -0.010  0.069  1.000
#
# largest difference to transformers, layer by layer 1e-07 6e-07 1e-06 1e-06 1e-06 9e-07 1e-06
# largest difference to transformers, of an embedding 1e-07
