"""`info` and `bake`: what a model holds, and a model with an intervention in its weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from culnig_fast.cli.app import app
from culnig_fast.cli.options import (
    Action,
    Device,
    Dtype,
    Json,
    Model,
    Trust,
    load_model_and_tokenizer,
    report,
)
from culnig_fast.files import check_output


@app.command(epilog="Example: culnig-fast bake demo --neurons general.json --out suppressed-model")
def bake(
    model: Model,
    neurons: Annotated[Path, typer.Option(help="Neuron set.")],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write; must not exist.")],
    action: Annotated[Action, typer.Option(help="What to do to the neurons.")] = Action.suppress,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write an intervention into the weights and save an ordinary checkpoint."""
    check_output(out, overwrite=False)
    loaded, tokenizer = load_model_and_tokenizer(model, dtype, device, trust_remote_code)
    from culnig_fast.files import atomic_folder
    from culnig_fast.masking import bake as bake_weights
    from culnig_fast.models import processor_files
    from culnig_fast.neuron_sets import NeuronSet

    chosen = NeuronSet.load(neurons)
    further = processor_files(model)
    edited = bake_weights(loaded, chosen, 0.0 if action is Action.suppress else 2.0, in_place=True)
    with atomic_folder(out) as temporary:
        edited.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for file in further:
            shutil.copyfile(file, temporary / file.name)
    done = {Action.suppress: "suppressed", Action.enhance: "enhanced"}[action]
    report(as_json, {"out": str(out), "neurons": len(chosen)}, f"{out}: {len(chosen):,} neurons {done}")


@app.command(epilog="Example: culnig-fast info demo")
def info(model: Model, device: Device = "cpu", trust_remote_code: Trust = False, as_json: Json = False) -> None:
    """Show which neurons discovery sees in a model, and which layers run fused."""
    loaded, _ = load_model_and_tokenizer(model, "auto", device, trust_remote_code)
    from culnig_fast.architecture import discover
    from culnig_fast.attributor import Attributor

    architecture = discover(loaded)
    with Attributor(architecture) as attributor:
        summary = {**architecture.describe(), "fusion": attributor.fusion.describe()}
    lines = [f"{summary['model']}: {summary['layers']} layers ({summary['layer_class']}), {summary['dtype']}"]
    widest = max(18, *(len(site["module_name"]) for site in summary["sites"]))
    lines += [
        f"  {site['module_name']:{widest}s} {site['width']:>7,} a layer  {site['total']:>11,} in all  {site['where']}"
        for site in summary["sites"]
    ]
    lines.append(f"  {summary['neurons']:,} neurons are scored unless asked otherwise")
    lines.append(f"  fused: {len(summary['fusion']['fused'])} of {summary['layers']} layers")
    lines += [f"  on taps: {len(layers)}, {why}" for why, layers in summary["fusion"]["taps"].items()]
    report(as_json, summary, "\n".join(lines))
