"""What the rest of the code needs to know of a model family, and the check of config fields."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.config_values import value_error
from llmshearing.architecture.coupling import CouplingTable, Dim, Row
from llmshearing.architecture.rope import ROPE_NAMES, rope_error
from llmshearing.architecture.shape import Shape
from llmshearing.architecture.stock_code import names_in_stock_code
from llmshearing.errors import UserError

log = logging.getLogger(__name__)

# Fields of any `config.json` that do not change the forward pass (names, storage, generation), and
# those of every decoder that shape and table account for.
NEUTRAL_FIELDS = frozenset(
    """_attn_implementation _attn_implementation_autoset _name_or_path architectures
    attn_implementation auto_map bos_token_id chunk_size_feed_forward decoder_start_token_id
    dtype eos_token_id finetuning_task id2label initializer_range is_decoder
    keys_to_ignore_at_inference label2id max_position_embeddings model_type output_attentions
    output_hidden_states pad_token_id prefix problem_type return_dict sep_token_id
    task_specific_params tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class
    torch_dtype torchscript transformers_version unsloth_version use_bfloat16 use_cache vocab_size
    hidden_size num_hidden_layers num_attention_heads intermediate_size
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length max_new_tokens min_length no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p
    typical_p""".split()
)
# Fields of any `config.json` that must have the value of a plain decoder.
PLAIN_FIELDS: Mapping[str, Any] = {
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
}


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape that the usual fields of a complete config state."""
    heads = config["num_attention_heads"]
    return Shape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_groups=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        intermediate=config["intermediate_size"],
        vocabulary=config["vocab_size"],
    )


def write_shape(shape: Shape) -> dict[str, Any]:
    """The usual config fields of a shape; `head_dim` is explicit, because pruning keeps it."""
    return {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_groups,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocabulary,
    }


@dataclass(frozen=True)
class Family:
    """A model family of Transformers."""

    model_type: str  # the value of `model_type` in `config.json`
    blocks: str  # name of the stock model's list of decoder blocks
    # the rows of the coupling table, from a complete config and its shape
    rows: Callable[[Mapping[str, Any], Shape], tuple[Row, ...]]
    # config fields that the table and the stock model support, besides the common ones
    fields: frozenset[str]
    # fields that are supported with the given value only
    fixed: Mapping[str, Any] = field(default_factory=dict)
    # values of fields that a stored config leaves out, where they are not the usual
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # the shape that a complete config states
    read_shape: Callable[[Mapping[str, Any]], Shape] = read_shape
    # the config fields that state a shape
    write_shape: Callable[[Shape], dict[str, Any]] = write_shape
    # config fields with one entry per layer, which follow the kept layers
    layer_lists: tuple[str, ...] = ()
    # what else is wrong with a stored config, or None
    config_error: Callable[[Mapping[str, Any]], str | None] | None = None
    # whether a config has no field for the head size, so that hidden / heads cannot change
    implied_head_size: Callable[[Mapping[str, Any]], bool] = lambda _: False
    # whether a config is refused unless its heads divide the hidden size, although the head size is
    # a field
    heads_divide_hidden: Callable[[Mapping[str, Any]], bool] = lambda _: False
    # the family's names of rotary settings, as in `ROPE_NAMES`
    rope_names: Mapping[str, str] = field(default_factory=lambda: ROPE_NAMES)
    # whether Transformers 5 reads the older form of rotary settings for full attention only, and
    # gives the default base to sliding layers
    needs_newer_rope: bool = False
    rope_keys: frozenset[str] = frozenset()  # keys of a rotary scaling that only this family reads
    head: str = "lm_head"  # name of its output head in weight files

    def table(self, config: Mapping[str, Any]) -> CouplingTable:
        """The coupling table of a model, from its complete config (with defaults)."""
        shape = self.read_shape(config)
        return CouplingTable(
            rows=self.rows(config, shape),
            source=shape,
            grouped=shape.heads != shape.kv_groups,
            implied_head_size=self.implied_head_size(config),
            heads_divide_hidden=self.heads_divide_hidden(config),
        )

    def reshaped(
        self, config: Mapping[str, Any], shape: Shape, layers: Sequence[int]
    ) -> dict[str, Any]:
        """A complete config with another shape; `layers` has the source's layer in each place."""
        lists = {name: [config[name][layer] for layer in layers] for name in self.layer_lists}
        return {**config, **self.write_shape(shape), **lists}

    def check_fields(self, config: Mapping[str, Any]) -> None:
        """Refuse by name every field of a stored config that could change the computation.

        Raises:
            UserError: a field is unknown, or has a value that is none or that the table does not
                describe.
        """
        fixed = {**PLAIN_FIELDS, **self.fixed}
        known = NEUTRAL_FIELDS | self.fields | fixed.keys()
        stated = {key: value for key, value in config.items() if value is not None}
        unknown = stated.keys() - known
        if unknown:
            self._check_unknown(unknown)
        for name, value in fixed.items():
            if stated.get(name, value) != value:
                raise UserError(
                    f"config.json has {name}={stated[name]!r}, but {self.model_type} models are "
                    f"supported with {name}={value!r} only; prune another model of the family"
                )
        error = (
            value_error(config)
            or rope_error(stated, self.rope_keys)
            or self._layer_types_error(stated)
        )
        if error is None and self.config_error is not None:
            error = self.config_error(stated)
        if error is not None:
            raise UserError(error)

    def _check_unknown(self, names: set[str]) -> None:
        """Refuse fields that the stock code may read; the others cannot change what it computes."""
        if read := sorted(names & names_in_stock_code(self.model_type)):
            raise UserError(
                f"config.json has {', '.join(read)}, which the {self.model_type} code of "
                "Transformers may read but llmshearing does not support; prune another model of "
                "the family, or extend the family as CONTRIBUTING.md describes"
            )
        log.info(
            "config.json has %s, which the %s code of Transformers never reads: ignored",
            ", ".join(sorted(names)),
            self.model_type,
        )

    def _layer_types_error(self, config: Mapping[str, Any]) -> str | None:
        """What is wrong with the `layer_types` of a stored config, or None."""
        types = config.get("layer_types", ())
        layers = config.get("num_hidden_layers", len(types))
        if types and len(types) != layers:
            return f"config.json has {len(types)} layer_types for {layers} layers"
        if others := sorted(set(types) - {"full_attention", "sliding_attention"}):
            return (
                f"config.json has layer_types with {', '.join(others)}; {self.model_type} models "
                "are supported with full_attention and sliding_attention only"
            )
        switched_off = "use_sliding_window" in self.fields and not config.get("use_sliding_window")
        if "sliding_attention" in types and switched_off:
            return "config.json has sliding_attention in layer_types, but no use_sliding_window"
        return None


def attention_dims(shape: Shape) -> tuple[Dim, Dim]:
    """The query and the key-value dimension of the attention projections.

    Query heads are stored group by group, so (KV group, head within group) is row-major.
    """
    if shape.heads == shape.kv_groups:
        return Dim((Axis.HEAD,), shape.head_dim), Dim((Axis.HEAD,), shape.head_dim)
    query = Dim((Axis.KV_GROUP, Axis.HEAD), shape.head_dim)
    return query, Dim((Axis.KV_GROUP,), shape.head_dim)
