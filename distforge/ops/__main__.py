"""``python -m distforge.ops cuda:0 "newton_schulz bfloat16" ...``: hold kernels against the
reference in a process of their own; what is wrong with each is a line of JSON."""

import sys

import torch

from distforge.ops import native
from distforge.ops.device_check import check_here

if __name__ == "__main__":
    native.backend()  # loads the operators
    sys.exit(check_here(torch.device(sys.argv[1]), sys.argv[2:]))
