"""The embedded model's modules trained on a target it does not master, and on one that it does.

    python bench/finetuning.py --neurons runs/demo/neurons/general.json --json finetune.json

Each comparison is one `culnig-fast finetune` command in a process of its own, timed whole, with the settings below.
With a share of 0.47 top and bottom are two MLPs and two attention blocks each, 46.7 % of the parameters.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from harness.environment import environment

TARGETS = ("membership_long", "membership")
SETTINGS = ("--share", "0.47", "--seeds", "0,1,2", "--steps", "60", "--batch", "16", "--accumulate", "1")
CULTURE = ("--culture", "blend", "--culture", "country_rc")


def main() -> None:
    """Compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neurons", required=True, help="culture-general neurons of the embedded model")
    parser.add_argument("--rate", nargs="+", default=["1e-3"], help="learning rates")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    runs = []
    for target in TARGETS:
        for rate in options.rate:
            with tempfile.TemporaryDirectory() as folder:
                command = ["finetune", "demo", "--target", target, *SETTINGS, "--rate", rate, *CULTURE]
                started = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-m", "culnig_fast.cli", *command, "--neurons", options.neurons, "--out",
                     f"{folder}/out", "--quiet", "--json", "--device", "cpu"],
                    check=True, stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
                seconds = round(time.perf_counter() - started, 1)
            found = json.loads(done.stdout)
            del found["out"], found["done"]
            runs.append({"command": f"culnig-fast {' '.join(command)}", "seconds": seconds, **found})
            for row in found["table"]["rows"]:
                cells = "  ".join(
                    f"{name} {cell['value']:.2f} ± {cell['sd'] or 0:.2f}" for name, cell in row["cells"].items()
                )
                print(f"{target} {rate}  {row['row']}: {cells}", flush=True)
    if options.json:
        record = {"environment": environment(torch.device("cpu")), "comparisons": runs}
        options.json.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
