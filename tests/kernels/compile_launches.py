"""Compiles, with no GPU, what the launchers launch at the shapes of real models; prints what ptxas made of it.

    python compile_launches.py 80 90 100      # compute capabilities; JSON on stdout

Run apart from the tests' process, where Triton may be in interpreter mode: here it must not be.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from culnig_kernels import validate
from culnig_kernels.accumulate import accumulate, accumulate_kernel
from culnig_kernels.actgrad import actgrad_reduce
from culnig_kernels.gated_act import gated_act
from culnig_kernels.gated_act_backward import gated_act_backward
from culnig_kernels.qkv_backward import qkv_backward
from culnig_kernels.rms_norm import rms_norm, rms_norm_backward
from culnig_kernels.rotary import rotary
from culnig_kernels.rotary_backward import rotary_backward
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


def launches() -> Iterator[tuple[str, Callable[[], Any]]]:
    """A label and a call for every configuration that is shipped."""

    def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    lengths, packed = torch.tensor([64, 3]), torch.tensor([0, 64], dtype=torch.int32)
    one, scores = torch.ones(40, dtype=torch.int64), ("gate", "up", "act")
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        wide, narrow = tensor(40, 2, 3584, dtype=dtype), tensor(64, 1024, dtype=dtype)
        yield f"actgrad wide {name}", lambda x=wide: actgrad_reduce(x, x, one)
        yield f"actgrad narrow packed {name}", lambda x=narrow: actgrad_reduce(x, x, cu_seqlens=packed)
        x = tensor(2, 64, 1024, dtype=dtype)
        yield (
            f"gated backward silu {name}",
            lambda x=x: gated_act_backward(x, x, x, lengths, scores=scores),
        )
    kept = tensor(40, 2, dtype=torch.bool).fill_(True)
    yield "actgrad sum", lambda: actgrad_reduce(wide, wide, one, "sum")
    yield "actgrad absmax", lambda: actgrad_reduce(wide, wide, one, "absmax")
    yield "actgrad mean masked", lambda: actgrad_reduce(wide, wide, one, "mean", keep=kept)
    x = tensor(2, 64, 1024)
    for activation in ("gelu_tanh", "gelu", "relu2"):
        yield (
            f"gated backward {activation}",
            lambda a=activation: gated_act_backward(x, x, x, lengths, scores=scores, activation=a),
        )
    yield "gated backward sum", lambda: gated_act_backward(x, x, x, lengths, scores=scores, reduction="sum")
    yield "gated backward unscored", lambda: gated_act_backward(x, x, x)
    yield "gated silu", lambda: gated_act(x)
    yield "gated gelu", lambda: gated_act(x, "gelu")
    totals = tensor(16, 1024, dtype=torch.float64)
    rows, weight, group = x[0].float(), tensor(64, dtype=torch.float64), torch.zeros(64, dtype=torch.int64)
    yield "accumulate", lambda: accumulate(rows, weight, group, totals)
    yield "accumulate clamped", lambda: accumulate(rows, weight, group, totals, True)
    for columns in (4096, 5376, 16384):
        z, w, rstd = tensor(2, columns), tensor(columns), tensor(2, dtype=torch.float32)
        yield f"norm {columns}", lambda z=z, w=w: rms_norm(z, w, 1e-6, residual=z)
        yield (
            f"norm backward {columns}",
            lambda z=z, w=w, r=rstd: rms_norm_backward(z, z, w, r, d_residual=z),
        )
    for head_dim, rotated, normed in ((128, 128, False), (128, 128, True), (256, 256, True), (128, 96, False)):
        q, cos = tensor(2, 64, 4 * head_dim), tensor(64, rotated)
        w = tensor(head_dim) if normed else None
        label = f"{head_dim}/{rotated}{' normed' if normed else ''}"
        yield (
            f"rotary {label}",
            lambda q=q, c=cos, w=w, d=head_dim: rotary(q, c, c, d, weight=w),
        )
        yield (
            f"rotary backward {label}",
            lambda q=q, c=cos, w=w, d=head_dim: rotary_backward(q, q, c, c, d, lengths, weight=w, score=True),
        )
        given = qkv_arguments(head_dim, rotated, normed)
        yield f"qkv backward {label}", lambda given=given: qkv_backward(**given)
    yield "actgrad mixed", lambda: actgrad_reduce(x, x.float(), lengths)
    yield from smallest()


def qkv_arguments(head_dim: int, rotated: int, normed: bool) -> dict[str, Any]:
    """Four heads of queries and two of keys."""
    q, k, qkv = (torch.empty(2, 64, heads * head_dim, dtype=torch.bfloat16) for heads in (4, 2, 8))
    cos = torch.empty(64, rotated, dtype=torch.bfloat16)
    weight = torch.empty(2, head_dim, dtype=torch.bfloat16) if normed else None
    return {
        "qkv": qkv, "d_q": q, "d_k": k, "d_v": k, "cos": cos, "sin": cos, "head_dim": head_dim, "weight": weight,
        "lengths": torch.tensor([64, 3]), "score": True,
    }  # fmt: skip


def smallest() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Launches of single elements: Triton makes constants of arguments that are 1, which is other code."""
    x, lengths, packed = torch.ones(1, 1, 1), torch.tensor([1]), torch.tensor([0, 1])
    head, weight = torch.ones(1, 1, 2).half(), torch.ones(2)
    one = torch.ones(1, dtype=torch.float64)
    yield "smallest actgrad", lambda: actgrad_reduce(x, x, lengths, "max", "zero")
    yield "smallest accumulate", lambda: accumulate(x[0], one, lengths * 0, one[None])
    yield "smallest gated", lambda: gated_act(head)
    yield (
        "smallest gated backward",
        lambda: gated_act_backward(x[0], x[0], x[0], cu_seqlens=packed, scores=("gate",)),
    )
    yield "smallest gated backward unscored", lambda: gated_act_backward(x, x, x)
    yield "smallest norm", lambda: rms_norm(x, torch.ones(1), 1e-6)
    yield "smallest norm backward", lambda: rms_norm_backward(x, x, torch.ones(1), torch.ones(1, 1))
    yield "smallest rotary", lambda: rotary(head, head[0], head[0], 2, weight=weight)
    yield (
        "smallest rotary backward",
        lambda: rotary_backward(head[0], head[0], head[0], head[0], 2, weight=weight, score=True, cu_seqlens=packed),
    )
    yield "smallest rotary backward unscored", lambda: rotary_backward(head, head, head, head, 2)


def recorded(call: Callable[[], Any]) -> tuple[JITFunction, dict[str, Any]]:
    """The kernel that a launcher launches, and the arguments, without launching it."""
    seen: list[tuple[JITFunction, dict[str, Any]]] = []
    run = JITFunction.run
    JITFunction.run = lambda self, *args, grid, warmup, **arguments: seen.append((self, arguments))
    try:
        call()
    finally:
        JITFunction.run = run
    (launch,) = seen
    return launch


def source_of(kernel: JITFunction, arguments: dict[str, Any]) -> ASTSource:
    """What Triton would compile for these arguments: types, constants, and what is a multiple of 16."""
    signature, constants, attributes = {}, {}, {}
    for index, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        value = arguments[name]
        multiple, special = False, isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (special and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], multiple = TYPES[value.dtype], True
        elif isinstance(value, int):
            signature[name], multiple = "i32" if abs(value) < 2**31 else "i64", special and value % 16 == 0
        else:
            signature[name] = "fp32"
        if multiple:
            attributes[index,] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constexprs=constants, attrs=attributes)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack, shared and local memory, as cuobjdump reads them off the binary."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        dump = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", dump.stdout)}
    if found.keys() != {"REG", "STACK", "SHARED", "LOCAL"}:
        raise RuntimeError(f"cuobjdump's report is not understood: {dump.stdout}")
    return found


def loads_together(sass: str) -> int:
    """The most loads of global memory between which nothing is computed in float64."""
    found = re.findall(r"\b(LDG|DADD|DMUL|DFMA)\b", sass)
    return max(len(list(run)) for name, run in itertools.groupby(found) if name == "LDG")


def main() -> None:
    """Compile every launch for every capability asked for."""
    validate.interpreted = lambda: True  # the launchers are to take CPU tensors; nothing runs
    rows = []
    for label, call in launches():
        kernel, arguments = recorded(call)
        options = {name: arguments[name] for name in OPTIONS if name in arguments}
        for capability in map(int, sys.argv[1:]):
            target = GPUTarget("cuda", capability, 32)
            binary = triton.compile(source_of(kernel, arguments), target=target, options=options)
            ptx = binary.asm["ptx"]
            rows.append(
                {
                    "label": label,
                    "kernel": kernel.__name__,
                    "capability": capability,
                    "global_loads": sorted(set(re.findall(r"ld\.global\S*", ptx))),
                    "float_maxima": sorted(set(re.findall(r"max\.\S*f32", ptx))),
                    "fused_double": "DFMA" in binary.asm["sass"] if kernel is accumulate_kernel else None,
                    "loads_together": loads_together(binary.asm["sass"]) if kernel is accumulate_kernel else None,
                    **resources(binary.asm["cubin"]),
                }
            )
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
