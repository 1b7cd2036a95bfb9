"""Checking a model: its files, weights and tokenizer, its numbers, and what other libraries make of it."""
