"""The compiled library: how it is built, whether it fits this machine, and how it is loaded."""
