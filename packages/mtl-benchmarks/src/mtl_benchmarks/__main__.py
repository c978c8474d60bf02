"""``python -m mtl_benchmarks`` is ``mtl-bench``; so ``torchrun -m mtl_benchmarks run …`` works."""

from mtl_benchmarks.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
