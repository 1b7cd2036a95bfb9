"""``python -m minitrans.kernels`` builds the library of compiled kernels."""

from minitrans.kernels.library.build import main

if __name__ == "__main__":
    main()
