"""What each family sets beside the common sizes of tiny models: its own twists, strong enough to count."""

from __future__ import annotations

from typing import Any

_WINDOW: dict[str, Any] = {"sliding_window": 8}
_ONE_OF_EACH = {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
# The default grouped kernel has no fp64, which tests that compare gradients like to use.
_EXPERTS: dict[str, Any] = {
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "experts_implementation": "eager",
}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
_DEEPSEEK = {
    **_LATENT,
    **_EXPERTS,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}

# Attention and nothing but attention between tokens: any layout of batches serves them.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    # Layer 0 sees everything, layer 1 the last eight tokens only.
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": {"head_dim": 16},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "phi": {},
    "gemma2": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "attn_logit_softcapping": 5.0,
        # Raw logits have a standard deviation of about 3 here, so the cap bends most of them.
        "final_logit_softcapping": 5.0,
        "initializer_range": 0.4,
    },
    "mixtral": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "output_router_logits": True,
        "router_aux_loss_coef": 0.1,
        "experts_implementation": "eager",
        "sliding_window": 8,
    },
    "cohere": {"logit_scale": 0.5},
    "granite": {
        "logits_scaling": 0.5,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.5,
    },
    "apertus": {},
    "arcee": {},
    "biogpt": {},
    "bitnet": {},
    "cohere2": {**_ONE_OF_EACH, "logit_scale": 0.5},
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "ernie4_5": {"head_dim": 16},
    "ernie4_5_moe": {**_EXPERTS, "moe_num_experts": 4, "moe_k": 2},
    "exaone4": {**_ONE_OF_EACH, "head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma3_text": {**_ONE_OF_EACH, "head_dim": 16, "query_pre_attn_scalar": 16},
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "glm4_moe": {**_EXPERTS, "n_routed_experts": 4, "head_dim": 16, "first_k_dense_replace": 1},
    "gpt_bigcode": {"multi_query": True},
    "gpt_neox": {"rotary_pct": 0.5},
    "gpt_oss": {**_ONE_OF_EACH, **_EXPERTS, "num_local_experts": 4, "head_dim": 16},
    "granitemoe": {**_EXPERTS, "num_local_experts": 4, "logits_scaling": 0.5, "attention_multiplier": 0.2},
    "helium": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "ministral": {**_ONE_OF_EACH, "head_dim": 16},
    "ministral3": {"head_dim": 16},
    "minimax_m2": {**_EXPERTS, "num_local_experts": 4, "head_dim": 16},
    "nanochat": {},
    "nemotron": {},
    "olmo": {"clip_qkv": 1.0},
    "olmo2": {},
    "olmo3": _ONE_OF_EACH,
    "olmoe": {**_EXPERTS, "num_experts": 4},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "phi3": _WINDOW,
    "qwen2_moe": {**_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**_EXPERTS, "num_experts": 4, "head_dim": 16},
    "seed_oss": {"head_dim": 16},
    "smollm3": {"no_rope_layers": [1, 0]},
    "stablelm": {},
    "starcoder2": _WINDOW,
    "vaultgemma": {**_ONE_OF_EACH, "head_dim": 16, "query_pre_attn_scalar": 16},
}

_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_SSM = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_d_ssm": 128}

# Tokens meet elsewhere, or attention goes its own way: padded rows only.
PADDED_ONLY: dict[str, dict[str, Any]] = {
    "bamba": {**_SSM, "attn_layer_indices": [1]},
    "bloom": {"n_head": 4, "n_layer": 2},
    "codegen": {"rotary_dim": 8},
    # It makes a mask of its own out of the values.
    "doge": {"num_key_value_heads": 2},
    "falcon": {"alibi": False, "num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon_h1": {**_SSM, "head_dim": 16},
    "gptj": {"rotary_dim": 8},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "use_mamba_kernels": False,
        "mamba_dt_rank": 4,
        "mamba_d_state": 8,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {
        "head_dim": 16,
        "num_local_experts": 2,
        "intermediate_size_mlp": 128,
        "layer_types": ["chunked_attention", "full_attention"],
        "attention_chunk_size": 8,
    },
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 32, "n_groups": 1, "chunk_size": 8},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    # Its window is in the mask alone; attention is not told.
    "phimoe": {**_WINDOW, **_EXPERTS, "num_local_experts": 4},
    "qwen3_5_text": _LINEAR,
    "qwen3_next": {**_LINEAR, **_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32},
    "recurrent_gemma": {
        "block_types": ["recurrent", "attention"],
        "lru_width": 64,
        "attention_window_size": 8,
    },
    "rwkv": {"attention_hidden_size": 64, "context_length": 256},
}
