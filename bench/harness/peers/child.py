"""Peak memory of one row, in a process of its own: `python child.py '{"method": …}'` prints one line of JSON."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(job: dict[str, Any]) -> list[int]:
    """Bytes above the loaded weights at the highest point of one call, a shape after the other.

    Args:
        job: method, shapes, dtype, samples, length and threads.
    """
    import torch

    from harness.batches import make_batch
    from harness.memory import resident_peak_above
    from harness.peers.peer import PEERS
    from harness.shapes import SHAPES, build

    torch.set_num_threads(job["threads"])
    cpu = torch.device("cpu")
    peaks = []
    for shape in job["shapes"]:
        model = build(SHAPES[shape], cpu, getattr(torch, job["dtype"]))
        vocabulary = model.config.vocab_size
        few = make_batch(2, min(5, job["length"]), vocabulary, cpu, n_groups=1)
        batch = make_batch(job["samples"], job["length"], vocabulary, cpu, n_groups=1)
        with PEERS[job["method"]].open(model, 1) as session:
            session.step(few)  # what the libraries load when they first run is not the batch's
            gc.collect()
            peaks.append(resident_peak_above(lambda session=session, batch=batch: session.step(batch)))
        del model, session
        gc.collect()
    return peaks


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
