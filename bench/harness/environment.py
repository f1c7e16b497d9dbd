"""What a result must say about where it was made."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "transformers", "captum", "nnsight", "transformer_lens", "culnig_fast")


def source_hash(root: Path = ROOT) -> str:
    """SHA-256 over the sources that decide the fast path's speed: kernels/ and the engine's own."""
    engine = (
        "attention", "attributor", "backend", "batch_scorer", "beginning", "interleaved", "last_position",
        "overwriting", "recompute", "sample_weights", "site_totals", "tap",
    )  # fmt: skip
    files = sorted((root / "kernels").rglob("*.py"))
    files += [root / "culnig_fast" / f"{name}.py" for name in engine]
    for room in ("fused", "mixtures", "streaming"):
        files += sorted((root / "culnig_fast" / room).glob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def environment(device: torch.device) -> dict[str, Any]:
    """JSON-ready facts: hardware, driver, versions, commit, sources, threads, time."""
    return {
        "device": _device_name(device),
        "device_type": device.type,
        "driver": _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if device.type == "cuda"
        else None,
        "cuda": torch.version.cuda,
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
        "commit": _run("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "uncommitted_changes": bool(_run("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")),
        "source_hash": source_hash(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
