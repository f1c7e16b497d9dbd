"""`baseline`: the methods that activation × gradient is argued against."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from culnig_fast.cli.app import app
from culnig_fast.cli.options import (
    BatchTokens,
    Data,
    Device,
    Dtype,
    Json,
    Model,
    Overwrite,
    Quiet,
    Sites,
    SkipUnusable,
    Split,
    Task,
    Topics,
    Trust,
    load_model_and_tokenizer,
    load_questions,
    report,
)
from culnig_fast.errors import CulnigError
from culnig_fast.files import check_output, refuse_existing

baseline_app = typer.Typer(help="Choose neurons in other ways, for comparison.", no_args_is_help=True)
app.add_typer(baseline_app, name="baseline")

Counters = Annotated[Path, typer.Argument(help="Counters that `baseline activations` wrote.")]
Out = Annotated[Path, typer.Option(help="Neuron set to write (.json).")]
Like = Annotated[Path, typer.Option(help="Neuron set: as many neurons of each pool (MLP, attention) are chosen.")]
Share = Annotated[float, typer.Option(help="Part of the pool that is chosen.")]
Percentile = Annotated[float, typer.Option(help="Of all activation probabilities: the bar for being active.")]
Merge = Annotated[Optional[list[str]], typer.Option(help="Put groups together, repeatable: Spanish=Spain,Mexico.")]
Each = Annotated[Optional[Path], typer.Option(help="Folder for each group's own set; must not exist.")]
Pool = Annotated[Optional[list[str]], typer.Option("--site", help="Module to choose from, repeatable; default: gate.")]


@baseline_app.command(
    epilog="Example: culnig-fast baseline activations demo --data demo --split neur --out activations.safetensors"
)
def activations(
    model: Model,
    out: Annotated[Path, typer.Option(help="Counters to write (.safetensors).")],
    task: Task = "blend",
    data: Data = None,
    topics: Topics = None,
    split: Split = "neur",
    site: Sites = None,
    batch_tokens: BatchTokens = None,
    device: Device = None,
    dtype: Dtype = "auto",
    skip_unusable: SkipUnusable = False,
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Count in one forward pass how often and how strongly every neuron is active, group by group."""
    check_output(out, overwrite)
    loaded, tokenizer = load_model_and_tokenizer(model, dtype, device, trust_remote_code)
    from culnig_fast.baselines.activations import count_activations

    table = count_activations(
        loaded,
        tokenizer,
        load_questions(task, data, topics, split, tokenizer),
        sites=site,
        batch_tokens=batch_tokens,
        on_unusable="skip" if skip_unusable else "error",
        progress=not quiet,
    )
    table.metadata.update({"task": task, "split": split})
    table.save(out, overwrite)
    tokens = dict(zip(table.groups, table.tokens.tolist(), strict=True))
    summary = {
        "out": str(out),
        "samples": int(table.counts.sum()),
        "neurons": table.layout.size,
        "tokens": tokens,
        "left_out": table.metadata["unusable"],
    }
    text = f"{out}: {sum(tokens.values()):,} tokens of {len(tokens)} groups, {table.layout.size:,} neurons"
    report(as_json, summary, text)


@baseline_app.command(
    epilog="Example: culnig-fast baseline lape activations.safetensors --merge Spanish=Spain,Mexico --out lape.json"
)
def lape(
    counters: Counters,
    out: Out,
    merge: Merge = None,
    each: Each = None,
    share: Share = 0.01,
    percentile: Percentile = 95.0,
    site: Pool = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Language neurons by activation probability entropy. Groups are languages; --merge makes them of countries."""
    _entropy("lape", counters, out, merge, each, share, percentile, site, None, overwrite, as_json)


@baseline_app.command(
    epilog="Example: culnig-fast baseline cape activations.safetensors --exclude lape.json --out cape.json"
)
def cape(
    counters: Counters,
    out: Out,
    exclude: Annotated[Optional[Path], typer.Option(help="Neuron set left out, e.g. of languages.")] = None,
    merge: Merge = None,
    each: Each = None,
    share: Share = 0.01,
    percentile: Percentile = 95.0,
    site: Pool = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Culture neurons by activation probability entropy. Groups are cultures."""
    _entropy("cape", counters, out, merge, each, share, percentile, site, exclude, overwrite, as_json)


@baseline_app.command(
    epilog="Example: culnig-fast baseline mean-activation activations.safetensors --like general.json --out mean.json"
)
def mean_activation(
    counters: Counters,
    like: Like,
    out: Out,
    control: Annotated[Optional[Path], typer.Option(help="Counters on the control set, to be subtracted.")] = None,
    signed: Annotated[bool, typer.Option("--signed", help="Mean of the activation, not of its magnitude.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """The neurons that are most strongly active on average."""
    from culnig_fast.baselines.activations import ActivationTable
    from culnig_fast.baselines.selecting import select_like
    from culnig_fast.neuron_sets import NeuronSet

    check_output(out, overwrite)
    table = ActivationTable.load(counters).scores(magnitude=not signed)
    less = None if control is None else ActivationTable.load(control).scores(magnitude=not signed)
    chosen = select_like(table, NeuronSet.load(like), control=less, method="mean activation")
    _save(chosen, out, overwrite, as_json)


@baseline_app.command(epilog="Example: culnig-fast baseline weight-norm demo --like general.json --out norm.json")
def weight_norm(
    model: Model,
    like: Like,
    out: Out,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """The neurons with the largest weights."""
    check_output(out, overwrite)
    loaded, _ = load_model_and_tokenizer(model, dtype, device, trust_remote_code)
    from culnig_fast.baselines.selecting import select_like
    from culnig_fast.baselines.weights import weight_norms
    from culnig_fast.neuron_sets import NeuronSet

    wanted = NeuronSet.load(like)
    table = weight_norms(loaded, sorted(set(wanted.module_names)) or None)
    _save(select_like(table, wanted, method="weight norm"), out, overwrite, as_json)


def _entropy(
    method: str,
    counters: Path,
    out: Path,
    merge: list[str] | None,
    each: Path | None,
    share: float,
    percentile: float,
    site: list[str] | None,
    exclude: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    from culnig_fast.baselines.activations import ActivationTable
    from culnig_fast.baselines.entropy import select_by_entropy
    from culnig_fast.files import atomic_folder, file_name
    from culnig_fast.neuron_sets import NeuronSet

    check_output(out, overwrite)
    if each is not None:
        refuse_existing(each, overwrite=False)
    found = select_by_entropy(
        ActivationTable.load(counters).merged(_parts(merge or [])),
        share=share,
        percentile=percentile,
        module_names=site,
        exclude=None if exclude is None else NeuronSet.load(exclude),
        method=method,
    )
    if each is not None:
        with atomic_folder(each) as temporary:
            for name, chosen in found.by_group.items():
                chosen.save(temporary / f"{file_name(name)}.json")
    _save(found.neurons, out, overwrite, as_json)


def _parts(merge: list[str]) -> dict[str, list[str]]:
    parts = {}
    for text in merge:
        name, equals, members = text.partition("=")
        if not (name and equals and members):
            raise CulnigError(f"--merge {text!r} must look like Spanish=Spain,Mexico")
        parts[name] = members.split(",")
    return parts


def _save(chosen: Any, out: Path, overwrite: bool, as_json: bool) -> None:
    chosen.save(out, overwrite)
    lines = [f"{out}: {len(chosen):,} neurons"]
    lines += [f"  {name:20s} {count:,}" for name, count in chosen.info.get("groups", {}).items()]
    report(as_json, {"out": str(out), "neurons": len(chosen), "info": chosen.info}, "\n".join(lines))
