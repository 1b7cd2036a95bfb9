"""Intents from a few examples each: the head over embeddings, the classifier over texts, rejection, saving."""
