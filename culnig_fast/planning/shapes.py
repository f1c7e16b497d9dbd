"""Published configurations by name, so that a model can be planned for or timed without its files."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
}
_QWEN3 = {"rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "head_dim": 128, "vocab_size": 151936}
_QWEN3_ROPE = {"rope_type": "default", "rope_theta": 1000000.0}
_GEMMA3 = {
    "vocab_size": 262208,
    "sliding_window": 1024,
    "max_position_embeddings": 131072,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}


def _small(hidden: int, intermediate: int, layers: int, heads: int, vocabulary: int, head_dim: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": head_dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_parameters": _QWEN3_ROPE,
    }


@dataclass(frozen=True)
class Shape:
    """A model's configuration: Hugging Face model type and its settings."""

    name: str
    model_type: str
    settings: dict[str, Any]

    def config(self, layers: int | None = None) -> Any:
        """The configuration, cut to the first `layers` layers where given."""
        settings = copy.deepcopy(self.settings)
        if layers is not None:
            settings["num_hidden_layers"] = min(layers, settings["num_hidden_layers"])
        import transformers

        # The published models' own special tokens do not matter here and may lie outside a small vocabulary.
        settings |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        return transformers.AutoConfig.for_model(self.model_type, **settings)


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("micro", "qwen3", _small(16, 24, 2, 2, 64, 8)),
        Shape("tiny-narrow", "qwen3", _small(256, 768, 8, 4, 32000, 64)),
        Shape("tiny", "qwen3", _small(512, 1536, 8, 8, 32000, 64)),
        Shape("tiny-wide", "qwen3", _small(768, 2304, 8, 12, 32000, 64)),
        Shape(
            "qwen3-0.6b",
            "qwen3",
            {
                **_QWEN3,
                "hidden_size": 1024,
                "intermediate_size": 3072,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "tie_word_embeddings": True,
                "rope_parameters": _QWEN3_ROPE,
            },
        ),
        Shape(
            "llama-3.1-8b",
            "llama",
            {
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "vocab_size": 128256,
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": False,
                "rope_parameters": _LLAMA3_ROPE,
            },
        ),
        Shape(
            "falcon3-10b",
            "llama",
            {
                "hidden_size": 3072,
                "intermediate_size": 23040,
                "num_hidden_layers": 40,
                "num_attention_heads": 12,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "vocab_size": 131072,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": False,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1000042.0},
            },
        ),
        Shape(
            "gemma-3-12b",
            "gemma3_text",
            {
                **_GEMMA3,
                "hidden_size": 3840,
                "intermediate_size": 15360,
                "num_hidden_layers": 48,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 256,
                "query_pre_attn_scalar": 256,
                "rope_parameters": _GEMMA3_ROPE,
            },
        ),
        Shape(
            "phi-4",
            "phi3",
            {
                "hidden_size": 5120,
                "intermediate_size": 17920,
                "num_hidden_layers": 40,
                "num_attention_heads": 40,
                "num_key_value_heads": 10,
                "vocab_size": 100352,
                "max_position_embeddings": 16384,
                "original_max_position_embeddings": 16384,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": False,
                "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0},
            },
        ),
        Shape(
            "qwen3-14b",
            "qwen3",
            {
                **_QWEN3,
                "hidden_size": 5120,
                "intermediate_size": 17408,
                "num_hidden_layers": 40,
                "num_attention_heads": 40,
                "num_key_value_heads": 8,
                "tie_word_embeddings": False,
                "rope_parameters": _QWEN3_ROPE,
            },
        ),
        Shape(
            "qwen3-30b-a3b",
            "qwen3_moe",
            {
                **_QWEN3,
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "moe_intermediate_size": 768,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "num_hidden_layers": 48,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
                "tie_word_embeddings": False,
                "rope_parameters": _QWEN3_ROPE,
            },
        ),
        Shape(
            "mixtral-8x7b",
            "mixtral",
            {
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_local_experts": 8,
                "num_experts_per_tok": 2,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "vocab_size": 32000,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": False,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            },
        ),
        Shape(
            "gpt-oss-20b",
            "gpt_oss",
            {
                "hidden_size": 2880,
                "intermediate_size": 2880,
                "num_local_experts": 32,
                "num_experts_per_tok": 4,
                "num_hidden_layers": 24,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
                "head_dim": 64,
                "vocab_size": 201088,
                "sliding_window": 128,
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": False,
                "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
            },
        ),
        Shape(
            "gemma-3-27b",
            "gemma3_text",
            {
                **_GEMMA3,
                "hidden_size": 5376,
                "intermediate_size": 21504,
                "num_hidden_layers": 62,
                "num_attention_heads": 32,
                "num_key_value_heads": 16,
                "head_dim": 128,
                "query_pre_attn_scalar": 168,
                "rope_parameters": _GEMMA3_ROPE,
            },
        ),
    )
}
"""`micro` is for the benchmark's own test, the `tiny` ones for a CPU, the rest are published models."""

OF_PRESET = {
    "Falcon3-10B-Instruct": "falcon3-10b",
    "Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "Qwen3-14B": "qwen3-14b",
    "gemma-3-12b-it": "gemma-3-12b",
    "gemma-3-27b-it": "gemma-3-27b",
    "phi-4": "phi-4",
}
"""The shape of each preset's model; the text decoder alone where the published model also sees images."""
