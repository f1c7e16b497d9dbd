"""`evaluate`: accuracy with and without neurons."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from culnig_fast.cli.app import app
from culnig_fast.cli.options import (
    Action,
    BatchTokens,
    Data,
    Device,
    Dtype,
    Files,
    Json,
    Model,
    Overwrite,
    Quiet,
    SkipUnusable,
    Split,
    Task,
    TensorParallel,
    Topics,
    Trust,
    check_results,
    load_divided,
    open_task,
    report,
)
from culnig_fast.errors import CulnigError


@app.command(
    epilog="Example: culnig-fast evaluate demo --data demo --split test --neurons general.json --out suppressed.jsonl"
)
def evaluate(
    model: Model,
    task: Task = "blend",
    data: Data = None,
    topics: Topics = None,
    file: Files = None,
    split: Split = "test",
    neurons: Annotated[Optional[Path], typer.Option(help="Neuron set to intervene on.")] = None,
    action: Annotated[Action, typer.Option(help="What to do to the neurons.")] = Action.suppress,
    out: Annotated[Optional[Path], typer.Option(help="Results, a row a question (.jsonl or .csv).")] = None,
    against: Annotated[Optional[Path], typer.Option(help="Earlier results (.jsonl) to compare with.")] = None,
    batch_tokens: BatchTokens = None,
    device: Device = None,
    dtype: Dtype = "auto",
    tensor_parallel: TensorParallel = False,
    skip_unusable: SkipUnusable = False,
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure accuracy, with or without neurons, and compare with an earlier run.

    A benchmark with points of its own (worldvaluesbench) is measured by these.
    """
    if out is not None:
        check_results(out, overwrite)
    opened = open_task(task, data, topics, file)
    if opened.generates:
        raise CulnigError(f"{task} is answered in free text; use culnig-fast answer")
    import numpy as np

    from culnig_fast import masking
    from culnig_fast.evaluation import Evaluation, compare
    from culnig_fast.evaluation import evaluate as run_evaluation
    from culnig_fast.neuron_sets import NeuronSet
    from culnig_fast.running.distributed import joined

    chosen = NeuronSet.load(neurons) if neurons is not None else NeuronSet.empty()
    earlier = Evaluation.load(against) if against is not None else None
    intervene = masking.suppress if action is Action.suppress else masking.enhance
    with joined() as world:
        if not world.alone and not tensor_parallel:
            raise CulnigError("evaluate runs in one process, or under torchrun with --tensor-parallel")
        loaded, tokenizer = load_divided(model, dtype, device, trust_remote_code, tensor_parallel, world)
        questions = opened.questions(split, tokenizer)
        with intervene(loaded, chosen):
            result = run_evaluation(
                loaded,
                tokenizer,
                questions,
                batch_tokens=batch_tokens,
                on_unusable="skip" if skip_unusable else "error",
                progress=not quiet and world.rank == 0,
            )
        if out is not None and world.rank == 0:
            result.save(out, overwrite)
        world.gather("saved", True)
    if world.rank > 0:
        return
    points, groups = opened.scores(result), np.array(result.groups, dtype=object)
    summary: dict[str, Any] = {
        "accuracy": 100 * result.accuracy,
        "points": float(points.mean()),
        "questions": len(result.ids),
        "neurons": len(chosen),
        "groups": {name: float(points[groups == name].mean()) for name in dict.fromkeys(result.groups)},
        "left_out": list(result.unusable),
    }
    lines = [f"{name:20s} {value:6.2f}" for name, value in summary["groups"].items()]
    lines.append(f"{'all':20s} {summary['points']:6.2f}  ({summary['questions']:,} questions)")
    if earlier is not None:
        test = compare(result, earlier, opened.scores)
        summary["against"] = test
        lines.append(
            f"against {against}: {test['difference']:+.2f} points "
            f"(95 % interval {test['low']:+.2f} … {test['high']:+.2f}, one-sided p {test['p_value']:.4f})"
        )
    report(as_json, summary, "\n".join(lines))
