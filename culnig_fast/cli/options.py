"""Options that several commands take, and what they all do first and last."""

from __future__ import annotations

import json
import warnings
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from culnig_fast.errors import CulnigError, CulnigWarning
from culnig_fast.files import check_output


class Action(str, Enum):
    """What is done to neurons."""

    suppress = "suppress"
    enhance = "enhance"


Model = Annotated[str, typer.Argument(help="Checkpoint folder, hub id, or 'demo' for the embedded model.")]
Task = Annotated[str, typer.Option(help="Benchmark; 'culnig-fast tasks' lists them.")]
Data = Annotated[
    Optional[str], typer.Option(help="File or folder, or 'demo'; left out: the hub's, or our own (country_rc).")
]
Topics = Annotated[Optional[Path], typer.Option(help="BLEnD's US_questions.csv, which gives each question a topic.")]
Files = Annotated[
    Optional[list[str]],
    typer.Option("--file", help="A further file of the benchmark as NAME=PATH, repeatable; 'tasks' lists the names."),
]
Split = Annotated[str, typer.Option(help="all, neur, control or test, as the benchmark has them.")]
Device = Annotated[Optional[str], typer.Option(help="cpu, cuda, cuda:1, or auto: over all GPUs; left out: a GPU.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
BatchTokens = Annotated[Optional[int], typer.Option(min=1, help="Padded tokens a batch.")]
SkipUnusable = Annotated[bool, typer.Option(help="Leave out questions whose answer is not one token.")]
Overwrite = Annotated[bool, typer.Option(help="Replace an output that exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _silenced(quiet: bool) -> bool:
    if quiet:
        warnings.simplefilter("ignore", CulnigWarning)
    return quiet


Quiet = Annotated[bool, typer.Option(help="No progress bar, no warnings.", callback=_silenced)]
Sites = Annotated[Optional[list[str]], typer.Option("--site", help="Module to score, repeatable; left out: all five.")]
TensorParallel = Annotated[
    bool, typer.Option("--tensor-parallel", help="Under torchrun, divide one model's weights among the processes.")
]
Trust = Annotated[bool, typer.Option(help="Run code that comes with the checkpoint.")]


def quiet_libraries() -> None:
    """No progress bars or warnings but ours."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_model_and_tokenizer(model: str, dtype: str, device: str | None, trust_remote_code: bool) -> tuple[Any, Any]:
    """As `models.load_model`."""
    quiet_libraries()
    from culnig_fast.models import load_model

    return load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)


def load_divided(
    model: str, dtype: str, device: str | None, trust_remote_code: bool, tensor_parallel: bool, world: Any
) -> tuple[Any, Any]:
    """The same for one process of a job, on its own card, with its part of the weights where that is asked."""
    quiet_libraries()
    from culnig_fast.models import load_model
    from culnig_fast.running.distributed import local_device

    if tensor_parallel and world.alone:
        raise CulnigError("--tensor-parallel divides weights among processes; start them with torchrun")
    where = device or local_device()
    options = {"trust_remote_code": trust_remote_code, "tensor_parallel": tensor_parallel}
    return load_model(model, dtype=dtype, device=where, **options)


def check_results(out: Path, overwrite: bool) -> None:
    """Raise CulnigError, before any work, when no file of results can be put there."""
    if out.suffix.lower() not in (".csv", ".jsonl"):
        raise CulnigError(f"{out} must end in .csv or .jsonl")
    check_output(out, overwrite)


def open_task(task: str, data: str | None, topics: Path | None = None, files: list[str] | None = None) -> Any:
    """A benchmark from files or from the embedded model's data; `files` as NAME=PATH, `topics` for `topics=`."""
    from culnig_fast.models import EMBEDDED
    from culnig_fast.tasks.base import load_task

    if data == EMBEDDED:
        from culnig_fast.demo.embedded import task_files

        return load_task(task, *task_files(task))
    further = named_files(files or [])
    if topics is not None:
        further["topics"] = topics
    return load_task(task, data, further)


def named_files(texts: list[str]) -> dict[str, str | Path]:
    """`NAME=PATH` texts as a dict; CulnigError for one that is not of that form or repeats a name."""
    found: dict[str, str | Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise CulnigError(f"--file {text} is not NAME=PATH; 'culnig-fast tasks' lists the names")
        if name in found:
            raise CulnigError(f"--file names {name} twice; give it once")
        found[name] = Path(path)
    return found


def load_questions(
    task: str, data: str | None, topics: Path | None, split: str, tokenizer: Any, files: list[str] | None = None
) -> Any:
    """The questions of a split, of files or of the embedded model's data."""
    return open_task(task, data, topics, files).questions(split, tokenizer)


def report(as_json: bool, value: Any, text: str) -> None:
    """Print a result for a program or for a person."""
    print(json.dumps(value, ensure_ascii=False) if as_json else text)
