"""What kernels are written in: vectors of each instruction set, tiles of a matrix product, elementary functions."""
