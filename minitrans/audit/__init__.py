"""Following a text through the encoder, and checking every number of a model."""
