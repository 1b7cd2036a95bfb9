"""Step 6: intents from a few examples. The encoder stays as it is; only a small classifier on its embeddings is fitted.

The classifier is logistic regression: one row of weights per intent, and softmax of the products is the probability of
each. The name of an intent ("track_parcel" -> "track parcel") counts as one more example of it. A text may also belong
to no intent at all: a score says how near its embedding is to the known ones, and texts too far away are rejected.

Look at: how the accuracy rises with the examples, and what pruning takes from it (one text of the 140 is 0.7 points).
What is rejected is "oos", out of scope; texts about bicycles that belong to no intent are the hard ones to reject.
Try: other POLICIES, layer 0 among them; FewShotClassifier(label_names=False) without the names; keep=0.8.

B texts, N examples, K intents (14), H hidden size (384)
"""

from importlib import import_module
from pathlib import Path

import numpy as np

from minitrans import FewShotClassifier, PruningPolicy, SentenceEncoder
from minitrans.data.files import read_examples
from minitrans.data.tasks import Task, draw

step1 = import_module("01_attention")
SHOTS, DRAWS = (1, 3, 5, 10), 3  # examples of each intent; how often they are drawn anew
POLICIES = {"no pruning": None, "layer 2, q = 0.3": PruningPolicy(layer=2, quantile=0.3)}


def load_splits():
    """The example data, intents of an invented bicycle shop: examples, texts to test on, texts of no intent."""
    return [read_examples(Path(__file__).parent / "data" / f"{name}.csv") for name in ("train", "test", "out_of_scope")]


def embed(encoder, task):
    """Text -> embedding [H], each text of the task once, and the names of its intents"""
    texts = [text for split in task.splits.values() for text in split.texts] + draw(task, 1, 0).class_names
    return dict(zip(texts, encoder.encode(texts), strict=True))


def fit(vectors, few):
    """A classifier that has seen N examples and K names"""
    examples = [vectors[text] for text in few.train.texts]  # [N, H]
    names = [vectors[name] for name in few.class_names]  # [K, H]
    return FewShotClassifier().fit_embeddings(examples, few.train.labels, names)


def accuracy(vectors, few):
    """The share of right answers, having seen few.train, to few.test"""
    answers = fit(vectors, few).predict_embeddings([vectors[text] for text in few.test.texts])  # [B]
    return np.mean(answers == np.array(few.test.labels))


if __name__ == "__main__":
    train, test, beyond = load_splits()
    task = Task("shop", {"train": train, "test": test}, {}, "examples/data")
    encoder = SentenceEncoder(precision="float32")
    print(f"{'examples of each intent':<24}" + "".join(f"{shots:>7}" for shots in SHOTS))
    for name, encoder.pruning in POLICIES.items():
        vectors = embed(encoder, task)
        means = [np.mean([accuracy(vectors, draw(task, shots, seed)) for seed in range(DRAWS)]) for shots in SHOTS]
        print(f"{name:<24}" + "".join(f"{mean:7.1%}" for mean in means))

    classifier = fit(vectors, draw(task, 10, 0)).calibrate_rejection(keep=0.95)  # the last policy: vectors are pruned
    rows = np.array([vectors[text] for text in test.texts])  # [B, H]
    products = rows @ classifier.coef_.T + classifier.intercept_  # [B, K]
    assert np.allclose(step1.softmax(products), classifier.predict_proba_embeddings(rows), atol=1e-5)
    inside, outside = (classifier.predict_embeddings(each) != "oos" for each in (rows, encoder.encode(beyond.texts)))
    print(f"{sum(inside)} of {len(inside)} texts in scope kept, {sum(~outside)} of {len(outside)} others rejected")
    for text in (step1.TEXT, "Who won the football last night?", "How often should I oil a chain in winter?"):
        print(f"{text:<54} {classifier.predict_embeddings([encoder.encode(text)])[0]}")

# Prints:
# examples of each intent       1      3      5     10
# no pruning                70.2%  81.4%  81.9%  90.0%
# layer 2, q = 0.3          69.8%  79.3%  80.5%  87.9%
# 138 of 140 texts in scope kept, 18 of 30 others rejected
# where is the parcel that I ordered on Monday morning?  track_parcel
# Who won the football last night?                       oos
# How often should I oil a chain in winter?              repair_booking
