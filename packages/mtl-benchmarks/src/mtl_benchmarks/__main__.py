"""``python -m mtl_benchmarks``, and ``torchrun -m mtl_benchmarks``: the command ``mtl-bench``."""

from mtl_benchmarks.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
