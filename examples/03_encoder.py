"""Step 3: the whole encoder. Text -> token ids -> a row of numbers each -> six layers -> the mean row: the embedding.

The first rows come from tables: a row for the token, one for its position, one for the type of text (here always 0).
They are added and normalised, and the layer of step 2 is applied six times. The mean over the tokens, scaled to
length 1, is the embedding; the cosine of two embeddings says how alike the two texts are.

Look at: the cosines; and whether all this is right: stored/encoder.safetensors holds what another program, BertModel of
transformers in float64, gave for the same weights (stored/make.py). All layers are compared with it, in 8 columns.
Try: positions that begin at 1; the layers in another order; tanh in step 2's GELU. See at which layer numbers part.

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
            print(f"{text:<26}", *tokenizer.tokens(ids))
    print("\ncosines")
    for text, row in zip(texts, np.array(vectors) @ np.array(vectors).T, strict=True):
        print(f"{text:<26}" + "".join(f"{value:7.3f}" for value in row))
    *layers, vector = np.max(differences, axis=0)
    print("\nlargest difference to transformers, layer by layer " + " ".join(f"{value:.0e}" for value in layers))
    print(f"largest difference to transformers, of an embedding {vector:.0e}")
    assert max(*layers, vector) < 1e-5

# Prints:
# where is my parcel?        [CLS] where is my parcel ? [SEP]
# my order has not arrived   [CLS] my order has not arrived [SEP]
# play some jazz             [CLS] play some jazz [SEP]
#
# cosines
# where is my parcel?         1.000  0.466  0.041
# my order has not arrived    0.466  1.000  0.069
# play some jazz              0.041  0.069  1.000
#
# largest difference to transformers, layer by layer 1e-07 7e-07 8e-07 8e-07 1e-06 9e-07 1e-06
# largest difference to transformers, of an embedding 1e-07
