"""``python -m mtl_benchmarks``, and ``torchrun -m mtl_benchmarks``: the command ``mtl-bench``."""

import os
import sys

from mtl_benchmarks.cli import main

if __name__ == "__main__":
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # A thread of gloo may still let go of Python objects of the last operation. Were the interpreter wound up
        # meanwhile, it would end that thread within a destructor, and with it, by SIGABRT, a process that is done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)
