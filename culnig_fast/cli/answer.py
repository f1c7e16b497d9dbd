"""`answer`: short answers in the model's own words, with and without neurons."""

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
    Split,
    Topics,
    Trust,
    check_results,
    load_model_and_tokenizer,
    open_task,
    report,
)
from culnig_fast.errors import CulnigError


@app.command(epilog="Example: culnig-fast answer MODEL --data BLEnD/data --split all --out answers.jsonl")
def answer(
    model: Model,
    task: Annotated[str, typer.Option(help="A benchmark whose answers are text.")] = "blend_short",
    data: Data = None,
    topics: Topics = None,
    file: Files = None,
    split: Split = "all",
    neurons: Annotated[Optional[Path], typer.Option(help="Neuron set to intervene on.")] = None,
    action: Annotated[Action, typer.Option(help="What to do to the neurons.")] = Action.suppress,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where an answer is cut off.")] = 32,
    limit: Annotated[Optional[int], typer.Option(min=1, help="Ask only so many questions of each country.")] = None,
    out: Annotated[Optional[Path], typer.Option(help="Results, a row a question (.jsonl or .csv).")] = None,
    batch_tokens: BatchTokens = None,
    device: Device = None,
    dtype: Dtype = "auto",
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let the model answer in its own words, and compare with the annotators' answers."""
    if out is not None:
        check_results(out, overwrite)
    loaded_task = open_task(task, data, topics, file)
    if not loaded_task.generates:
        raise CulnigError(f"the answers of task {task} are one token; use evaluate")
    loaded, tokenizer = load_model_and_tokenizer(model, dtype, device, trust_remote_code)
    from culnig_fast import masking
    from culnig_fast.generation import answer as run_answer
    from culnig_fast.neuron_sets import NeuronSet
    from culnig_fast.questions import first_of_groups

    questions = first_of_groups(loaded_task.questions(split, tokenizer), limit)
    chosen = NeuronSet.load(neurons) if neurons is not None else NeuronSet.empty()
    intervene = masking.suppress if action is Action.suppress else masking.enhance
    with intervene(loaded, chosen):
        result = run_answer(
            loaded,
            tokenizer,
            questions,
            loaded_task.score,
            max_new_tokens=max_new_tokens,
            batch_tokens=batch_tokens,
            progress=not quiet,
        )
    if out is not None:
        result.save(out, overwrite)
    summary: dict[str, Any] = {
        "accuracy": 100 * result.accuracy,
        "questions": len(result.ids),
        "neurons": len(chosen),
        "groups": {name: 100 * value for name, value in result.by_group().items()},
        "notes": list(loaded_task.notes()),
    }
    lines = [f"{name:20s} {value:6.2f}" for name, value in summary["groups"].items()]
    lines.append(f"{'all':20s} {summary['accuracy']:6.2f}  ({summary['questions']:,} questions)")
    report(as_json, summary, "\n".join([*lines, *(f"note: {note}" for note in summary["notes"])]))
