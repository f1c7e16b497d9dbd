"""Every shipped configuration, compiled ahead of time for three generations of GPU, with none present."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CAPABILITIES = (80, 90, 100)


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    """One row a launch and capability, from one process that is not in interpreter mode."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_launches.py")
    done = subprocess.run(
        [sys.executable, script, *map(str, CAPABILITIES)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_every_kernel_is_compiled_for_every_capability(compiled: list[dict[str, Any]]) -> None:
    kernels = {
        "actgrad_kernel",
        "accumulate_kernel",
        "gated_act_kernel",
        "gated_act_backward_kernel",
        "rms_norm_kernel",
        "rms_norm_backward_kernel",
        "rotary_kernel",
        "rotary_backward_kernel",
    }
    seen = {(row["kernel"], row["capability"]) for row in compiled}
    assert seen == {(kernel, capability) for kernel in kernels for capability in CAPABILITIES}


def test_nothing_spills(compiled: list[dict[str, Any]]) -> None:
    spilled = [row for row in compiled if row["STACK"] or row["LOCAL"]]
    assert not spilled, [(row["label"], row["capability"], row["STACK"], row["LOCAL"]) for row in spilled]


def test_registers_leave_room_for_other_blocks(compiled: list[dict[str, Any]]) -> None:
    """At 168 registers three blocks of 128 threads share a multiprocessor's 65,536; less hides no latency."""
    crowded = [row for row in compiled if row["REG"] > 168 and "256/256" not in row["label"]]
    assert not crowded, [(row["label"], row["capability"], row["REG"]) for row in crowded]


def test_wide_loads(compiled: list[dict[str, Any]]) -> None:
    """Activations and gradients come 16 bytes at a time."""
    narrow = [
        row
        for row in compiled
        if row["kernel"] != "accumulate_kernel"
        and "smallest" not in row["label"]
        and "ld.global.v4.b32" not in row["global_loads"]
    ]
    assert not narrow, [(row["label"], row["capability"], row["global_loads"]) for row in narrow]


def test_maxima_keep_nan(compiled: list[dict[str, Any]]) -> None:
    """The interpreter's maximum keeps NaN in any case, so only this test sees the flag.

    A sample of one row needs no maximum over rows.
    """
    scored = [row for row in compiled if row["float_maxima"] and "smallest" not in row["label"]]
    kernels = {row["kernel"] for row in scored}
    assert kernels == {"actgrad_kernel", "gated_act_backward_kernel", "rotary_backward_kernel"}
    assert all("max.NaN.f32" in row["float_maxima"] for row in scored)


def test_accumulation_rounds_product_and_sum_apart(compiled: list[dict[str, Any]]) -> None:
    rows = [row for row in compiled if row["kernel"] == "accumulate_kernel"]
    assert [row["fused_double"] for row in rows] == [False] * len(rows)
    assert {row["label"] for row in rows} >= {"accumulate", "accumulate clamped"}


def test_accumulation_waits_for_several_samples_at_once(compiled: list[dict[str, Any]]) -> None:
    """Four samples' scores, and the groups and weights of the four after them."""
    rows = [row for row in compiled if row["label"] in ("accumulate", "accumulate clamped")]
    assert len(rows) == 2 * len(CAPABILITIES)
    few = [row for row in rows if row["loads_together"] < 10]
    assert not few, [(row["label"], row["capability"], row["loads_together"]) for row in few]
