"""`plan`: what attribution of a model takes, before anything is fetched."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from culnig_fast.cli.app import app
from culnig_fast.cli.options import Json, Sites, quiet_libraries, report
from culnig_fast.errors import CulnigError

if TYPE_CHECKING:
    from culnig_fast.planning.plan import Plan

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


@app.command(
    epilog="Examples: culnig-fast plan gemma-3-27b-it --memory 80GB; "
    "culnig-fast plan path/to/config.json --memory 24GB --flops 80e12 --tokens 4.5e6 --json"
)
def plan(
    model: Annotated[
        str, typer.Argument(help="Checkpoint folder, its config.json, hub id, 'demo', or a preset's model by name.")
    ],
    memory: Annotated[Optional[str], typer.Option(help="Of the card, e.g. 80GB or 24GiB: says what fits.")] = None,
    flops: Annotated[
        Optional[float], typer.Option(help="Operations a second that the card sustains, e.g. 400e12: says how long.")
    ] = None,
    tokens: Annotated[float, typer.Option(help="To be scored in all; the method's data have about 4.5e6.")] = 4.5e6,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a sample.")] = 128,
    groups: Annotated[int, typer.Option(min=1, help="Rows of the table, e.g. countries.")] = 16,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    site: Sites = None,
    as_json: Json = False,
) -> None:
    """Say what attribution of a model takes: neurons, memory, time; from the configuration alone, without weights."""
    room = None if memory is None else _bytes(memory)
    for name, value in (("--flops", flops), ("--tokens", tokens)):
        if value is not None and not 0 < value < 1e30:
            raise CulnigError(f"{name} is {value:g}; give a number above 0")
    quiet_libraries()
    from culnig_fast.planning.plan import plan as make_plan

    made = make_plan(
        model, sites=site, dtype=dtype, groups=groups, memory=room, flops=flops, tokens=tokens, length=length
    )
    report(as_json, made.to_dict(), "\n".join(_lines(made)))


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:[eE][0-9]{1,2})?) ?([KMGT]?I?)B?", text.strip(), re.IGNORECASE)
    if match is None or match[2].upper() not in _UNITS or not float(match[1]):
        raise CulnigError(f"--memory {text} is no size; give e.g. 80GB or 24GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _lines(made: Plan) -> list[str]:
    kept, size = made.activations, made.weights[made.dtype]
    lines = [
        f"{made.model}: {made.layers} layers, {made.parameters:,} weights ({_size(size)} in {made.dtype}, "
        f"{_size(made.layer_weights)} a layer)"
    ]
    width = max(18, *(len(name) for name in made.neurons))
    lines += [
        f"  {name:{width}s} {count // _layers_of(name, made):>7,} a layer  {count:>11,} in all"
        for name, count in made.neurons.items()
    ]
    if made.mixture is not None:
        shared = f", beside a shared one of {made.mixture['shared']:,}" if made.mixture["shared"] else ""
        lines.append(
            f"  {made.mixture['experts']:,} experts of {made.mixture['width']:,} in each of {made.mixture['layers']} "
            f"layers{shared}; a token passes {made.mixture['active']} of them, {made.active_parameters:,} weights of "
            "all layers"
        )
    lines += [
        f"  {made.scored:,} neurons; totals of {made.groups} groups {_size(made.totals)}",
        "kept between forward and backward, for each token:",
        f"  fused layers       {_known(kept.fused)}",
        f"  taps alone         {_known(kept.taps)}",
        f"  layers recomputed  {_known(kept.recomputed)}",
        f"  at work beside it  {_size(kept.working)} and {_size(kept.logits)} of logits a sample",
    ]  # fmt: skip
    if made.fit is not None:
        lines += _fit_lines(made)
    if made.time is not None:
        time = made.time
        lines.append(
            f"{time['tokens']:,.0f} tokens in samples of {time['length']}: {time['operations']:.3g} operations "
            f"({100 * time['attention_share']:.1f} % attention), {_time(time['seconds'])} at {time['flops']:.3g} "
            "a second"
        )
    return lines


def _fit_lines(made: Plan) -> list[str]:
    fit = made.fit or {}
    if not fit["in_memory"] and not fit["stream"]:
        return [f"what a card of {_size(fit['memory'])} holds is not known, as it is not what a token keeps"]
    if fit["in_memory"]:
        names = {"fused": "fused", "taps": "on taps", "recomputed": "recomputed"}
        counts = ", ".join(f"{count:,} {names[key]}" for key, count in fit["in_memory"].items())
        return [f"a card of {_size(fit['memory'])} holds it, with batches of so many tokens: {counts}"]
    stream = fit["stream"]
    return [
        f"a card of {_size(fit['memory'])} does not hold it with one sample's activations: it needs --stream, "
        f"{_size(stream['card'])} on the card for two layers' weights and the totals, "
        f"{_size(stream['host_per_token'])} of host memory for each token of a "
        f"block, {_size(stream['weights_read_per_block'])} of weights read a block"
    ]


def _layers_of(name: str, made: Plan) -> int:
    """Layers that have a module."""
    from culnig_fast.neurons import ATTENTION_MODULES, DENSE_MODULES

    routed = 0 if made.mixture is None else made.mixture["layers"]
    if name in ATTENTION_MODULES:
        return made.layers
    return made.layers - routed if name in DENSE_MODULES else routed


def _known(count: int | None) -> str:
    return "not known: this family does not run without values" if count is None else _size(count)


def _size(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:,.0f} B"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
