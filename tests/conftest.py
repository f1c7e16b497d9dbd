"""Settings shared by all tests."""

from __future__ import annotations

import os

import torch

# Triton decides when it is imported whether kernels are interpreted, and some of what the tests import brings it in.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)
