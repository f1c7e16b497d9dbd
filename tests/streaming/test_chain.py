"""Models whose layers do not simply follow one another are refused, not scored wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from saved import save
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf


@pytest.mark.parametrize("how", ["scaled between layers", "earlier output as an argument"])
def test_layers_that_do_not_follow_one_another(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "llama")
    call = LlamaDecoderLayer.__call__
    seen: list[Any] = []

    def changed(self: Any, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        if how.startswith("scaled"):
            return call(self, hidden * 0.5, *args, **kwargs)
        seen.append(hidden)
        return call(self, hidden, *args, **{"earlier": seen[-2] if len(seen) > 1 else hidden, **kwargs})

    monkeypatch.setattr(LlamaDecoderLayer, "__call__", changed)
    with pytest.raises(cf.CulnigError, match="cannot be streamed layer by layer"):
        cf.attribute_streamed(tmp_path, make_tokenizer(), make_questions(4), progress=False)
