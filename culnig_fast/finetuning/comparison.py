"""Top, bottom and all modules trained on one target, and what each does to it and to culture (CULNIG, section 9).

Under the folder: `modules/CHOICE.csv`, `training/CHOICE-SEED.json`, `results/before/LABEL.jsonl`,
`results/CHOICE-SEED/LABEL.jsonl`, `tables/`, and with `save` the trained models. Each (choice, seed) is noted in
`manifest.json` when it is done, and skipped from then on; a training that was interrupted goes on from its last
checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from culnig_fast.analysis.modules import Choice, Which, pick_modules
from culnig_fast.errors import CulnigError
from culnig_fast.files import atomic_folder, read_json, write_json
from culnig_fast.finetuning.options import TrainingOptions
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.pipeline.digests import digest
from culnig_fast.pipeline.manifest import Manifest, locked, sweep
from culnig_fast.questions import Question, SplitQuestions, split_usable

if TYPE_CHECKING:
    from culnig_fast.evaluation import Evaluation

BEFORE = "before"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        model, tokenizer: as loaded; the model is trained in place and left as it was.
        model_digest: of the checkpoint that it came from.
        neurons: by whose density modules are ranked.
        training: questions that are trained on.
        evaluated: label → questions; the target first.
        choices: some of `top`, `bottom`, `all`.
        share: of the model's parameters, for top and bottom.
        seeds: of each choice's trainings.
        options: of every training.
        batch_tokens: padded tokens a batch of evaluation.
        on_unusable: `error` or `skip` for an answer that is not one token.
        save: keep the trained models.
    """

    model: Any
    tokenizer: Any
    model_digest: str
    neurons: NeuronSet
    training: Sequence[Question]
    evaluated: Mapping[str, Sequence[Question]]
    choices: Sequence[Which] = ("top", "bottom", "all")
    share: float = 0.1
    seeds: Sequence[int] = (0,)
    options: TrainingOptions = field(default_factory=TrainingOptions)
    batch_tokens: int | None = None
    on_unusable: str = "error"
    save: bool = False


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        choices: the modules of each.
        before: label → evaluation of the model as it was.
        after: (choice, seed) → label → evaluation.
        trainings: (choice, seed) → what `training/CHOICE-SEED.json` holds.
        left_out: ids of training questions that were not trained on because they are evaluated too.
        unusable: `training` and label of what is evaluated → its questions by whether their answer is one token, for
            those where some are not.
        done: stages done by this call; the others were done already.
    """

    choices: Mapping[Which, Choice]
    before: Mapping[str, Evaluation]
    after: Mapping[tuple[Which, int], Mapping[str, Evaluation]]
    trainings: Mapping[tuple[Which, int], dict[str, Any]]
    left_out: tuple[str, ...]
    unusable: Mapping[str, SplitQuestions]
    done: tuple[str, ...]


def compare_modules(plan: Plan, out: str | Path, *, progress: bool = True) -> Comparison:
    """Evaluate, train every choice with every seed, evaluate again; continues what an earlier call began.

    Args:
        plan: what to compare.
        out: folder; a new or empty one, or that of the same comparison, where seeds and choices may be added.
        progress: show progress bars on standard error.

    Raises:
        CulnigError: a choice or option that is not known, a share that holds no module, an unusable answer,
            more than a few prompts both trained on and evaluated, a loss that is not finite, or a folder that holds
            something else.
    """
    from culnig_fast.finetuning.data import set_apart

    out = Path(out)
    plan.options.check()
    _check(plan)
    training, left_out = set_apart(plan.training, plan.evaluated)
    plan = replace(plan, training=training)
    choices = {which: pick_modules(plan.model, plan.neurons, which, plan.share) for which in plan.choices}
    manifest = Manifest(out)
    stages = {BEFORE: _shared_inputs(plan)}
    for which, seed in _runs(plan):
        stages[_name(which, seed)] = _inputs(plan, choices[which], seed)
    _refuse_others(manifest, stages, out)
    done = []
    with locked(out):
        manifest.begin()
        sweep(out)
        _write_choices(choices, out)
        for stage, inputs in stages.items():
            if manifest.why(stage, inputs) is None:
                continue
            if stage == BEFORE:
                files = _evaluate(plan, out / "results" / BEFORE, progress)
            else:
                which, seed = next(run for run in _runs(plan) if _name(*run) == stage)
                files = _train(plan, choices[which], seed, out, digest(inputs), progress)
            manifest.note(stage, inputs, files)
            done.append(stage)
    return _collect(plan, choices, out, tuple(left_out), tuple(done))


def _check(plan: Plan) -> None:
    if not plan.choices:
        raise CulnigError("no modules were asked for; choose some of top, bottom, all")
    if not plan.seeds or len(set(plan.seeds)) != len(plan.seeds) or min(plan.seeds) < 0:
        raise CulnigError(f"the seeds are {list(plan.seeds)}; give different whole numbers from 0, e.g. 0,1,2")
    if len(set(plan.choices)) != len(plan.choices):
        raise CulnigError(f"the modules are {', '.join(plan.choices)}; name each choice once")


def _runs(plan: Plan) -> Iterator[tuple[Which, int]]:
    """Seed by seed, so that an interrupted comparison has whole seeds."""
    return ((which, seed) for seed in plan.seeds for which in plan.choices)


def _name(which: Which, seed: int) -> str:
    return f"{which}-{seed}"


def _shared_inputs(plan: Plan) -> dict[str, str]:
    def texts(questions: Sequence[Question]) -> list[list[str]]:
        return [[q.id, q.group, q.prompt, q.answer] for q in questions]

    return {
        "model": plan.model_digest,
        "evaluated questions": digest({label: texts(questions) for label, questions in plan.evaluated.items()}),
        "unusable": plan.on_unusable,
    }


def _inputs(plan: Plan, choice: Choice, seed: int) -> dict[str, str]:
    training = [[q.id, q.prompt, q.answer] for q in plan.training]
    return {
        **_shared_inputs(plan),
        "training questions": digest(training),
        "modules": digest(choice.names),
        "options": digest(plan.options.inputs()),
        "seed": str(seed),
        "saving": str(plan.save),
    }


def _refuse_others(manifest: Manifest, stages: Mapping[str, Mapping[str, str]], out: Path) -> None:
    """A folder of another comparison is not overwritten."""
    if manifest.stages and BEFORE not in manifest.stages:
        raise CulnigError(f"{out} holds something else than a comparison of modules; choose another folder as out")
    for stage, inputs in stages.items():
        entry = manifest.stages.get(stage)
        changed = [] if entry is None else sorted(k for k, v in inputs.items() if entry["inputs"].get(k) != v)
        if changed:
            raise CulnigError(
                f"{out} holds {stage} with other inputs ({', '.join(changed)} changed); choose another folder as out"
            )


def _write_choices(choices: Mapping[Which, Choice], out: Path) -> None:
    from culnig_fast.files import atomic_write

    (out / "modules").mkdir(exist_ok=True)
    for which, choice in choices.items():
        with atomic_write(out / "modules" / f"{which}.csv", overwrite=True) as temporary:
            choice.table.to_csv(temporary, index=False, lineterminator="\n")


def _evaluate(plan: Plan, folder: Path, progress: bool) -> list[Path]:
    from culnig_fast.evaluation import evaluate

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for label, questions in plan.evaluated.items():
        result = evaluate(
            plan.model,
            plan.tokenizer,
            questions,
            batch_tokens=plan.batch_tokens,
            on_unusable=plan.on_unusable,
            progress=progress,
        )
        files.append(folder / f"{label}.jsonl")
        result.save(files[-1], overwrite=True)
    return files


def _train(plan: Plan, choice: Choice, seed: int, out: Path, key: str, progress: bool) -> list[Path]:
    """One training and its evaluation; the model is as before afterwards."""
    from culnig_fast.finetuning.data import training_set
    from culnig_fast.finetuning.training import kept_weights, train_modules

    name = _name(choice.which, seed)
    data = training_set(
        plan.tokenizer, plan.training, limit=plan.options.samples, seed=seed, on_unusable=plan.on_unusable
    )
    # Named by its inputs: a checkpoint of other settings is never continued.
    checkpoints = out / "checkpoints" / f"{name}-{key}"
    checkpoints.mkdir(parents=True, exist_ok=True)
    with kept_weights(plan.model, choice.names):
        # Kept until it is evaluated: who is killed there need not train it all again.
        trained = train_modules(
            plan.model, data, choice.names, plan.options, seed=seed, folder=checkpoints, progress=progress, keep=True
        )
        files = _evaluate(plan, out / "results" / name, progress)
        if plan.save:
            files += _save(plan, out / "models" / name)
    record = out / "training" / f"{name}.json"
    record.parent.mkdir(exist_ok=True)
    write_json(
        record, {"modules": choice.names, "options": plan.options.inputs(), "seed": seed, **asdict(trained)}, True
    )
    shutil.rmtree(checkpoints)
    if not any((out / "checkpoints").iterdir()):
        (out / "checkpoints").rmdir()
    return [*files, record]


def _save(plan: Plan, folder: Path) -> list[Path]:
    """An ordinary checkpoint; one that a killed process finished without noting it is replaced by the same."""
    folder.parent.mkdir(exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        plan.model.save_pretrained(temporary)
        plan.tokenizer.save_pretrained(temporary)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _collect(
    plan: Plan, choices: Mapping[Which, Choice], out: Path, left_out: tuple[str, ...], done: tuple[str, ...]
) -> Comparison:
    from culnig_fast.evaluation import Evaluation

    def results(name: str) -> dict[str, Evaluation]:
        return {label: Evaluation.load(out / "results" / name / f"{label}.jsonl") for label in plan.evaluated}

    asked = {"training": plan.training, **plan.evaluated}
    splits = {label: split_usable(plan.tokenizer, questions) for label, questions in asked.items()}
    return Comparison(
        choices,
        results(BEFORE),
        {run: results(_name(*run)) for run in _runs(plan)},
        {run: read_json(out / "training" / f"{_name(*run)}.json") for run in _runs(plan)},
        left_out,
        {label: split for label, split in splits.items() if split.unusable},
        done,
    )
