"""From a folder to a model: its configuration, weights, tokenizer, pooling and prompts, read or refused."""
