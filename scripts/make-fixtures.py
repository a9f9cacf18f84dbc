"""Makes the tiny random checkpoints of test/fixtures/tiny, LLaMA and kin, with transformers' answers.

usage: make-fixtures.py OUT [NAME ...]   (needs torch, transformers and safetensors; the package itself needs none of them)

Each folder OUT/<name> holds config.json (written here key by key, so that every spelling in the field
is met), the weights in safetensors, and golden.safetensors with

    input_ids      I32 [T]         random tokens
    logits         F32 [T, V]      the family's model in float32 on the stored, rounded weights
    hidden.0 .. L  F32 [T, C]      embedding output, each block's output; the last one after the final norm
    rope.inv_freq  F32 [D / 2]     and rope.cos, rope.sin F32 [T, D / 2]

Folders with `config.old.json` carry the same model in the spelling of transformers 4; the script
checks that both spellings give the same logits.
"""

import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

TOKENS = 40
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "bos_token_id": 0,
    "dtype": "float32",
    "eos_token_id": 1,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 72,
    "max_position_embeddings": 64,
    "mlp_bias": False,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 96,
}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# What BASE has and the other families do not know, and keys in the spelling of their published files.
NOT_THEIRS = ("attention_bias", "mlp_bias")
OLD_KEYS = ("rope_parameters", "dtype")
MISTRAL = dict(architectures=["MistralForCausalLM"], model_type="mistral", tie_word_embeddings=False)
QWEN2 = dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", rms_norm_eps=1e-6)
QWEN3 = dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", rms_norm_eps=1e-6, head_dim=16)

# name -> (changes to BASE, keys dropped from it, bytes of a shard)
MODELS = {
    "biases": (dict(attention_bias=True, mlp_bias=True), (), None),
    "gqa": (dict(hidden_size=64, intermediate_size=112, num_attention_heads=8, num_key_value_heads=2, dtype="float16",
                 rms_norm_eps=1e-6), (), None),
    "head-dim": (dict(hidden_size=40, num_attention_heads=4, num_key_value_heads=2, head_dim=16, dtype="bfloat16"), (), None),
    "untied": (dict(tie_word_embeddings=False, vocab_size=128, dtype="float16", num_key_value_heads=1), (), None),
    "rope-linear": (dict(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}), (), None),
    "rope-llama3": (dict(hidden_size=64, head_dim=16, intermediate_size=80, num_key_value_heads=2, max_position_embeddings=512,
                         rope_parameters={**LLAMA3, "rope_theta": 10000.0}), (), None),
    # what transformers 4 wrote: no head_dim, no bias keys, rope keys apart, torch_dtype
    "old-keys": (dict(hidden_size=48, num_attention_heads=3, num_key_value_heads=3, torch_dtype="float16", rope_theta=500000.0,
                      rope_scaling=None, pretraining_tp=1, transformers_version="4.31.0"),
                 ("rope_parameters", "dtype", "attention_bias", "mlp_bias"), None),
    "sharded": (dict(hidden_size=48, num_attention_heads=6, num_key_value_heads=2, dtype="bfloat16", attention_bias=True,
                     tie_word_embeddings=False), (), 32_000),
    # windows as long as the golden sequence: the last token of it is the last that sees all others
    "mistral": (dict(MISTRAL, hidden_size=40, head_dim=16, num_key_value_heads=2, sliding_window=None, torch_dtype="bfloat16",
                     rope_theta=1e6), NOT_THEIRS + OLD_KEYS, None),
    "mistral-window": (dict(MISTRAL, hidden_size=64, intermediate_size=96, num_key_value_heads=1, sliding_window=TOKENS,
                            dtype="float16"), NOT_THEIRS, None),
    "qwen2": (dict(QWEN2, hidden_size=64, num_key_value_heads=2, use_sliding_window=False, sliding_window=8,
                   max_window_layers=1, torch_dtype="bfloat16", rope_theta=1e6), NOT_THEIRS + OLD_KEYS, None),
    "qwen2-window": (dict(QWEN2, hidden_size=64, intermediate_size=96, tie_word_embeddings=False, use_sliding_window=True,
                          sliding_window=TOKENS, max_window_layers=1), NOT_THEIRS, None),
    "qwen3": (dict(QWEN3, hidden_size=40, num_key_value_heads=2, use_sliding_window=False, sliding_window=None,
                   max_window_layers=2, torch_dtype="bfloat16", rope_theta=1e6, rope_scaling=None),
              ("mlp_bias",) + OLD_KEYS, None),
    "qwen3-biases": (dict(QWEN3, hidden_size=64, intermediate_size=96, num_key_value_heads=1, attention_bias=True,
                          tie_word_embeddings=False, dtype="float16"), ("mlp_bias",), None),
}


def old_spelling(config):
    """The same config as transformers 4 wrote it."""
    old = dict(config)
    rope = dict(old.pop("rope_parameters"))
    old["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] == "linear":
        rope["type"] = rope.pop("rope_type")
    old["rope_scaling"] = rope
    old["torch_dtype"] = old.pop("dtype")
    return old


def randomize(model, generator):
    """Weights large enough that every term of the forward pass shows in the logits; gains and biases too."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name:
                p.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                p.copy_(0.2 * noise)
            elif "embed_tokens" in name:
                p.copy_(0.4 * noise)
            else:
                p.copy_(0.2 * noise)


def golden(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        out = model(ids[None], output_hidden_states=True, use_cache=False)
        cos, sin = model.model.rotary_emb(out.logits, torch.arange(TOKENS)[None])
    half = cos.shape[-1] // 2
    tensors = {"input_ids": ids.to(torch.int32), "logits": out.logits[0]}
    tensors.update({f"hidden.{i}": h[0] for i, h in enumerate(out.hidden_states)})
    tensors["rope.inv_freq"] = model.model.rotary_emb.inv_freq
    tensors["rope.cos"], tensors["rope.sin"] = cos[0, :, :half], sin[0, :, :half]
    return model, {k: v.detach().clone().contiguous() for k, v in tensors.items()}


def write_json(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=2, sort_keys=True)
        f.write("\n")


def make(out, index, name, changes, dropped, shard_bytes):
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    config = {k: v for k, v in {**BASE, **changes}.items() if k not in dropped}
    dtype = DTYPES[config.get("dtype") or config["torch_dtype"]]
    generator = torch.Generator().manual_seed(1000 + index)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    randomize(model, generator)
    model.to(dtype).save_pretrained(folder, **({"max_shard_size": shard_bytes} if shard_bytes else {}))
    generation = os.path.join(folder, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)
    write_json(os.path.join(folder, "config.json"), config)

    ids = torch.randint(2, config["vocab_size"], (TOKENS,), generator=generator)
    read, tensors = golden(folder, ids)
    for key, value in read.state_dict().items():
        assert torch.equal(value, model.state_dict()[key].float()), key
    if "rope_parameters" in config and config["rope_parameters"]["rope_type"] != "default":
        old = old_spelling(config)
        write_json(os.path.join(folder, "config.old.json"), old)
        shutil.copytree(folder, folder + ".old")
        write_json(os.path.join(folder + ".old", "config.json"), old)
        again = golden(folder + ".old", ids)[1]
        shutil.rmtree(folder + ".old")
        assert all(torch.equal(again[k], tensors[k]) for k in tensors), name
    save_file(tensors, os.path.join(folder, "golden.safetensors"), metadata={"format": "pt"})

    with torch.no_grad():
        exact = read.double()(ids[None], use_cache=False).logits[0]
    error = ((tensors["logits"].double() - exact).norm() / exact.norm()).item()
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    rope = read.config.rope_parameters
    print(f"{name}: {size} bytes, logits std {tensors['logits'].std():.3f}, f32 against f64 {error:.1e}, rope {rope}, "
          f"files {sorted(os.listdir(folder))}")


if __name__ == "__main__":
    for i, (model_name, spec) in enumerate(MODELS.items()):
        if model_name in sys.argv[2:] or len(sys.argv) == 2:
            make(sys.argv[1], i, model_name, *spec)
