"""One measurement, in a process of its own: `python child.py '{"folder": …}'` prints one line of JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Score once.

    Args:
        job: folder, tokens, length, vocabulary, batch_tokens, path, threads, recompute, stream_tokens (None in
            memory), and out, where the totals go.

    Returns:
        seconds of scoring (loading the model left out in memory, opening the checkpoint counted when streamed),
        the process's peak resident bytes, and those before the model was touched.
    """
    import numpy as np
    import torch

    from culnig_fast.attribution import attribute
    from culnig_fast.models import load_model, load_tokenizer
    from culnig_fast.streaming.attribution import attribute_streamed
    from harness.memory import resident
    from harness.streaming.checkpoint import make_questions

    torch.set_num_threads(job["threads"])
    questions = make_questions(job["tokens"], job["length"], job["vocabulary"])
    options = {"batch_tokens": job["batch_tokens"], "path": job["path"], "progress": False}
    tokenizer = load_tokenizer(job["folder"])
    before = resident("VmHWM")
    if job["stream_tokens"] is None:
        model, _ = load_model(job["folder"], device="cpu")
        start = time.perf_counter()
        table = attribute(model, tokenizer, questions, recompute=job["recompute"], **options)
    else:
        start = time.perf_counter()
        table = attribute_streamed(
            job["folder"], tokenizer, questions, stream_tokens=job["stream_tokens"], device="cpu", **options
        )
    seconds = time.perf_counter() - start
    np.save(job["out"], table.totals)
    return {
        "seconds": seconds,
        "peak_bytes": resident("VmHWM"),
        "bytes_before": before,
        "fusion": table.metadata["fusion"],
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
