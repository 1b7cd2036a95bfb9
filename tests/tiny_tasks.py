"""Made-up intent data sets with the words of the random models."""

import random

import random_models

from minitrans import PruningPolicy
from minitrans.data.files import Examples
from minitrans.data.tasks import Task

FILLERS = random_models.WORDS[:60]
TOPICS = [random_models.WORDS[begin : begin + 6] for begin in range(60, 114, 6)]
WORDS = {
    "card": ["my card is lost", "card stolen", "get a new card", "cash machine kept card", "card number", "pay card"],
    "time": ["what time is it", "set alarm", "call today", "time tomorrow", "turn alarm off", "alarm at night"],
    "send": ["send money", "transfer money", "send an email", "message my bank", "transfer to account", "send cash"],
}
PRUNED = PruningPolicy(min_tokens=2, quantile=0.5, layer=0)


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


def word_task(name="tiny", out_of_scope=(), words=WORDS):
    train = [(text, label) for label, texts in words.items() for text in texts[:4]]
    test = [(text, label) for label, texts in words.items() for text in texts[4:]]
    splits = {"train": train, "test": test}
    examples = {
        split: Examples(*(list(column) for column in zip(*rows, strict=True))) for split, rows in splits.items()
    }
    return Task(name, examples, {"test": list(out_of_scope)} if out_of_scope else {}, "made up")
