"""A recipe on CPUs that claim to be CUDA: python on_cpu.py RECIPE [ARGUMENT ...]."""

import runpy
import sys

if __name__ == "__main__":
    import stand_in

    stand_in.without_transformer_engine()
    stand_in.install()
    from megatron.core.datasets import utils

    utils.compile_helpers = lambda: None  # the wheel brings them compiled, and no makefile
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
