"""The whole chain by the command line on real benchmark files and a small model: time and peak memory of each stage.

    python bench/real_chain.py --blend blend_mcq.jsonl --topics US_questions.csv --country-rc data.json --out runs/chain

A byte-level BPE is trained on the files' own prompts and a small Qwen3 gets random weights, so accuracies mean nothing:
this shows that files go through, and what they cost. `--limit-layers`, `--hidden` size the model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from culnig_fast.tasks.base import load_task
from culnig_fast.tasks.countries import TARGET_COUNTRIES

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_checkpoint(folder: Path, options: argparse.Namespace) -> None:
    """A byte-level BPE trained on the prompts, and a Qwen3 of random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    texts = [
        question.prompt
        for task, source, files in (
            ("blend", options.blend, {"topics": options.topics}),
            ("country_rc", options.country_rc, {}),
        )
        for question in load_task(task, source, files).questions("neur", None)
    ]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=4096, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=special[0],
        pad_token=special[0],
        additional_special_tokens=special[1:],
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=options.hidden // 4,
        max_position_embeddings=2048,
        initializer_range=0.05,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run(name: str, *arguments: object) -> dict[str, Any]:
    """Run one command; returns its JSON with seconds and peak resident memory in MiB."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "culnig_fast.cli", *map(str, arguments), "--json"]
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.stdout.write(done.stdout.decode())\n"
        "sys.exit(done.returncode)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], stdout=subprocess.PIPE, text=True, check=True)
    peak, _, output = done.stdout.partition("\n")
    seconds = time.perf_counter() - start
    result: dict[str, Any] = json.loads(output)
    print(f"{name:28s} {seconds:8.1f} s {int(peak) / 1024:8.0f} MiB", flush=True)
    return {**result, "stage": name, "seconds": round(seconds, 1), "peak_mib": round(int(peak) / 1024)}


def main() -> None:
    """Every stage, each as a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("blend", "topics", "country-rc", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True)
    make_checkpoint(out / "model", options)
    blend = ("--task", "blend", "--data", options.blend, "--topics", options.topics)
    crc = ("--task", "country_rc", "--data", options.country_rc)
    model, quiet = out / "model", ("--quiet", "--device", "cpu")
    stages = []
    for name, task, split in (("neur", blend, "neur"), ("control", blend, "control"), ("crc", crc, "neur")):
        target = out / f"{name}.safetensors"
        stages.append(run(f"score {name}", "score", model, *task, "--split", split, "--out", target, *quiet))
    tables = [
        out / "neur.safetensors",
        "--control",
        out / "control.safetensors",
        "--surface",
        out / "crc.safetensors",
    ]
    stages.append(run("select general", "select", "general", *tables, "--out", out / "general.json"))
    for country in TARGET_COUNTRIES:
        target = out / f"{country.replace(' ', '')}.json"
        stages.append(run(f"select {country}", "select", "specific", *tables, "--country", country, "--out", target))
    asked = (*blend, "--split", "test", *quiet)
    stages.append(run("evaluate original", "evaluate", model, *asked, "--out", out / "original.jsonl"))
    suppressed = ("--neurons", out / "general.json", "--against", out / "original.jsonl")
    stages.append(run("evaluate suppressed", "evaluate", model, *asked, *suppressed, "--out", out / "suppressed.jsonl"))
    for stage in stages:
        for key in ("info", "out"):  # long, or a path of this machine
            stage.pop(key, None)
    (out / "chain.json").write_text(json.dumps(stages, indent=2, ensure_ascii=False) + "\n")
    total, peak = sum(stage["seconds"] for stage in stages), max(stage["peak_mib"] for stage in stages)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'all stages':28s} {total:8.1f} s {peak:8.0f} MiB (making the checkpoint: {own:.0f} MiB)")


if __name__ == "__main__":
    main()
