"""The study of token pruning for few-shot intents: what docs/study.md reports, computed and written by this package."""
