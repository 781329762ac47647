"""Small random models of every family, in all variants that its table must describe."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import all_families, family_of
from llmshearing.huggingface.stock import complete_fields, stock_model

COMMON: dict[str, Any] = {
    "vocab_size": 37,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "attn_implementation": "sdpa",
}


@dataclass(frozen=True)
class Places:
    """Where gates act in a stock model, stated independently of the coupling table.

    `equivalence.py` places the hooks of its reference computation here.

    Attributes:
        embedding, final_norm, layers: module names in the model.
        norms, attention, mlp: names within a layer: its norms, and the last projections of
            attention and the MLP.
        writers: names within a layer: what attention and the MLP write to the residual stream
            through; by default their last projections.
        head_norms: whether q_norm and k_norm normalise all heads at once.
    """

    embedding: str
    final_norm: str
    layers: str
    norms: tuple[str, ...]
    attention: str
    mlp: str
    writers: tuple[str, ...] = ()
    head_norms: bool = False


LLAMA_PLACES = Places(
    embedding="model.embed_tokens",
    final_norm="model.norm",
    layers="model.layers",
    norms=("input_layernorm", "post_attention_layernorm"),
    attention="self_attn.o_proj",
    mlp="mlp.down_proj",
)


@dataclass(frozen=True)
class Entry:
    """What the tests need to know of a family.

    Attributes:
        kinds: config fields per kind of attention; each kind is tested tied and untied.
        places: where gates act.
        extras: further configs by name that change the table or the computation.
    """

    kinds: dict[str, dict[str, Any]]
    places: Places = LLAMA_PLACES
    extras: dict[str, dict[str, Any]] = field(default_factory=dict)


OLMO_PLACES = replace(
    LLAMA_PLACES,
    norms=(),
    writers=("post_attention_layernorm", "post_feedforward_layernorm"),
    head_norms=True,
)

GEMMA_PLACES = replace(
    LLAMA_PLACES,
    norms=("input_layernorm", "pre_feedforward_layernorm"),
    writers=("post_attention_layernorm", "post_feedforward_layernorm"),
)

MULTI_HEAD = {"num_key_value_heads": 4, "head_dim": 6}
# Four groups of two heads: no two axes have equal sizes, so none can stand in for another.
GROUPED = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}
LLAMA_KINDS = {"mha": MULTI_HEAD, "gqa": GROUPED}

WINDOWS = {
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "sliding_window": 4,
}

MULTIPLIERS = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 2.0,
    "logits_scaling": 4.0,
    "residual_multiplier": 0.6,
}

SMALL_VOCABULARY = {"pad_token_id": None}  # the default token is beyond it

ROPE = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
}

ZOO: dict[str, Entry] = {
    "llama": Entry(
        LLAMA_KINDS,
        extras={
            "biased-wide_heads": {"attention_bias": True, "mlp_bias": True, **GROUPED}
            | {"head_dim": 8},
            "one_group": {"num_key_value_heads": 1},
            **{
                # Test rows are longer than 8 tokens, from where the scalings differ.
                name: {**GROUPED, "rope_scaling": scaling}
                | ({"max_position_embeddings": 8} if name == "dynamic" else {})
                for name, scaling in ROPE.items()
            },
        },
    ),
    "mistral": Entry(LLAMA_KINDS, extras={"window": {**GROUPED, "sliding_window": 4}}),
    "qwen2": Entry(
        LLAMA_KINDS, extras={"windows": {**GROUPED, **WINDOWS, "use_sliding_window": True}}
    ),
    "qwen3": Entry(LLAMA_KINDS, extras={"biased": {**GROUPED, "attention_bias": True}}),
    "olmo2": Entry(
        LLAMA_KINDS, OLMO_PLACES, extras={"biased": {**GROUPED, "attention_bias": True}}
    ),
    "olmo3": Entry(
        {kind: {**fields, **WINDOWS} for kind, fields in LLAMA_KINDS.items()},
        OLMO_PLACES,
        extras={"yarn": {**GROUPED, **WINDOWS, "rope_scaling": ROPE["yarn"]}},
    ),
    "gemma3_text": Entry(
        {
            # Query heads of size 4 to 6: a small scalar keeps attention from being flat.
            kind: {**fields, **WINDOWS, "query_pre_attn_scalar": 7}
            for kind, fields in LLAMA_KINDS.items()
        },
        GEMMA_PLACES,
        extras={
            "biased": {**GROUPED, "attention_bias": True},
            "capped": {**GROUPED, **WINDOWS, "final_logit_softcapping": 2.0},
        },
    ),
    "smollm3": Entry(
        {
            kind: {**fields, **SMALL_VOCABULARY, "no_rope_layers": [1, 0, 1]}
            for kind, fields in LLAMA_KINDS.items()
        },
        extras={
            "windows": {**GROUPED, **SMALL_VOCABULARY, **WINDOWS, "use_sliding_window": True},
            "biased": {**GROUPED, **SMALL_VOCABULARY, "attention_bias": True, "mlp_bias": True},
        },
    ),
    "granite": Entry(
        {kind: {**fields, **MULTIPLIERS} for kind, fields in LLAMA_KINDS.items()},
        extras={"biased": {**GROUPED, "attention_bias": True, "mlp_bias": True}},
    ),
    "phi3": Entry(
        {
            kind: {**fields, **SMALL_VOCABULARY, "partial_rotary_factor": 0.7}
            for kind, fields in LLAMA_KINDS.items()
        },
        extras={
            "window": {**GROUPED, **SMALL_VOCABULARY, "sliding_window": 4},
            "longrope": {
                **MULTI_HEAD,
                **SMALL_VOCABULARY,
                "original_max_position_embeddings": 8,
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1.0, 1.5, 2.0],
                    "long_factor": [1.0, 2.0, 4.0],
                },
            },
        },
    ),
    "gpt_neox": Entry(
        {"mha": {"rotary_pct": 0.4}},
        Places(
            embedding="gpt_neox.embed_in",
            final_norm="gpt_neox.final_layer_norm",
            layers="gpt_neox.layers",
            norms=("input_layernorm", "post_attention_layernorm"),
            attention="attention.dense",
            mlp="mlp.dense_4h_to_h",
        ),
        extras={
            "sequential": {"use_parallel_residual": False, "rotary_pct": 1.0},
            "no_attention_bias": {"attention_bias": False},
        },
    ),
}


if "ministral3" in all_families():  # Transformers 5
    scaled = {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
            "max_position_embeddings": 32,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.5,
        }
    }
    ZOO["ministral3"] = Entry({kind: {**f, **scaled} for kind, f in LLAMA_KINDS.items()})


@dataclass(frozen=True)
class Variant:
    """A config of a family.

    Attributes:
        family: its `model_type`.
        name: the family and what distinguishes the variant.
        config: its fields beyond `COMMON`.
    """

    family: str
    name: str
    config: dict[str, Any]

    def __str__(self) -> str:
        return self.name

    @property
    def places(self) -> Places:
        """Where gates act in a model of this family."""
        return ZOO[self.family].places

    def stock_config(self, **changes: Any) -> Any:
        """The stock config, complete."""
        fields = {**COMMON, "model_type": self.family, **self.config, **changes}
        fields = deepcopy(fields)  # Transformers 5 changes scalings
        return AutoConfig.for_model(**fields)


def variants() -> list[Variant]:
    """Every family with each kind of attention, tied and untied."""
    return [
        Variant(
            family,
            f"{family}-{kind}-{'tied' if tied else 'untied'}",
            {**fields, "tie_word_embeddings": tied},
        )
        for family, entry in ZOO.items()
        for kind, fields in entry.kinds.items()
        for tied in (False, True)
    ]


def extras() -> list[Variant]:
    """Further options of a family, each a change to the table or to the computation."""
    return [
        Variant(family, f"{family}-{name}", fields)
        for family, entry in ZOO.items()
        for name, fields in entry.extras.items()
    ]


def missing_families() -> list[str]:
    """Registered families without an entry."""
    return sorted(all_families().keys() - ZOO.keys())


def build(variant: Variant, seed: int = 0) -> tuple[PreTrainedModel, CouplingTable]:
    """A random stock model in evaluation mode, float32, with its coupling table."""
    torch.manual_seed(seed)
    model = stock_model(variant.stock_config()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    config = complete_fields(model.config)
    return model, family_of(config).table(config)


def random_variant(seed: int) -> Variant:
    """A variant with other sizes, each at least as large as `equivalence.py` shrinks it to."""
    draw = random.Random(seed)
    chosen = draw.choice([*variants(), *extras()])
    sizes: dict[str, Any] = {
        "intermediate_size": draw.randrange(10, 40),
        "vocab_size": draw.randrange(37, 60),  # ids of tests are below 37
    }
    if not any(isinstance(value, list) for value in chosen.config.values()):  # a value per layer
        sizes["num_hidden_layers"] = draw.randrange(3, 6)
    scaling = chosen.config.get("rope_scaling") or {}
    if "head_dim" in chosen.config and "short_factor" not in scaling:  # with a value per frequency
        groups, per_group = draw.choice([4, 5]), draw.choice([2, 3])
        grouped = chosen.config.get("num_attention_heads") != chosen.config["num_key_value_heads"]
        heads = groups * per_group if grouped else groups
        sizes |= {
            "num_key_value_heads": groups,
            "num_attention_heads": heads,
            "head_dim": draw.choice([4, 6, 8]),
            "hidden_size": heads * draw.choice([4, 5]),
        }
    return Variant(chosen.family, f"{seed}-{chosen.name}", chosen.config | sizes)
