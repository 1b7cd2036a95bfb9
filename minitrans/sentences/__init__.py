"""From texts to vectors: `SentenceEncoder`, and the one way of a call through batches and threads."""
