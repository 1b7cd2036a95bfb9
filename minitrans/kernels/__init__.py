"""The compiled kernels: Numba source, and the library that a build makes of it.

Only `library.build` and what it compiles import Numba. A run needs `steps`, `vector.levels` and the rest of `library`.
"""
