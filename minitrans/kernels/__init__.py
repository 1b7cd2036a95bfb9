"""The compiled kernels: Numba source, and the library that a build makes of it.

Only `build` and what it compiles import Numba; `levels`, `steps` and `library` are all that a run needs.
"""
