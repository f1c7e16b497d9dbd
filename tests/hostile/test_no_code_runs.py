"""No file runs code: nothing is unpickled, and a checkpoint's own code runs only when asked for."""

from __future__ import annotations

import ast
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build

import culnig_fast
from culnig_fast.errors import CulnigError
from culnig_fast.masking import suppress
from culnig_fast.models import embedded_folder, load_model, load_tokenizer
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.tasks.rows import read_rows

PACKAGE = Path(culnig_fast.__file__).parent
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}


def _calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def unpickling(source: str) -> list[str]:
    """What of a source can unpickle: imports, and calls that do unless told not to."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [name for name in names if name.split(".")[0] in UNPICKLERS]
    for name, call in _calls(tree):
        last = name.rpartition(".")[2]
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name in ("torch.load", "np.load", "numpy.load", "pd.read_pickle", "yaml.load", "torch.jit.load"):
            found.append(name)
        if keywords.get("allow_pickle", "False") != "False":
            found.append(f"{name}(allow_pickle)")
        if last == "from_pretrained" and "Model" in name and keywords.get("use_safetensors") != "True":
            found.append(f"{name} without use_safetensors")
        if keywords.get("trust_remote_code") == "True":
            found.append(f"{name}(trust_remote_code)")
    return found


def test_the_package_has_nothing_that_unpickles() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        assert not unpickling(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "np.load('x', allow_pickle=True)",
        "AutoModelForCausalLM.from_pretrained('x')",
        "AutoTokenizer.from_pretrained('x', trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert unpickling(source)


def test_every_loader_passes_on_that_remote_code_is_not_trusted() -> None:
    """A loader of transformers that is told nothing asks on the terminal, or trusts; every one here is told."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, call in _calls(ast.parse(path.read_text(encoding="utf-8"))):
            if name.rpartition(".")[2] == "from_pretrained" and name.startswith("Auto"):
                assert "trust_remote_code" in {keyword.arg for keyword in call.keywords}, (path, name)


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_pickled_weights_are_refused_with_a_remedy(tmp_path: Path) -> None:
    folder, mark = tmp_path / "model", tmp_path / "mark"
    folder.mkdir()
    for path in embedded_folder("model").iterdir():
        if path.suffix != ".safetensors" and path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    torch.save({"weight": _Bomb(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(CulnigError, match=r"pickled weights, which could run code.*save_pretrained"):
        load_model(str(folder), device="cpu")
    assert not mark.exists()


def test_code_beside_a_checkpoint_does_not_run_unasked(tmp_path: Path) -> None:
    folder, mark = tmp_path / "model", tmp_path / "mark"
    folder.mkdir()
    for path in embedded_folder("model").iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass C: pass\n"
    (folder / "modeling.py").write_text(code)
    own = {"AutoConfig": "modeling.C", "AutoModelForCausalLM": "modeling.C", "AutoTokenizer": ["modeling.C", None]}
    for name in ("config.json", "tokenizer_config.json"):
        value = json.loads((folder / name).read_text())
        value |= {"auto_map": own, "model_type": "never_heard_of", "tokenizer_class": "Unheard"}
        (folder / name).write_text(json.dumps(value))
    with pytest.raises(CulnigError):
        load_model(str(folder), device="cpu")
    with pytest.raises(CulnigError):
        load_tokenizer(folder)
    assert not mark.exists()


def test_a_folder_with_a_loading_script_or_a_pickle_does_not_run_it(tmp_path: Path) -> None:
    folder, mark = tmp_path / "data", tmp_path / "mark"
    folder.mkdir()
    (folder / "data.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    with pytest.raises(CulnigError):
        read_rows(folder)
    (folder / "data.py").unlink()
    (folder / "x.pkl").write_bytes(pickle.dumps(_Bomb(mark)))
    with pytest.raises(CulnigError):
        read_rows(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("neuron", "words"),
    [
        (("mlp.gate_proj", 2, 0), "layer 2"),
        (("mlp.gate_proj", 10**9, 0), "layer 1000000000"),
        (("mlp.gate_proj", 1, 48), r"0…47"),
        (("self_attn.k_proj", 0, 16), r"0…15"),
        (("mlp.gate_proj", 0, 2**62), r"0…47"),
    ],
)
def test_indices_are_checked_before_anything_is_hooked(neuron: tuple[str, int, int], words: str) -> None:
    model = build("llama")
    names, layers, columns = zip(("mlp.gate_proj", 0, 1), neuron, strict=True)
    wanted = NeuronSet(names, layers, columns, [0.5, 0.25])
    inside = []
    with pytest.raises(CulnigError, match=words), suppress(model, wanted):
        inside.append(True)
    assert not inside
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_module_that_the_model_lacks_is_refused_before_anything_is_hooked() -> None:
    model = build("nemotron_plain")
    with (
        pytest.raises(CulnigError, match=r"mlp\.gate_proj"),
        suppress(model, NeuronSet(("mlp.up_proj", "mlp.gate_proj"), [0, 0], [0, 0], [0.5, 0.5])),
    ):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
