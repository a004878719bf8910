"""Which models can be trained here? Tries a tiny random model of every text architecture in transformers.

Each is built from its configuration, 32 wide, with random weights. The plain path and the fast path then sample from it
and compute its gradients. What is compared: the greedy tokens of both paths, the log-probs of sampling and of learning,
each row in its padded batch with the row alone, and the gradients.

The list is transformers' own (AutoModelForCausalLM). It holds more than models that answer questions: decoders of
translation and speech models, encoders that can be run as decoders.

    python -m analysis.models                  all, 20 minutes: writes results/models.csv, prints docs/models.md's table
    python -m analysis.models qwen3_5 lfm2     only these, printed
"""

from __future__ import annotations

import csv
import math
import sys
import warnings
from collections import defaultdict
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as hf_logging

import fast
import rollout
from fast.learning import one_pass_works
from fast.sampling import sampling_works
from harness.console import first_line, progress
from harness.trial import trouble_of
from harness.warm_start import build_tokenizer
from policy import Policy
from tasks import solve

ROOT = Path(__file__).resolve().parent.parent
CSV, PAGE = ROOT / "results" / "models.csv", ROOT / "docs" / "models.md"
PATHS = (rollout, fast)
TOKENIZER = build_tokenizer()
PROBLEMS = [solve("1+2=", "1"), solve("12+13-14+15=", "3"), solve("7-5=", "1")]

# how large a setting is here -> its names in the configurations
SIZES = {
    len(TOKENIZER): "vocab_size vocab_size_per_layer_input unpadded_vocab_size decoder_vocab_size",
    256: "n_positions max_position_embeddings n_ctx max_seq_len max_target_positions model_max_length context_length",
    64: """intermediate_size moe_intermediate_size decoder_ffn_dim encoder_ffn_dim ffn_dim ffn_hidden_size n_inner dff
        shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size dim_ff feed_forward_size d_inner
        moe_shared_expert_intermediate_size dense_intermediate_size intermediate_size_mlp
        shared_experts_intermediate_size""",
    32: """hidden_size d_model n_embd embedding_size word_embed_proj_dim lru_width input_embedding_size emb_dim
        output_embedding_size attention_hidden_size embedding_dim""",
    16: "qk_head_dim kv_lora_rank q_lora_rank o_lora_rank",
    12: """sliding_window sliding_window_size attention_window_size attention_chunk_size window_size local_attention""",
    8: """head_dim swa_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim index_head_dim kv_channels
        attention_head_dim attention_head_size v_head_dim qk_nope_head_dim qk_rope_head_dim global_head_dim
        mamba_n_heads mamba_num_heads mamba_d_head mamba_headdim mamba_head_dim mamba_d_state state_size ssm_state_size
        mamba_chunk_size chunk_size hidden_size_per_layer_input laurel_rank""",
    4: """num_hidden_layers n_layer n_layers decoder_layers encoder_layers num_layers num_blocks num_encoder_layers
        num_decoder_layers num_attention_heads n_head n_heads num_heads decoder_attention_heads attention_heads
        encoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads
        linear_num_key_heads linear_num_value_heads linear_num_heads index_n_heads num_experts n_routed_experts
        num_local_experts moe_num_experts rotary_dim""",
    2: """num_key_value_heads num_kv_heads swa_num_key_value_heads num_query_groups num_experts_per_tok moe_topk moe_k
        num_experts_per_token num_kv_shared_layers""",
    1: "n_group topk_group num_expert_group first_k_dense_replace",
}
SIZE = {name: size for size, names in SIZES.items() for name in names.split()}
SIZE |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "is_decoder": True}
# settings whose None means: computed from other settings
FOLLOWS = {"head_dim", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "num_experts"}
FOLLOWS |= {"num_key_value_heads"}
WINDOWS, CONVOLUTIONS = (["sliding_attention", "full_attention"] * 2, ["conv", "full_attention"] * 2)
LINEAR = ["linear_attention", "full_attention"] * 2
INDEXER = ["indexer_n_heads", "indexer_kv_heads", "indexer_head_dim", "indexer_budget", "indexer_compress_ratio"]
ZAMBA = {"attention_hidden_size": 64, "attention_head_dim": 16}
# what else a configuration needs to be valid at these sizes
MORE: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4}, "ffn_config": {"ffn_hidden_size": 64}},
    "dory": {"n_input_layers": 1, "n_output_layers": 1},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": WINDOWS, "intermediate_size": 64},
    "gemma4_text": {"layer_types": WINDOWS},
    "gemma4_unified_text": {"layer_types": WINDOWS},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": LINEAR},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": LINEAR},
    "lfm2": {"layer_types": CONVOLUTIONS},
    "lfm2_moe": {"layer_types": CONVOLUTIONS},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": dict.fromkeys(INDEXER, 8) | {"indexer_kv_heads": 1, "indexer_compress_ratio": 4},
    "reformer": {"axial_pos_embds": False},
    "roc_bert": {"shape_vocab_size": 9, "pronunciation_vocab_size": 9},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_key_value_heads": 4, "attn_layer_period": 2, "attn_layer_offset": 0, **ZAMBA},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "n_mamba_heads": 8, **ZAMBA},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The configuration of a model of this type with about 0.1 M parameters."""
    cls = CONFIG_MAPPING[model_type]
    return cls(**_sizes(cls))


def _sizes(cls: type[PreTrainedConfig]) -> dict[str, Any]:
    """The settings in SIZE that this configuration has; the same for configurations inside it."""
    try:
        usual = cls().to_dict()
    except Exception:  # its own defaults are not valid
        usual = dict.fromkeys(SIZE, 0)
    sizes = {}
    for name, value in usual.items():
        if name in SIZE and not isinstance(value, list | dict) and (value is not None or name in FOLLOWS):
            sizes[name] = SIZE[name]
        elif name in (cls.sub_configs or {}) and isinstance(value, dict) and value.get("model_type") in CONFIG_MAPPING:
            sizes[name] = _sizes(CONFIG_MAPPING[value["model_type"]]) | {"model_type": value["model_type"]}
    if "kv_lora_rank" in usual:  # one latent for all heads: none of them share keys
        sizes["num_key_value_heads"] = SIZE["num_attention_heads"]
    return sizes | MORE.get(cls.model_type, {})


def tiny(model_type: str) -> Policy:
    """A policy over the built-in task's characters; its random weights are so large that every part matters."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return Policy(model, TOKENIZER)


# ---------------------------------------------------------------------------------------- trying out


@dataclass(frozen=True)
class Result:
    """How sampling and learning work for a family, and how far the two paths and a row alone are apart."""

    family: str
    sampling: str = ""  # fast, plain
    learning: str = ""  # in one pass, by rows
    log_probs: float | None = None  # greatest difference between the paths, sampling and learning, and rows alone
    gradients: float | None = None  # of the fast path, as a share of their norm
    trouble: str = ""  # why it cannot be trained here, or was not tried

    @property
    def kind(self) -> str:
        if self.trouble:
            what, why = self.trouble.split(": ")[:2]
            return "not tried" if what == "not tried" else f"{what}: {why}"
        if not self.log_probs < 1e-3:
            return "wrong: what is sampled is not what is learned"
        return f"sampling {self.sampling}, learning {self.learning}"


def try_out(family: str) -> Result:
    """Tries one family, in a few seconds. An error in sampling or learning is raised: there should be none."""
    try:
        if (size := parameters(family)) > 2e7:
            return Result(family, trouble=f"not tried: {size / 1e6:.0f} M parameters even so")
        policy = tiny(family)
    except Exception as error:  # whatever a configuration raises
        return Result(family, trouble=f"not tried: {first_line(error)}")
    if trouble := trouble_of(policy):
        return Result(family, trouble=f"refused: {trouble}")
    how = {
        "sampling": "fast" if sampling_works(policy) else "plain",
        "learning": "in one pass" if one_pass_works(policy) else "by rows",
    }
    return Result(family, **how, **differences(policy))


def parameters(family: str) -> int:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny_config(family)).num_parameters()


def differences(policy: Policy) -> dict[str, float]:
    """Greatest differences of log-probs and of gradients; infinite where greedy tokens differ."""
    greedy = [path.sample_groups(policy, PROBLEMS, [1, 2, 1], 24, greedy=True).tokens.tolist() for path in PATHS]
    rows, off = torch.arange(6), 0.0 if greedy[0] == greedy[1] else math.inf
    gradients = []
    for path in PATHS:
        torch.manual_seed(0)
        sampled = path.sample_groups(policy, PROBLEMS, [2, 2, 2], 24)
        alone = torch.zeros_like(sampled.logp)
        for row in rows:
            one, t = sampled.select(rows[row : row + 1]), int(sampled.lengths[row])
            prompt = one.prompt_ids[one.group[0]][one.prompt_mask[one.group[0]]]
            with torch.no_grad():
                logits = policy.model(torch.cat([prompt, one.tokens[0, :t]])[None], use_cache=False).logits
            alone[row, :t] = rollout.logp_and_entropy(logits[:, -t - 1 : -1], one.tokens[:, :t], 1.0)[0][0]
        off = max(off, float((sampled.logp - alone).abs().max()))
        for learner in PATHS:
            policy.model.zero_grad()
            logp, _ = learner.token_logprobs(policy, sampled, rows)
            logp.sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]))
            off = max(off, float((logp.detach() - sampled.logp).abs().max()))
    apart = [float((fast - plain).norm() / plain.norm()) for plain, fast in (gradients[:2], gradients[2:])]
    return {"log_probs": off, "gradients": max(apart)}


# ---------------------------------------------------------------------------------------- the table


def table(results: list[Result]) -> str:
    """Markdown: a row for each kind of result, with the families that have it."""
    kinds = defaultdict(list)
    for result in results:
        kinds[result.kind].append(result.family)
    lines = ["| result | how many | families |", "| --- | --- | --- |"]
    for kind in sorted(kinds, key=lambda kind: -len(kinds[kind])):
        lines.append(f"| {kind} | {len(kinds[kind])} | {', '.join(kinds[kind])} |")
    return "\n".join(lines)


def write(results: list[Result], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Result)], lineterminator="\n")
        writer.writeheader()
        for result in results:
            writer.writerow({k: f"{v:.1e}" if isinstance(v, float) else v for k, v in asdict(result).items()})


def read(path: Path) -> list[Result]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = ("log_probs", "gradients")
    return [Result(**row | {name: float(row[name]) if row[name] else None for name in numbers}) for row in rows]


def main() -> None:
    warnings.simplefilter("ignore")
    hf_logging.set_verbosity_error()
    torch.set_num_threads(1)
    families = sys.argv[1:] or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    results = []
    for family in progress(families, unit="model"):
        results.append(try_out(family))
        if sys.argv[1:]:
            print(results[-1])
    print(table(results))
    if not sys.argv[1:]:
        write(results, CSV)


if __name__ == "__main__":
    main()
