"""Checkpoints are loaded whole or refused; what one holds beside its model is said once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import families
import pytest
import torch
import transformers as tf
from command_line import invoke
from safetensors.torch import load_file, save_file
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.errors import CulnigWarning
from culnig_fast.models import load_model

UP = "model.layers.1.mlp.up_proj.weight"


def saved(folder: Path, family: str = "llama") -> Path:
    families.build(family).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def changed(folder: Path, change: Any, file: str = "model.safetensors") -> None:
    """Rewrite a file of weights; `change` alters the dict of its tensors."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, {"format": "pt"})


def renamed(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[f"foo.{name}"] = tensors.pop(name)


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_missing_weights_are_not_made_up(device: str, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    changed(folder, lambda tensors: tensors.pop(UP))
    with pytest.raises(cf.CulnigError, match=rf"no whole checkpoint of Llama.*: it lacks {UP};.*save the whole"):
        load_model(str(folder), device=device)


def test_names_that_none_of_the_model_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "model")
    changed(folder, renamed)
    with pytest.raises(cf.CulnigError, match=r"lacks lm_head.weight, .* … \(21 tensors\), holds foo\.lm_head"):
        load_model(str(folder), device="cpu")
    data = ("--task", "plain", "--data", tmp_path / "q.csv", "--split", "all", "--device", "cpu")
    (tmp_path / "q.csv").write_text("id,group,prompt,answer\n1,x,A B,A\n", encoding="utf-8")
    for command in (("score", folder, *data, "--out", tmp_path / "t.safetensors"), ("evaluate", folder, *data)):
        assert invoke(*command) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {folder} is no whole checkpoint")
    assert not (tmp_path / "t.safetensors").exists()


def test_weights_of_another_shape(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    changed(folder, lambda tensors: tensors.update({UP: torch.ones(40, 32)}))
    with pytest.raises(cf.CulnigError, match=rf"holds in another shape {UP} \[40, 32\] for \[48, 32\];"):
        load_model(str(folder), device="cpu")


def test_tensors_without_a_place_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "model")
    changed(folder, lambda tensors: tensors.update({f"extra.{i}": torch.ones(2) for i in range(5)}))
    with pytest.warns(CulnigWarning, match=r"holds extra\.0, extra\.1, extra\.2, … \(5 tensors\), for which Llama"):
        load_model(str(folder), device="cpu")
    capsys.readouterr()  # in Python transformers tells it too
    assert invoke("info", folder) == 0
    assert capsys.readouterr().err == (
        f"warning: {folder} holds extra.0, extra.1, extra.2, … (5 tensors), for which LlamaForCausalLM has no place; "
        "the model runs without them\n"
    )
    (tmp_path / "q.csv").write_text("id,group,prompt,answer\n1,x,A B,A\n", encoding="utf-8")
    data = ("--task", "plain", "--data", tmp_path / "q.csv", "--split", "all", "--device", "cpu")
    assert invoke("evaluate", folder, *data, "--quiet") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("family", ["gemma2", "gpt2_conv1d_fused", "gemma3_multimodal"])
def test_tied_weights_and_other_towers_are_not_missing(family: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, family)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CulnigWarning)
        load_model(str(folder), device="cpu")


def _vision_language_model() -> Any:
    text = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    text |= dict(num_key_value_heads=2, rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2]})
    vision = dict(depth=1, embed_dim=16, hidden_size=32, num_heads=2, patch_size=4, mlp_ratio=2)
    ids = dict(image_token_id=60, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63)
    return tf.Qwen2VLForConditionalGeneration(tf.Qwen2VLConfig(text_config=text, vision_config=vision, **ids))


def test_a_model_that_also_sees_is_loaded_for_its_text(tmp_path: Path) -> None:
    """transformers has no causal class for its configuration."""
    _vision_language_model().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = load_model(str(tmp_path), device="cpu")
    assert type(model).__name__ == "Qwen2VLForConditionalGeneration"
    table = cf.attribute(model, tokenizer, make_questions(3), progress=False)
    assert table.layout.size == 2 * (32 + 2 * 16 + 2 * 48)


def _adapter(base: Path, folder: Path) -> None:
    peft = pytest.importorskip("peft", reason="adapters are read by peft")
    model, tokenizer = load_model(str(base), device="cpu")
    options = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    peft.get_peft_model(model, options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_an_adapter_is_loaded_with_the_whole_of_its_base(tmp_path: Path) -> None:
    base, adapter = saved(tmp_path / "base"), tmp_path / "adapter"
    _adapter(base, adapter)
    model, _ = load_model(str(adapter), device="cpu")
    ids = torch.arange(3, 9)[None]
    whole = tf.AutoModelForCausalLM.from_pretrained(adapter)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, whole(ids).logits)
        assert not torch.equal(model(ids).logits, load_model(str(base), device="cpu")[0](ids).logits)
    changed(adapter, renamed, "adapter_model.safetensors")
    with pytest.raises(cf.CulnigError, match=r"adapter is no whole checkpoint .*lora_A"):
        load_model(str(adapter), device="cpu")
    changed(base, lambda tensors: tensors.pop(UP))
    with pytest.raises(cf.CulnigError, match=rf"base is no whole checkpoint .* lacks {UP}"):
        load_model(str(adapter), device="cpu")


def test_an_adapter_beside_its_model_is_refused(tmp_path: Path) -> None:
    """transformers accounts for the adapter alone, so the model's missing weights would not be seen."""
    base = saved(tmp_path / "base")
    _adapter(base, base)
    with pytest.raises(cf.CulnigError, match=r"move the adapter to a folder of its own, or merge"):
        load_model(str(base), device="cpu")
