"""Few-shot accuracy on the official splits: python -m benchmarks.accuracy [--data FOLDER] [--markdown]

For each model and data set: accuracy in percent at 1 shot (mean of five seeded draws from train.csv) and on the
official 5- and 10-shot splits; then how close the int8 embeddings of the BANKING77 test set are to the float32 ones.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from minitrans import FewShotClassifier, SentenceEncoder
from minitrans.data.files import Examples, read_examples
from minitrans.evaluation.few_shot import accuracy

MODELS = {"float32": "all-MiniLM-L6-v2", "int8": None}
SETS = {"BANKING77": "banking77", "CLINC150": "clinc150", "HWU64": "hwu64"}
DRAWS = 5


def draw(examples: Examples, shots: int, seed: int) -> Examples:
    """So many examples of each class, chosen by seed."""
    random = np.random.default_rng(seed)
    labels = np.asarray(examples.labels)
    chosen = [i for label in np.unique(labels) for i in random.choice(np.flatnonzero(labels == label), shots, False)]
    return Examples([examples.texts[i] for i in chosen], [examples.labels[i] for i in chosen])


def training_sets(folder: Path) -> dict[str, list[Examples]]:
    """Training sets by number of shots; several of them are averaged."""
    whole = read_examples(folder / "train.csv")
    return {
        "1": [draw(whole, 1, seed) for seed in range(DRAWS)],
        "5": [read_examples(folder / "train_5shot.csv")],
        "10": [read_examples(folder / "train_10shot.csv")],
    }


def evaluate(encoder: SentenceEncoder, folder: Path) -> dict[str, float]:
    """Accuracy on the test split in percent, by number of shots."""
    test = read_examples(folder / "test.csv")
    vectors = encoder.encode(test.texts)  # [B, H]
    results = {}
    for shots, draws in training_sets(folder).items():
        scores = []
        for train in draws:
            classifier = FewShotClassifier(encoder).fit(train.texts, train.labels)
            scores.append(accuracy(test.labels, list(classifier.predict_embeddings(vectors))))
        results[shots] = 100 * float(np.mean(scores))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("MINITRANS_DATA", Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--data", type=Path, default=default, help="folder of the data sets")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    edge, between = ("| ", " | ") if options.markdown else ("", "  ")

    encoders = {name: SentenceEncoder(model) for name, model in MODELS.items()}
    columns = [f"{name} {shots}" for name in SETS for shots in ("1", "5", "10")]
    print(edge + between.join(["weights", *columns]) + edge[::-1])
    if options.markdown:
        print("| --- " * (len(columns) + 1) + "|")
    for name, encoder in encoders.items():
        scores = [score for folder in SETS.values() for score in evaluate(encoder, options.data / folder).values()]
        cells = [f"{s:.1f}".rjust(len(c)) for s, c in zip(scores, columns, strict=True)]
        print(edge + between.join([name.ljust(7), *cells]) + edge[::-1], flush=True)

    texts = read_examples(options.data / "banking77" / "test.csv").texts
    full, small = (encoder.encode(texts, normalize_embeddings=True) for encoder in encoders.values())
    cosine = (full * small).sum(axis=-1)
    print(f"\nint8 against float32, {len(texts)} texts: cosine {cosine.mean():.5f} mean, {cosine.min():.5f} worst")


if __name__ == "__main__":
    main()
