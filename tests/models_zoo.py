"""Small random models of every registered family, in the variants that the table must describe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import all_families, family_of

COMMON: dict[str, Any] = {
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "attn_implementation": "sdpa",
}


@dataclass(frozen=True)
class Variant:
    """One config of one family."""

    name: str
    config: dict[str, Any]

    def __str__(self) -> str:
        return self.name


def variants() -> list[Variant]:
    """Every family, multi-head and grouped, tied and untied, with and without biases."""
    found = []
    for family in sorted(all_families()):
        for groups in (4, 2):
            for tied in (False, True):
                shared = {
                    "model_type": family,
                    "num_key_value_heads": groups,
                    "tie_word_embeddings": tied,
                    "head_dim": 6,
                }
                kind = f"{'mha' if groups == 4 else 'gqa'}-{'tied' if tied else 'untied'}"
                found.append(Variant(f"{family}-{kind}", shared))
    biased = {"attention_bias": True, "mlp_bias": True, "head_dim": 8, "num_key_value_heads": 2}
    found.append(Variant("llama-biased-head_dim", {"model_type": "llama", **biased}))
    return found


def build(variant: Variant, seed: int = 0) -> tuple[PreTrainedModel, CouplingTable]:
    """A random model in evaluation mode, float32, with its coupling table."""
    config = AutoConfig.for_model(**{**COMMON, **variant.config})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model, family_of(config.to_dict()).table(config.to_dict())
