"""Memory that runs out: by the operating system's limit, and at chosen layers of forward and backward."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from culnig_kernels import native

import culnig_fast as cf
from culnig_fast.cli.options import load_questions
from culnig_fast.models import load_model
from harness.faults._scoring import distance

TITLE = "out of memory, by a limit on the process and at chosen layers: the same totals"

LIMIT = 1e-5
"""Of the largest total: other batches round each sample's float32 scores otherwise (the numeric contract)."""

_BATCH = 16384


def run(folder: Path, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Score undisturbed, then under each limit."""
    model, tokenizer, questions = _prepared(quick)
    whole = cf.attribute(model, tokenizer, questions, batch_tokens=_BATCH, progress=False)
    rows = []
    layers = model.config.num_hidden_layers
    for where in ("forward", "backward", "within a fused layer"):
        with _limited(model, where, layers // 2, _BATCH // 8):
            table = cf.attribute(model, tokenizer, questions, batch_tokens=_BATCH, progress=False)
        rows.append(_row(where, table.metadata["halvings"], distance(table, whole), table.ids == whole.ids))
    for mebibytes in (200,) if quick else (400, 100, 50):
        script = "from harness.faults import memory; memory.under_limit()"
        arguments = [sys.executable, "-c", script, str(mebibytes), str(int(quick))]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(arguments, capture_output=True, text=True, cwd=root, check=False)
        if done.returncode:
            raise RuntimeError(f"under a limit of {mebibytes} MiB: {done.stderr[-500:]}")
        rows.append(_row(f"process limited to {mebibytes} MiB more", *json.loads(done.stdout.splitlines()[-1])))
    for row in rows:
        say(f"{row['where']}: {row['halvings']} halvings, {row['difference']:.1e} of the largest total")
    return {"samples": len(questions), "batch_tokens": _BATCH, "rows": rows, "passed": all(r["passed"] for r in rows)}


def under_limit() -> None:
    """In a process of its own: score with all the memory there is, and with so many MiB more than are in use."""
    import resource

    model, tokenizer, questions = _prepared(sys.argv[2] == "1")
    whole = cf.attribute(model, tokenizer, questions, progress=False)
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[1]) << 20), resource.RLIM_INFINITY))
    table = cf.attribute(model, tokenizer, questions, batch_tokens=4 * _BATCH, progress=False)
    print(json.dumps([table.metadata["halvings"], distance(table, whole), table.ids == whole.ids]))


def _prepared(quick: bool) -> tuple[Any, Any, list[Any]]:
    from culnig_fast.cli.options import quiet_libraries

    quiet_libraries()
    model, tokenizer = load_model("demo", device="cpu", dtype="float32")
    questions = list(load_questions("blend", "demo", None, "neur", tokenizer))
    return model, tokenizer, questions[::4] if quick else questions


def _row(where: str, halvings: int, difference: float, ids_equal: bool) -> dict[str, Any]:
    passed = halvings > 0 and difference <= LIMIT and ids_equal
    return {
        "where": where,
        "halvings": halvings,
        "difference": difference,
        "ids_equal": ids_equal,
        "passed": passed,
    }


@contextlib.contextmanager
def _limited(model: Any, where: str, layer: int, tokens: int) -> Iterator[None]:
    """A layer that fails for more than so many padded tokens."""

    def check(rows: torch.Tensor) -> None:
        if rows.shape[0] * rows.shape[1] > tokens:
            raise RuntimeError("DefaultCPUAllocator: not enough memory (simulated)")

    def on_gradient(module: Any, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if first.requires_grad:
            first.register_hook(check)

    original, module = native.actgrad_reduce, model.model.layers[layer]
    handle = None
    if where == "forward":
        handle = module.register_forward_pre_hook(lambda module, args: check(args[0]))
    elif where == "backward":
        handle = module.register_forward_hook(on_gradient)
    else:
        native.actgrad_reduce = lambda act, *rest: (check(act), original(act, *rest))[1]
    try:
        yield
    finally:
        native.actgrad_reduce = original
        if handle is not None:
            handle.remove()
