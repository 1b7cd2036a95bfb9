"""The encoder itself: the layer loop in forward.py, the contract of a backend, packing, pruning and pooling."""
