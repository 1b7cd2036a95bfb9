"""The tokenizer of a model folder: its files, their limits, and texts to ids."""
