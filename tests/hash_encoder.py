"""A deterministic encoder that needs no model, and examples of three intents for it."""

import zlib

import numpy as np

TEXTS = [
    "where is my card",
    "my card has not arrived",
    "the card is late",
    "cancel my order",
    "please cancel the order i made",
    "i do not want the order any more",
    "what is the weather like",
    "will it rain tomorrow",
    "is it going to be sunny weather",
]
LABELS = ["card_arrival"] * 3 + ["cancelOrder"] * 3 + ["get-weather"] * 3


class HashEncoder:
    """Character trigrams, hashed into unit vectors: deterministic, and like texts lie close together."""

    name_or_path = "hash"
    identity = "ab" * 32
    precision = "float32"
    pruning = None

    def __init__(self, width=48):
        self.width = width
        self.calls = []

    def encode(self, texts):
        self.calls.append(list(texts))
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            padded = f" {text} "
            for i in range(len(padded) - 2):
                row[zlib.crc32(padded[i : i + 3].encode("utf-8", "surrogatepass")) % self.width] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
