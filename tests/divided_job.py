"""One process of a job whose model is divided, started by test_divided.py: what it sees, as JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import families
import torch
from torch import nn
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.architecture import discover
from culnig_fast.errors import Interrupted
from culnig_fast.models import load_model
from culnig_fast.running import loop
from culnig_fast.running.distributed import joined
from culnig_fast.running.world import World

FAMILIES = ("llama", "qwen3", "gemma2", "gemma3_multimodal", "phi3", "starcoder2_plain")
OPTIONS: dict[str, Any] = {"batch_tokens": 30, "progress": False}
CHOSEN = cf.NeuronSet(
    ("mlp.gate_proj", "mlp.gate_proj", "self_attn.v_proj", "mlp.act"), [0, 0, 1, 1], [3, 40, 15, 30], [0.0] * 4
)
STOPPED_AT = 4


def sites_of(family: str) -> list[str]:
    """Every site that the family has."""
    gate = [] if family.endswith("plain") else ["mlp.gate_proj"]
    return [*(f"self_attn.{part}_proj" for part in "qkv"), *gate, "mlp.up_proj", "mlp.act"]


def loaded(world: World, folder: Path, family: str) -> Any:
    """A model of the family, saved by one process and loaded in parts by all, in float64."""
    if world.rank == 0:
        families.build(family).double().save_pretrained(folder / family)
        make_tokenizer().save_pretrained(folder / family)
    world.gather("saved", True)
    return load_model(str(folder / family), tensor_parallel=True)[0]


def stopped_and_continued(model: Any, world: World, folder: Path) -> tuple[str, int, Any]:
    """One process alone gets a signal; what all say, how many batches are left to the second attempt, its table."""
    path, original, calls = folder / "run.partial", loop._score_batch, [0]

    def score(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == STOPPED_AT and world.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args)

    loop._score_batch = score
    said = ""
    try:
        cf.attribute(model, make_tokenizer(), make_questions(60), checkpoint=path, world=world, **OPTIONS)
    except Interrupted as stop:
        said, calls[0] = str(stop), STOPPED_AT
    table = cf.attribute(model, make_tokenizer(), make_questions(60), checkpoint=path, world=world, **OPTIONS)
    loop._score_batch = original
    return said, calls[0] - STOPPED_AT, table


def refusals(model: Any, world: World, folder: Path) -> dict[str, str]:
    """What is said of work that knows nothing of divided weights."""
    tried: dict[str, Any] = {
        "bake": lambda: cf.bake(model, CHOSEN),
        "norms": lambda: cf.weight_norms(discover(model, divided=True)),
        "watch": lambda: cf.Attributor(model, watch=CHOSEN),
        "fused": lambda: cf.Attributor(model, path="fused"),
        "experts": lambda: cf.Attributor(loaded(world, folder, "mixtral")),
        "no plan": lambda: loaded(world, folder, "opt_plain"),
    }
    said = {}
    for name, attempt in tried.items():
        try:
            attempt()
        except cf.CulnigError as error:
            said[name] = str(error)
    return said


def non_finite(model: Any, world: World) -> str:
    """What all say of a weight that is NaN in one process's share, not where the others look."""
    architecture = discover(model, divided=True)
    if world.rank == 1:
        with torch.no_grad():
            gate: nn.Parameter = model.model.layers[1].mlp.gate_proj.weight
            gate.to_local()[3] = torch.nan  # type: ignore[operator]
    try:
        cf.attribute(architecture, make_tokenizer(), make_questions(8), world=world, **OPTIONS)
    except cf.CulnigError as error:
        return str(error)
    return ""


def main() -> None:
    """Do everything in one job: starting the processes is what takes time."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    report: dict[str, Any] = {}
    with joined() as world:
        for family in FAMILIES:
            model = loaded(world, folder, family)
            given = {"sites": sites_of(family), "recompute": family == "qwen3", "world": world}
            table = cf.attribute(model, make_tokenizer(), make_questions(20), **given, **OPTIONS)
            world.save(table, folder / f"{family}.safetensors")
        model = loaded(world, folder, "llama")
        inputs = torch.arange(8, 16)[None]
        with torch.no_grad(), cf.suppress(model, CHOSEN):
            report["suppressed"] = model(input_ids=inputs).logits[0, -1].tolist()
        report["refused"] = refusals(model, world, folder)
        report["stopped"], report["batches"], table = stopped_and_continued(model, world, folder)
        world.save(table, folder / "continued.safetensors")
        report["left"] = sorted(path.name for path in folder.glob("*.partial*"))
        report["nan"] = non_finite(model, world)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
