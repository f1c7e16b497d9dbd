"""Tiny random models of every family that the tests run on, built from configurations alone."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

VOCABULARY = 64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where `placed` models lie: the tests that run on a GPU too are made with them."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4}


def _gemma3_multimodal() -> tf.PretrainedConfig:
    text = {**_COMMON, **_GEMMA, "layer_types": ["sliding_attention", "full_attention"]}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    return tf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)


LISTED: dict[str, Any] = {
    "llama": lambda: tf.LlamaConfig(**_COMMON),
    "mistral": lambda: tf.MistralConfig(**_COMMON, sliding_window=4, head_dim=8),
    "qwen2": lambda: tf.Qwen2Config(**_COMMON),
    "qwen3": lambda: tf.Qwen3Config(**_COMMON, head_dim=16),
    "gemma2": lambda: tf.Gemma2Config(**{**_COMMON, **_GEMMA, "tie_word_embeddings": True}),
    "gemma3": lambda: tf.Gemma3TextConfig(**{**_COMMON, **_GEMMA}, layer_types=["sliding_attention", "full_attention"]),
    "gemma3_multimodal": _gemma3_multimodal,
    "phi3": lambda: tf.Phi3Config(**_COMMON),
}
"""The families that the project promises, by short name."""

UNLISTED: dict[str, Any] = {
    "olmo2": lambda: tf.Olmo2Config(**_COMMON),
    "glm4_fused_gate_up": lambda: tf.Glm4Config(**_COMMON, head_dim=8),
    "granite": lambda: tf.GraniteConfig(**_COMMON),
    "cohere_parallel": lambda: tf.CohereConfig(**_COMMON),
    "smollm3": lambda: tf.SmolLM3Config(**_COMMON),
    "starcoder2_plain": lambda: tf.Starcoder2Config(**_COMMON),
    "nemotron_plain": lambda: tf.NemotronConfig(**_COMMON),
    "phi2_parallel_plain": lambda: tf.PhiConfig(**_COMMON),
    "opt_plain": lambda: tf.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        init_std=0.3,
    ),
    "gpt2_conv1d_fused": lambda: tf.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_inner=48,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.3,
    ),
    "cohere_norm_of_each_head": lambda: tf.CohereConfig(**_COMMON, use_qk_norm=True),
    "gpt_neox_head_after_head": lambda: tf.GPTNeoXConfig(**{**_COMMON, "num_key_value_heads": 4}),
    "falcon_group_after_group": lambda: tf.FalconConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        ffn_hidden_size=48,
        new_decoder_architecture=True,
        initializer_range=0.3,
    ),
    "codegen_two_heads_together": lambda: tf.CodeGenConfig(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_inner=48,
        n_layer=2,
        n_head=8,
        n_positions=128,
        rotary_dim=4,
        initializer_range=0.3,
    ),
    "openai_gpt_lists": lambda: tf.OpenAIGPTConfig(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3
    ),
    "bert_transforms_before_the_head": lambda: tf.BertConfig(**{**_COMMON, "num_key_value_heads": 4}, is_decoder=True),
    "modernbert_decoder_is_the_head": lambda: tf.ModernBertDecoderConfig(
        **{**_COMMON, "num_key_value_heads": 4, "tie_word_embeddings": True}, local_attention=8
    ),
    "ctrl_scales_in_place": lambda: tf.CTRLConfig(
        vocab_size=VOCABULARY, n_embd=32, dff=128, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3
    ),
}
"""Families nobody listed, whose structure is there all the same."""

MIXTURES: dict[str, Any] = {
    "mixtral": lambda: tf.MixtralConfig(**_COMMON, num_local_experts=4),
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(
        **_COMMON, head_dim=16, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24
    ),
    "gpt_oss": lambda: tf.GptOssConfig(
        **_COMMON, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=4
    ),
    "qwen2_moe": lambda: tf.Qwen2MoeConfig(
        **_COMMON,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=40,
    ),
}
"""Mixtures of experts: plain, small, with biases and interleaved gates, with a shared expert."""

PART_MIXTURES: dict[str, Any] = {
    "qwen3_moe_dense_first": lambda: tf.Qwen3MoeConfig(
        **_COMMON, head_dim=16, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, mlp_only_layers=[0]
    ),
}
"""Mixtures with a layer that is none."""

REFUSED: dict[str, Any] = {
    "llama4_every_token_at_every_expert": lambda: tf.Llama4TextConfig(
        **_COMMON, intermediate_size_mlp=48, num_local_experts=4, head_dim=8
    ),
    "mamba": lambda: tf.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2),
    "mllama_layers_for_pictures": lambda: tf.MllamaConfig(text_config={**_COMMON, "cross_attention_layers": [1]}),
    "zaya_values_of_the_token_before": lambda: tf.ZayaConfig(
        **_COMMON, head_dim=8, num_experts=4, num_experts_per_tok=1
    ),
    "cpmant_tokens_put_in_front": lambda: tf.CpmAntConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_attention_heads=4, dim_head=8, dim_ff=48, num_hidden_layers=2
    ),
    "xlstm_no_heads": lambda: tf.xLSTMConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_heads=4, num_blocks=2, num_hidden_layers=2, return_last_states=True
    ),
    "lfm2_own_width": lambda: tf.Lfm2Config(**_COMMON, layer_types=["full_attention", "full_attention"]),
    "granite_moe_shared_outside": lambda: tf.GraniteMoeHybridConfig(
        **_COMMON,
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=40,
        mamba_n_heads=8,
        layer_types=["attention", "attention"],
    ),
    "gemma4_mlp_beside_experts": lambda: tf.Gemma4TextConfig(
        **{**_COMMON, "vocab_size_per_layer_input": VOCABULARY},
        head_dim=8,
        global_head_dim=8,
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=24,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gemma4_inputs_a_layer": lambda: tf.Gemma4TextConfig(
        **{**_COMMON, "vocab_size_per_layer_input": VOCABULARY},
        head_dim=8,
        global_head_dim=8,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "rwkv_mixes_time": lambda: tf.RwkvConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2),
    "recurrent_gemma_gates": lambda: tf.RecurrentGemmaConfig(**_COMMON, head_dim=8, attention_window_size=4),
    "reformer_no_backward": lambda: tf.ReformerConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        feed_forward_size=48,
        num_attention_heads=4,
        attention_head_size=8,
        attn_layers=["local", "local"],
        axial_pos_embds=False,
        max_position_embeddings=128,
        local_attn_chunk_length=4,
        is_decoder=True,
    ),
}
"""Families whose neurons cannot be told apart, or only in part."""


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A model of the named family with random weights, in evaluation mode."""
    config = {**LISTED, **UNLISTED, **MIXTURES, **PART_MIXTURES, **REFUSED}[name]()
    torch.manual_seed(seed)
    if isinstance(config, tf.Gemma3Config):
        model = tf.Gemma3ForConditionalGeneration(config)
    else:
        model = tf.AutoModelForCausalLM.from_config(config)
    if name in MIXTURES:
        if dtype == torch.float64:  # grouped products know no float64
            model.set_experts_implementation("eager")
        with torch.no_grad():  # biases begin at 0, where a wrong one would not be seen
            for path, parameter in model.named_parameters():
                if path.endswith("bias"):
                    parameter.normal_(std=0.3)
    return model.to(dtype).eval()


def placed(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """The same on a GPU, where there is one."""
    return build(name, dtype, seed).to(DEVICE)
