"""Made-up intent data sets with the words of the random models."""

import random

import random_models

from minitrans.datasets import Examples, Task

FILLERS = random_models.WORDS[:60]
TOPICS = [random_models.WORDS[begin : begin + 6] for begin in range(60, 114, 6)]


def tiny_rows(seed: int, classes: int = 3, examples: int = 7) -> list[tuple[str, str]]:
    """So many texts of 5 to 12 words for each class, and their labels; two words of a text give its class away."""
    draw = random.Random(seed)
    rows = []
    for label in range(classes):
        topic = TOPICS[(label + seed) % len(TOPICS)]
        for _ in range(examples):
            words = draw.choices(FILLERS, k=draw.randint(3, 10)) + draw.choices(topic, k=2)
            draw.shuffle(words)
            rows.append((" ".join(words), f"{topic[0]}_{topic[1]}"))
    return rows


def tiny_task(name: str, seed: int, classes: int = 3) -> Task:
    """A task with the splits train (4 texts for each class) and test (3 for each class)."""
    rows = tiny_rows(seed, classes)
    parts = {"train": [row for i, row in enumerate(rows) if i % 7 < 4], "test": rows[4::7] + rows[5::7] + rows[6::7]}
    splits = {split: Examples(*(list(column) for column in zip(*part, strict=True))) for split, part in parts.items()}
    return Task(name, splits, {}, "made up")
