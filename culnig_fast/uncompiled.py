"""A model that was compiled is run as it is written: compiled code looks at no hook."""

from __future__ import annotations

import contextlib

import torch

from culnig_fast.process_wide import ProcessWide

_eager = ProcessWide(lambda: torch.compiler.set_stance("force_eager"))


def uncompiled() -> contextlib.AbstractContextManager[None]:
    """Inside the block `torch.compile` is without effect, as torch's stance `force_eager` says."""
    return _eager
