"""The command line: one subcommand a stage."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from culnig_fast.errors import CulnigError
from culnig_fast.files import refuse_existing

# Everything heavier than typer is imported inside the commands: help comes up without torch.

app = typer.Typer(
    help="Find the neurons behind a language model's cultural understanding, and see what breaks without them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
select_app = typer.Typer(help="Choose neurons from score tables.", no_args_is_help=True)
app.add_typer(select_app, name="select")


class Action(str, Enum):
    """What is done to neurons."""

    suppress = "suppress"
    enhance = "enhance"


Model = Annotated[str, typer.Argument(help="Checkpoint folder, hub id, or 'demo' for the embedded model.")]
Task = Annotated[str, typer.Option(help="Benchmark: blend, country_rc, or plain (id, group, prompt, answer).")]
Data = Annotated[
    Optional[str], typer.Option(help="File, or 'demo'; left out: the hub's (blend), our own (country_rc).")
]
Topics = Annotated[Optional[Path], typer.Option(help="BLEnD's US_questions.csv, which gives each question a topic.")]
Split = Annotated[str, typer.Option(help="all, neur, control or test, as the benchmark has them.")]
Device = Annotated[Optional[str], typer.Option(help="cpu, cuda, cuda:1; left out: a GPU where there is one.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
BatchTokens = Annotated[Optional[int], typer.Option(min=1, help="Padded tokens a batch.")]
SkipUnusable = Annotated[bool, typer.Option(help="Leave out questions whose answer is not one token.")]
Overwrite = Annotated[bool, typer.Option(help="Replace an output that exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option(help="No progress bar.")]
Sites = Annotated[Optional[list[str]], typer.Option("--site", help="Module to score, repeatable; left out: all five.")]
Trust = Annotated[bool, typer.Option(help="Run code that comes with the checkpoint.")]


@app.command(epilog="Example: culnig-fast score demo --data demo --split neur --out neur.safetensors")
def score(
    model: Model,
    out: Annotated[Path, typer.Option(help="Score table to write (.safetensors).")],
    task: Task = "blend",
    data: Data = None,
    topics: Topics = None,
    split: Split = "neur",
    site: Sites = None,
    reduction: Annotated[str, typer.Option(help="Over positions: max (the method's) or sum.")] = "max",
    clamp_control: Annotated[bool, typer.Option(help="In split 'control', count negative scores as 0.")] = True,
    padding: Annotated[str, typer.Option(help="exclude, or zero as the published program.")] = "exclude",
    batch_tokens: BatchTokens = None,
    batch_size: Annotated[Optional[int], typer.Option(min=1, help="Fixed batches in file order instead.")] = None,
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

    Progress is kept beside the output every minute and on an interrupt; the same command continues from there.
    """
    refuse_existing(out, overwrite)
    loaded, tokenizer = _load(model, dtype, device, trust_remote_code)
    from culnig_fast.attribution import attribute

    questions = _questions(task, data, topics, split, tokenizer)
    table = attribute(
        loaded,
        tokenizer,
        questions,
        sites=site,
        control=split == "control",
        clamp_control=clamp_control,
        batch_tokens=batch_tokens,
        batch_size=batch_size,
        padding=padding,
        reduction=reduction,
        on_unusable="skip" if skip_unusable else "error",
        checkpoint=out.with_name(f"{out.name}.partial"),
        checkpoint_seconds=checkpoint_seconds,
        progress=not quiet,
    )
    table.metadata.update({"task": task, "split": split})
    table.save(out, overwrite)
    mean = float(table.probability.sum() / table.n_samples)
    summary = {
        "out": str(out),
        "samples": table.n_samples,
        "neurons": table.layout.size,
        "groups": dict(zip(table.groups, table.counts.tolist(), strict=True)),
        "mean_probability": mean,
        "left_out": table.metadata["unusable"],
    }
    left_out = f", {len(summary['left_out'])} left out" if summary["left_out"] else ""
    _report(
        as_json,
        summary,
        f"{out}: {table.n_samples:,} samples{left_out} of {len(table.groups)} groups, "
        f"{table.layout.size:,} neurons, mean P {mean:.3f}",
    )


@select_app.command(
    "general",
    epilog="Example: culnig-fast select general neur.safetensors --control ctrl.safetensors "
    "--surface crc.safetensors --out general.json",
)
def select_general_command(
    neur: Annotated[Path, typer.Argument(help="Scores on the identification half.")],
    control: Annotated[Path, typer.Option(help="Scores on the control set.")],
    surface: Annotated[Path, typer.Option(help="Scores on CountryRC.")],
    out: Annotated[Path, typer.Option(help="Neuron set to write (.json).")],
    mlp_share: Annotated[float, typer.Option(help="t of the MLP pool.")] = 0.01,
    attention_share: Annotated[float, typer.Option(help="t of the attention pool.")] = 0.002,
    surface_share: Annotated[float, typer.Option(help="r: top share on CountryRC that is dropped.")] = 0.01,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Choose culture-general neurons."""
    from culnig_fast.scores import ScoreTable
    from culnig_fast.selection import select_general

    refuse_existing(out, overwrite)
    scores = ScoreTable.load(neur), ScoreTable.load(control), ScoreTable.load(surface)
    chosen = select_general(*scores, mlp_share=mlp_share, attention_share=attention_share, surface_share=surface_share)
    _save_set(chosen, out, overwrite, as_json)


@select_app.command(
    "specific",
    epilog="Example: culnig-fast select specific neur.safetensors --control ctrl.safetensors "
    "--surface crc.safetensors --country Mexico --out mexico.json",
)
def select_specific_command(
    neur: Annotated[Path, typer.Argument(help="Scores on the identification half.")],
    control: Annotated[Path, typer.Option(help="Scores on the control set.")],
    surface: Annotated[Path, typer.Option(help="Scores on CountryRC.")],
    country: Annotated[str, typer.Option(help="Target country, in any of BLEnD's spellings.")],
    out: Annotated[Path, typer.Option(help="Neuron set to write (.json).")],
    share: Annotated[float, typer.Option(help="t of the pool.")] = 0.003,
    surface_share: Annotated[float, typer.Option(help="r: top share on CountryRC that is dropped.")] = 0.01,
    min_z: Annotated[float, typer.Option(help="Least z-score over the countries.")] = 0.5,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Choose the neurons of one country."""
    from culnig_fast.scores import ScoreTable
    from culnig_fast.selection import select_specific

    refuse_existing(out, overwrite)
    scores = ScoreTable.load(neur), ScoreTable.load(control), ScoreTable.load(surface)
    chosen = select_specific(*scores, country, share=share, surface_share=surface_share, min_z=min_z)
    _save_set(chosen, out, overwrite, as_json)


@select_app.command(
    "random",
    epilog="Example: culnig-fast select random neur.safetensors --like general.json --out random.json",
)
def select_random_command(
    scores: Annotated[Path, typer.Argument(help="Any score table of the model.")],
    out: Annotated[Path, typer.Option(help="Neuron set to write (.json).")],
    count: Annotated[Optional[int], typer.Option(min=0, help="How many neurons.")] = None,
    like: Annotated[Optional[Path], typer.Option(help="As many as in this set.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Draw as many neurons at random, for a baseline."""
    from culnig_fast.neurons import NeuronSet
    from culnig_fast.scores import ScoreTable
    from culnig_fast.selection import select_random

    refuse_existing(out, overwrite)
    if (count is None) == (like is None):
        raise CulnigError("say how many neurons to draw: give either --count or --like")
    wanted = len(NeuronSet.load(like)) if like is not None else count or 0
    _save_set(select_random(ScoreTable.load(scores).layout, wanted, seed=seed), out, overwrite, as_json)


@app.command(
    epilog="Example: culnig-fast evaluate demo --data demo --split test --neurons general.json --out suppressed.jsonl"
)
def evaluate(
    model: Model,
    task: Task = "blend",
    data: Data = None,
    topics: Topics = None,
    split: Split = "test",
    neurons: Annotated[Optional[Path], typer.Option(help="Neuron set to intervene on.")] = None,
    action: Annotated[Action, typer.Option(help="What to do to the neurons.")] = Action.suppress,
    out: Annotated[Optional[Path], typer.Option(help="Results, a row a question (.jsonl or .csv).")] = None,
    against: Annotated[Optional[Path], typer.Option(help="Earlier results (.jsonl) to compare with.")] = None,
    batch_tokens: BatchTokens = None,
    device: Device = None,
    dtype: Dtype = "auto",
    skip_unusable: SkipUnusable = False,
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure accuracy, with or without neurons, and compare with an earlier run."""
    if out is not None:
        refuse_existing(out, overwrite)
    loaded, tokenizer = _load(model, dtype, device, trust_remote_code)
    from culnig_fast import masking
    from culnig_fast.evaluation import Evaluation, compare
    from culnig_fast.evaluation import evaluate as run_evaluation
    from culnig_fast.neurons import NeuronSet

    questions = _questions(task, data, topics, split, tokenizer)
    chosen = NeuronSet.load(neurons) if neurons is not None else NeuronSet.empty()
    earlier = Evaluation.load(against) if against is not None else None
    intervene = masking.suppress if action is Action.suppress else masking.enhance
    with intervene(loaded, chosen):
        result = run_evaluation(
            loaded,
            tokenizer,
            questions,
            batch_tokens=batch_tokens,
            on_unusable="skip" if skip_unusable else "error",
            progress=not quiet,
        )
    if out is not None:
        result.save(out, overwrite)
    summary: dict[str, Any] = {
        "accuracy": 100 * result.accuracy,
        "questions": len(result.ids),
        "neurons": len(chosen),
        "groups": {name: 100 * value for name, value in result.by_group().items()},
        "left_out": list(result.unusable),
    }
    lines = [f"{name:20s} {value:6.2f}" for name, value in summary["groups"].items()]
    lines.append(f"{'all':20s} {summary['accuracy']:6.2f}  ({summary['questions']:,} questions)")
    if earlier is not None:
        test = compare(result, earlier)
        summary["against"] = test
        lines.append(
            f"against {against}: {test['difference']:+.2f} points "
            f"(95 % interval {test['low']:+.2f} … {test['high']:+.2f}, one-sided p {test['p_value']:.4f})"
        )
    _report(as_json, summary, "\n".join(lines))


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
    refuse_existing(out, overwrite=False)
    loaded, tokenizer = _load(model, dtype, device, trust_remote_code)
    from culnig_fast.files import atomic_folder
    from culnig_fast.masking import bake as bake_weights
    from culnig_fast.neurons import NeuronSet

    chosen = NeuronSet.load(neurons)
    edited = bake_weights(loaded, chosen, 0.0 if action is Action.suppress else 2.0, in_place=True)
    with atomic_folder(out) as temporary:
        edited.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    done = {Action.suppress: "suppressed", Action.enhance: "enhanced"}[action]
    _report(as_json, {"out": str(out), "neurons": len(chosen)}, f"{out}: {len(chosen):,} neurons {done}")


@app.command(epilog="Example: culnig-fast info demo")
def info(model: Model, device: Device = "cpu", trust_remote_code: Trust = False, as_json: Json = False) -> None:
    """Show which neurons discovery sees in a model."""
    loaded, _ = _load(model, "auto", device, trust_remote_code)
    from culnig_fast.architecture import discover

    summary = discover(loaded).describe()
    lines = [f"{summary['model']}: {summary['layers']} layers ({summary['layer_class']}), {summary['dtype']}"]
    lines += [
        f"  {site['module_name']:18s} {site['width']:>7,} a layer  {site['total']:>11,} in all  {site['where']}"
        for site in summary["sites"]
    ]
    lines.append(f"  {summary['neurons']:,} neurons are scored unless asked otherwise")
    _report(as_json, summary, "\n".join(lines))


@app.command(epilog="Example: culnig-fast demo --out runs/demo --overwrite")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is written.")] = Path("runs/demo"),
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score, select, suppress and evaluate on the embedded model, in about a minute."""
    refuse_existing(out / "demo.json", overwrite)
    _hush()
    from culnig_fast.demo.run import format_report, run_demo

    result = run_demo(out, progress=not quiet)
    _report(as_json, result, format_report(result))


def _hush() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _load(model: str, dtype: str, device: str | None, trust_remote_code: bool) -> tuple[Any, Any]:
    _hush()
    from culnig_fast.models import load_model

    return load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)


def _questions(task: str, data: str | None, topics: Path | None, split: str, tokenizer: Any) -> Any:
    from culnig_fast.models import EMBEDDED
    from culnig_fast.tasks.base import load_task

    if data == EMBEDDED:
        from culnig_fast.demo.embedded import task_files

        data, files = task_files(task)
    else:
        files = {} if topics is None else {"topics": topics}
    return load_task(task, data, files).questions(split, tokenizer)


def _save_set(chosen: Any, out: Path, overwrite: bool, as_json: bool) -> None:
    chosen.save(out, overwrite)
    counts = {name: len(chosen.where([name])) for name in sorted(set(chosen.module_names))}
    detail = ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"
    summary = {"out": str(out), "neurons": len(chosen), "modules": counts, "info": chosen.info}
    _report(as_json, summary, f"{out}: {len(chosen):,} neurons ({detail})")


def _report(as_json: bool, value: Any, text: str) -> None:
    print(json.dumps(value, ensure_ascii=False) if as_json else text)


def main() -> None:
    """Run a command; bad input ends in one sentence and exit code 1, an interrupt in 130."""
    try:
        app()
    except CulnigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            "interrupted; the same command continues where it can, and nothing was overwritten",
            file=sys.stderr,
        )
        sys.exit(130)


if __name__ == "__main__":
    main()
