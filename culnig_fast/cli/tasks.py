"""`tasks`: which benchmarks there are, what is in one, and how its prompts look."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from culnig_fast.cli.app import app
from culnig_fast.cli.options import Data, Files, Json, Topics, Trust, open_task, quiet_libraries, report
from culnig_fast.errors import CulnigError


@app.command(epilog="Example: culnig-fast tasks --task blend --data blend_mcq.jsonl --topics US_questions.csv")
def tasks(
    task: Annotated[Optional[str], typer.Option(help="Load this benchmark and count what is in it.")] = None,
    data: Data = None,
    topics: Topics = None,
    file: Files = None,
    preview: Annotated[int, typer.Option(min=0, help="Show the first prompts of each split as the model gets it.")] = 0,
    model: Annotated[
        Optional[str], typer.Option(help="Whose tokenizer renders prompts and tells usable answers; preview: 'demo'.")
    ] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """List the benchmarks, or count the questions of one by split and country."""
    if task is None:
        if data is not None or topics is not None or file or preview or model is not None:
            raise CulnigError("which benchmark? name it with --task; 'culnig-fast tasks' lists them")
        listed = _list()
        report(as_json, listed, "\n".join(_describe(name, entry) for name, entry in listed.items()))
        return
    quiet_libraries()
    loaded = open_task(task, data, topics, file)
    name = model if model is not None else ("demo" if preview else None)
    tokenizer = _load_tokenizer(name, trust_remote_code) if name is not None else None
    found: dict[str, Any] = {
        "task": task,
        "wordings": loaded.wordings_each,
        "splits": {},
        "notes": list(loaded.notes()),
    }
    for split in loaded.splits:
        found["splits"][split] = _count(loaded, split, tokenizer, preview)
    report(as_json, found, _text(found))


def _list() -> dict[str, dict[str, Any]]:
    from culnig_fast.tasks.base import tasks as all_tasks

    return {
        name: {
            "splits": list(task.splits),
            "hub": task.hub,
            "files": dict(task.files),
            "answers": "text" if task.generates else "one token",
            "description": (task.__doc__ or "").strip().splitlines()[0],
        }
        for name, task in all_tasks().items()
    }


def _describe(name: str, entry: dict[str, Any]) -> str:
    place = entry["hub"] or "no hub id"
    lines = [f"{name:18s} {', '.join(entry['splits'])}; {place}; answer: {entry['answers']}"]
    lines += [f"{'':18s}   --file {key}=PATH  {text}" for key, text in entry["files"].items()]
    return "\n".join(lines)


def _load_tokenizer(name: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    from culnig_fast.models import EMBEDDED, embedded_folder

    path = str(embedded_folder("model")) if name == EMBEDDED else name
    if not Path(path).exists() and (path.count("/") != 1 or path.startswith((".", "/"))):
        raise CulnigError(f"no checkpoint folder {name}; give a folder, a hub id or {EMBEDDED!r}")
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers and the hub client raise a dozen unrelated types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CulnigError(f"cannot load the tokenizer of {name} ({reason[:300]}); is it a checkpoint?") from error


def _count(task: Any, split: str, tokenizer: Any, preview: int) -> dict[str, Any]:
    """Counts of one split; a split that this data cannot fill says why in place of them."""
    from culnig_fast.questions import split_usable

    try:
        questions = task.questions(split, tokenizer)
    except CulnigError as error:
        return {"questions": 0, "items": 0, "groups": {}, "error": str(error)}
    found: dict[str, Any] = {
        "questions": len(questions),
        "items": len(questions) if split == "train" else len(questions) // task.wordings_each,
        "groups": dict(Counter(q.group for q in questions)),
    }
    if tokenizer is not None and not task.generates:
        found["unusable"] = [question.id for question in split_usable(tokenizer, questions).unusable]
    if preview:
        found["preview"] = [{"id": q.id, "prompt": q.prompt, "answer": q.answer} for q in questions[:preview]]
    return found


def _text(found: dict[str, Any]) -> str:
    splits = found["splits"]
    groups = sorted({name for entry in splits.values() for name in entry["groups"]})
    width = max(map(len, ["all together", *groups]))
    lines = [f"{'':{width}s} " + " ".join(f"{split:>9s}" for split in splits)]
    for group in groups:
        lines.append(f"{group:{width}s} " + " ".join(f"{e['groups'].get(group, 0):9,}" for e in splits.values()))
    lines.append(f"{'all together':{width}s} " + " ".join(f"{e['questions']:9,}" for e in splits.values()))
    if found["wordings"] > 1:
        lines.append(f"{'items':{width}s} " + " ".join(f"{e['items']:9,}" for e in splits.values()))
        once = ", in one of them for training" if "train" in splits else ""
        lines.append(f"Each item is asked in {found['wordings']} wordings{once}.")
    for split, entry in splits.items():
        if "error" in entry:
            lines.append(f"{split}: {entry['error']}")
        if entry.get("unusable"):
            count = len(entry["unusable"])
            lines.append(f"{split}: {count:,} with an answer of several tokens, unusable ({entry['unusable'][0]}, …)")
        for shown in entry.get("preview", ()):
            lines += ["", f"── {split}: {shown['id']} (answer {shown['answer']})", shown["prompt"]]
    return "\n".join([*lines, *(f"note: {note}" for note in found["notes"])])
