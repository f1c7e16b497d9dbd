"""`finetune`: train the modules that hold the chosen neurons, or those that do not, and compare."""

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
    Quiet,
    SkipUnusable,
    Topics,
    Trust,
    load_model_and_tokenizer,
    open_task,
    report,
)
from culnig_fast.errors import CulnigError


@app.command(
    epilog="Examples: culnig-fast finetune demo --target membership_long --neurons general.json --share 0.47 "
    "--seeds 0,1,2 --out runs/finetune; culnig-fast finetune google/gemma-3-12b-it --target qnli "
    "--neurons general.json --modules top --modules bottom --dtype float32 --bf16 --out runs/gemma-qnli"
)
def finetune(
    model: Model,
    target: Annotated[str, typer.Option(help="Benchmark to train on; 'culnig-fast tasks' lists them.")],
    neurons: Annotated[Path, typer.Option(help="Neuron set by whose density modules are ranked.")],
    out: Annotated[Path, typer.Option(help="Folder; a new one, or that of the same comparison to continue it.")],
    modules: Annotated[
        Optional[list[str]], typer.Option(help="top, bottom or all, repeatable; left out: one after the other.")
    ] = None,
    share: Annotated[float, typer.Option(help="Most of the model's parameters that top and bottom take.")] = 0.1,
    seeds: Annotated[str, typer.Option(help="Seeds of each choice's trainings, e.g. 0,1,2.")] = "0",
    split: Annotated[Optional[str], typer.Option(help="Split to train on; left out: train, else neur.")] = None,
    data: Data = None,
    topics: Topics = None,
    file: Files = None,
    culture: Annotated[
        Optional[list[str]],
        typer.Option(help="Benchmark evaluated beside, repeatable: NAME or NAME=DATA,FILE=PATH; default: blend."),
    ] = None,
    lora: Annotated[Optional[int], typer.Option(help="Train low-rank updates of this rank instead.")] = None,
    lora_alpha: Annotated[Optional[int], typer.Option(help="Their alpha; left out: twice the rank.")] = None,
    rate: Annotated[float, typer.Option(help="Learning rate, constant after the warm-up.")] = 3e-5,
    epochs: Annotated[float, typer.Option(help="Passes over the training questions.")] = 1.0,
    steps: Annotated[Optional[int], typer.Option(help="So many updates instead.")] = None,
    batch: Annotated[int, typer.Option(help="Questions at a time.")] = 4,
    accumulate: Annotated[int, typer.Option(help="So many of these make one update.")] = 4,
    decay: Annotated[float, typer.Option(help="Weight decay.")] = 0.0,
    warmup: Annotated[int, typer.Option(help="Updates over which the rate grows from 0.")] = 0,
    samples: Annotated[int, typer.Option(help="At most so many training questions, drawn by the seed.")] = 10_000,
    limit: Annotated[Optional[int], typer.Option(min=1, help="Evaluate so many questions of each group.")] = None,
    checkpointing: Annotated[bool, typer.Option(help="Recompute activations to spare memory.")] = False,
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16; hold weights in float32 (--dtype) then.")] = False,
    save_steps: Annotated[int, typer.Option(help="Keep a checkpoint every so many updates; 0: none.")] = 200,
    save: Annotated[bool, typer.Option(help="Keep every trained model, low-rank updates merged.")] = False,
    batch_tokens: BatchTokens = None,
    device: Device = None,
    dtype: Dtype = "auto",
    skip_unusable: SkipUnusable = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train only chosen modules on a benchmark, and measure target and culture before and after.

    What is done with the same settings is skipped, what was interrupted is continued: start the same command again.
    Nothing but the chosen modules' weights changes.
    """
    from culnig_fast.finetuning.options import TrainingOptions

    options = TrainingOptions(
        rate=rate, epochs=epochs, steps=steps, batch=batch, accumulate=accumulate, decay=decay, warmup=warmup,
        samples=samples, lora=lora, lora_alpha=lora_alpha, bf16=bf16, checkpointing=checkpointing,
        save_steps=save_steps,
    )  # fmt: skip
    options.check()
    numbers, choices = _seeds(seeds), _choices(modules or ["top", "bottom", "all"])
    from culnig_fast.models import EMBEDDED, local_folder
    from culnig_fast.neuron_sets import NeuronSet
    from culnig_fast.pipeline.manifest import Manifest

    Manifest(out)  # refuses a folder of something else before anything is loaded
    chosen = NeuronSet.load(neurons)
    default = EMBEDDED if model == EMBEDDED else None
    tasks = {target: open_task(target, data or default, topics, file)}
    for text in culture or ["blend"]:
        name, task = _culture(text, default)
        if name in tasks:
            raise CulnigError(f"{name} is named twice; the target is evaluated anyway")
        tasks[name] = task
    for name, task in tasks.items():
        if task.generates:
            raise CulnigError(f"{name} is answered in text, and training needs one-token answers; choose another")
    loaded, tokenizer = load_model_and_tokenizer(model, dtype, device, trust_remote_code)
    from culnig_fast.finetuning.comparison import Plan, compare_modules
    from culnig_fast.finetuning.table import comparison_record, comparison_table, write_comparison
    from culnig_fast.pipeline.digests import digest, model_digest
    from culnig_fast.questions import first_of_groups
    from culnig_fast.tables.figures import Drawing
    from culnig_fast.tables.writing import to_markdown

    plan = Plan(
        model=loaded,
        tokenizer=tokenizer,
        model_digest=digest([model_digest(local_folder(model, trust_remote_code=trust_remote_code)), dtype]),
        neurons=chosen,
        training=tasks[target].questions(split or _training_split(tasks[target]), tokenizer),
        evaluated={
            name: first_of_groups(task.questions(_evaluated_split(task), tokenizer), limit)
            for name, task in tasks.items()
        },
        choices=choices,
        share=share,
        seeds=numbers,
        options=options,
        batch_tokens=batch_tokens,
        on_unusable="skip" if skip_unusable else "error",
        save=save,
    )
    found = compare_modules(plan, out, progress=not quiet)
    scores = {name: task.scores for name, task in tasks.items()}
    table = comparison_table(found, scores, target, Drawing())
    record = {"model": model, **comparison_record(found, scores, target, Drawing()), "options": options.inputs()}
    write_comparison(table, record, out)
    report(
        as_json, {"out": str(out), "done": list(found.done), **record}, f"{to_markdown(table)}\n{_epilogue(found, out)}"
    )


def _epilogue(found: Any, out: Path) -> str:
    already = 1 + len(found.after) - len(found.done)
    lines = [
        f"{which}: {', '.join(f'{module.kind} {module.layer_idx}' for module in choice.modules)}"
        for which, choice in found.choices.items()
    ]
    return "\n".join([*lines, f"{len(found.done)} stages done, {already} already were; everything is under {out}"])


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise CulnigError(f"--seeds {text} is no list of whole numbers; give e.g. 0,1,2") from None


def _choices(names: list[str]) -> Any:
    from culnig_fast.analysis.modules import CHOICES

    for name in names:
        if name not in CHOICES:
            raise CulnigError(f"--modules {name} is unknown; choose from {', '.join(CHOICES)}")
    return tuple(names)


def _culture(text: str, default: str | None) -> tuple[str, Any]:
    """`NAME` or `NAME=DATA,FILE=PATH,…`; DATA may be left empty."""
    name, _, rest = text.partition("=")
    source, *files = rest.split(",") if rest else [""]
    return name, open_task(name, source or default, None, files)


def _training_split(task: Any) -> str:
    for split in ("train", "neur"):
        if split in task.splits:
            return split
    raise CulnigError(f"{task.name} has no split for training; name one with --split ({', '.join(task.splits)})")


def _evaluated_split(task: Any) -> str:
    return "test" if "test" in task.splits else task.splits[0]
