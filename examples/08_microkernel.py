"""Step 8: why a kernel is fast. One matrix product, c = a b, from three loops in Python to a tile held in registers.

Vector instructions, on 4 to 16 numbers at once, are one half of the way. Register blocking is the other: h rows x 2
vectors of c stay in registers while k runs through the depth, so that a step loads h numbers of a, 2 vectors of b and
nothing of c for its 2 h vector operations. The taller the tile, the more work there is for each load.
Look at: the same loops interpreted and compiled; how the rate grows with h until the registers are full: 32 in AVX-512,
where the output below comes from, 16 in AVX2. Try: other sizes, other heights that divide M, MINITRANS_LEVEL=avx2.
"""

import timeit
from importlib.util import find_spec

import numpy as np

from minitrans.backends.blas import single_threaded_blas
from minitrans.kernels.library.processor import choose_level

M, K, N = 96, 384, 384  # rows of a (the tokens), numbers in each of them, columns of b
A, B = (np.random.default_rng(seed).standard_normal((n, 384), np.float32) for seed, n in enumerate((M, K)))


def three_loops(a, b):
    """c[i, j] = sum over k of a[i, k] b[k, j]. With j innermost, b and c are read along their rows."""
    c = np.zeros((a.shape[0], b.shape[1]), np.float32)  # [M, N]
    for i in range(a.shape[0]):
        for k in range(a.shape[1]):
            for j in range(b.shape[1]):
                c[i, j] += a[i, k] * b[k, j]
    return c


def tiled(height):
    """Loops around the package's own tile (minitrans/kernels/vector/tiles.py); b is cut into panels of its width."""
    from minitrans.kernels.vector.tiles import float32_tile  # needs Numba

    level = choose_level()  # the best instruction set that there is here
    width, tile = level.panel, float32_tile(level, height)  # width: the numbers in 2 vectors
    panels = np.ascontiguousarray(B.reshape(K, -1, width).transpose(1, 0, 2))  # [N / width, K, width]
    c = np.empty((N // width, M, width), np.float32)

    @numba.njit
    def loop(a, b, c):  # addresses; a number takes 4 bytes
        for p in range(N // width):
            for i in range(0, M, height):
                tile(a + 4 * K * i, 4 * K, b + 4 * K * width * p, 4 * width, K, c + 4 * width * (M * p + i))

    return lambda: (loop(A.ctypes.data, panels.ctypes.data, c.ctypes.data), c.transpose(1, 0, 2))[1]


def measure(name, product, runs=20):
    """Check it, then time it: two operations, a product and a sum, for each i, j and k."""
    c = product().reshape(-1, N)  # [M or fewer, N]
    assert np.allclose(c, A[: len(c)].astype(np.float64) @ B, atol=1e-3), name
    print(f"{name:<29} {2e-9 * c.size * K / min(timeit.repeat(product, number=1, repeat=runs)):8.3f} GFLOP/s")


if __name__ == "__main__":
    measure("Python, three loops", lambda: three_loops(A[:2], B), runs=2)
    measure("NumPy, outer products", lambda: sum(A[:, k, None] * B[k] for k in range(K)))
    with single_threaded_blas():
        measure("NumPy, a @ b, one core", lambda: A @ B)
    if find_spec("numba") is None:
        raise SystemExit(print("Numba is not installed: pip install 'minitrans[jit]' for the rest"))
    import numba

    compiled = numba.njit(three_loops)
    measure("Numba, the same three loops", lambda: compiled(A, B))
    for height in (1, 4, 12, 16):
        measure(f"Numba, tile of {height} x 2 vectors", tiled(height))

# Prints:
# Python, three loops              0.006 GFLOP/s
# NumPy, outer products            2.650 GFLOP/s
# NumPy, a @ b, one core         125.409 GFLOP/s
# Numba, the same three loops     23.801 GFLOP/s
# Numba, tile of 1 x 2 vectors    47.481 GFLOP/s
# Numba, tile of 4 x 2 vectors   120.910 GFLOP/s
# Numba, tile of 12 x 2 vectors  156.857 GFLOP/s
# Numba, tile of 16 x 2 vectors   75.569 GFLOP/s
