"""`score`: a score table from a model and a benchmark."""

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
    Files,
    Json,
    Model,
    Overwrite,
    Quiet,
    Sites,
    SkipUnusable,
    Split,
    Task,
    TensorParallel,
    Topics,
    Trust,
    load_divided,
    load_questions,
    quiet_libraries,
    report,
)
from culnig_fast.errors import CulnigError
from culnig_fast.files import check_output


@app.command(epilog="Example: culnig-fast score demo --data demo --split neur --out neur.safetensors")
def score(
    model: Model,
    out: Annotated[Path, typer.Option(help="Score table to write (.safetensors).")],
    task: Task = "blend",
    data: Data = None,
    topics: Topics = None,
    file: Files = None,
    split: Split = "neur",
    limit: Annotated[Optional[int], typer.Option(min=1, help="Score only so many questions of each group.")] = None,
    site: Sites = None,
    reduction: Annotated[
        str, typer.Option(help="Over positions: max (the method's), sum, mean, absmax or last.")
    ] = "max",
    positions: Annotated[
        str,
        typer.Option(help="Tokens that this goes over: all, last, or content (the message without its chat template)."),
    ] = "all",
    control: Annotated[
        bool, typer.Option("--control", help="The questions are a control set, as those of split 'control' are.")
    ] = False,
    clamp_control: Annotated[bool, typer.Option(help="In a control set, count negative scores as 0.")] = True,
    path: Annotated[str, typer.Option(help="auto fuses layers where it can, fused insists, taps fuses none.")] = "auto",
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Run each layer again in backward: less memory, more time.")
    ] = False,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Leave the weights on disk, score layer by layer: for models that do not fit."),
    ] = False,
    stream_tokens: Annotated[
        Optional[int], typer.Option(min=1, help="With --stream, padded tokens a block; left out: what memory holds.")
    ] = None,
    tensor_parallel: TensorParallel = False,
    padding: Annotated[str, typer.Option(help="exclude, or zero as the published program.")] = "exclude",
    batch_tokens: BatchTokens = None,
    batch_size: Annotated[Optional[int], typer.Option(min=1, help="Fixed batches in file order instead.")] = None,
    memory_share: Annotated[
        float, typer.Option(help="Of a GPU's free memory, what batches may use when --batch-tokens is left out.")
    ] = 0.8,
    as_authors: Annotated[
        bool,
        typer.Option(
            "--as-authors",
            help="The published program's choices: 16 questions a batch in file order, padding counted as 0, "
            "control scores clamped, N by unique id.",
        ),
    ] = False,
    device: Device = None,
    dtype: Dtype = "auto",
    skip_unusable: SkipUnusable = False,
    checkpoint_seconds: Annotated[float, typer.Option(help="Least time between two checkpoints.")] = 60.0,
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score every neuron of a model on a benchmark.

    Progress is kept beside the output every minute, on SIGINT and on SIGTERM; the same command continues from there.
    With --stream it is kept between blocks. Under torchrun (torchrun --nproc-per-node 2 -m culnig_fast.cli score …) the
    samples are divided among the processes, or with --tensor-parallel the weights of one model.
    """
    check_output(out, overwrite)
    if as_authors:
        from culnig_fast.interop.as_authors import AS_AUTHORS, count_unique_ids

        asked_for = (clamp_control, padding, batch_size, batch_tokens, reduction, positions)
        if asked_for != (True, "exclude", None, None, "max", "all"):
            raise CulnigError(
                "--as-authors decides about padding, batches, clamping, reduction and positions; leave those out"
            )
        padding, batch_size = AS_AUTHORS["padding"], AS_AUTHORS["batch_size"]
    if stream and recompute:
        raise CulnigError("--stream recomputes every layer by itself; leave out --recompute")
    if stream_tokens is not None and not stream:
        raise CulnigError("--stream-tokens is the size of a block of --stream; add --stream or leave it out")
    options: dict[str, Any] = {
        "sites": site,
        "control": control or split == "control",
        "clamp_control": clamp_control,
        "batch_tokens": batch_tokens,
        "batch_size": batch_size,
        "padding": padding,
        "reduction": reduction,
        "positions": positions,
        "path": path,
        "on_unusable": "skip" if skip_unusable else "error",
        "checkpoint": out.with_name(f"{out.name}.partial"),
        "checkpoint_seconds": checkpoint_seconds,
        "progress": not quiet,
    }
    from culnig_fast.questions import first_of_groups
    from culnig_fast.running.distributed import joined

    with joined() as world:
        if stream:
            if not world.alone:
                raise CulnigError("--stream runs in one process; start it without torchrun")
            if tensor_parallel:
                raise CulnigError("--stream and --tensor-parallel are two ways for one model that does not fit: choose")
            quiet_libraries()
            from culnig_fast.models import load_tokenizer, local_folder
            from culnig_fast.streaming.attribution import attribute_streamed

            folder = local_folder(model, trust_remote_code=trust_remote_code)
            tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
            questions = first_of_groups(load_questions(task, data, topics, split, tokenizer, file), limit)
            table = attribute_streamed(
                folder,
                tokenizer,
                questions,
                stream_tokens=stream_tokens,
                dtype=dtype,
                device=device,
                trust_remote_code=trust_remote_code,
                **options,
            )
        else:
            from culnig_fast.attribution import attribute

            loaded, tokenizer = load_divided(model, dtype, device, trust_remote_code, tensor_parallel, world)
            questions = first_of_groups(load_questions(task, data, topics, split, tokenizer, file), limit)
            table = attribute(
                loaded, tokenizer, questions, recompute=recompute, memory_share=memory_share, world=world, **options
            )
        if as_authors:
            table = count_unique_ids(table, questions, task)
        table.metadata.update({"task": task, "split": split, **({} if limit is None else {"limit": limit})})
        world.save(table, out, overwrite)
    if world.rank == 0:
        _report(table, out, as_json)


def _report(table: Any, out: Path, as_json: bool) -> None:
    mean = float(table.probability.sum() / len(table.ids))
    summary = {
        "out": str(out),
        "samples": table.n_samples,
        "neurons": table.layout.size,
        "groups": dict(zip(table.groups, table.counts.tolist(), strict=True)),
        "mean_probability": mean,
        "left_out": table.metadata["unusable"],
        "underflow": table.metadata["underflow"],
        "halvings": table.metadata["halvings"],
    }
    left_out = f", {len(summary['left_out'])} left out" if summary["left_out"] else ""
    lost = f"; {len(summary['underflow'])} samples count nothing, their P is 0" if summary["underflow"] else ""
    report(
        as_json,
        summary,
        f"{out}: {table.n_samples:,} samples{left_out} of {len(table.groups)} groups, "
        f"{table.layout.size:,} neurons, mean P {mean:.3f}{lost}",
    )
