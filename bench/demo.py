"""The embedded model's whole run, timed, and what it finds.

python bench/demo.py --json demo.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness.environment import environment

from culnig_fast.analysis.frames import load_frame
from culnig_fast.analysis.instances import mean_positive_share


def run(folder: Path) -> dict[str, Any]:
    """`culnig-fast demo` in a process of its own; JSON-ready figures."""
    command = [sys.executable, "-m", "culnig_fast.cli", "demo", "--out", str(folder / "demo"), "--json"]
    summary = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    frames = {path.stem: load_frame(path) for path in sorted((folder / "demo/analysis").glob("*.csv"))}
    return {
        "seconds": summary["seconds"],
        "tables": {
            table["name"]: table["rows"] for table in summary["tables"] if table["name"] in ("main", "ablation")
        },
        "neurons_by_layer": frames["layers"].query("set == 'general'").groupby("layer")["neurons"].sum().tolist(),
        "positive_share": {
            name: mean_positive_share(frames[key], "general")
            for name, key in (("max", "instances"), ("sum", "instances-sum"))
        },
        "stability": {
            "jaccard": float(frames["stability-resamples"]["jaccard"].mean()),
            "by_chance": float(frames["stability-resamples"]["expected"].mean()),
        },
        "kin": frames["kin-recovery"].to_dict("records"),
        "modules": json.loads(frames["modules"].drop(columns="parameters").to_json(orient="records")),
        "report_bytes": (folder / "demo/report.html").stat().st_size,
    }


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(Path(folder))
    value = {"environment": environment(torch.device("cpu")), **figures}
    print(json.dumps(value, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
