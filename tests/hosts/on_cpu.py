"""Run a recipe on CPUs that claim to be CUDA: python on_cpu.py RECIPE [ARGUMENT ...]."""

import runpy
import sys

if __name__ == "__main__":
    import stand_in

    stand_in.without_transformer_engine()
    stand_in.install()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
