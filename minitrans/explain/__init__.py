"""What happened to each token of a text: the trace, and its pages."""
