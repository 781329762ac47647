"""The values that a stored `config.json` may have for sizes, numbers and token ids."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

SIZES = "hidden_size num_hidden_layers num_attention_heads intermediate_size vocab_size".split()
SIZES_OR_NULL = "num_key_value_heads head_dim max_position_embeddings".split()
NUMBERS = "initializer_range layer_norm_eps rms_norm_eps rope_theta rotary_emb_base".split()
FLAGS = "attention_bias mlp_bias tie_word_embeddings use_parallel_residual".split()
TOKEN_IDS = "bos_token_id eos_token_id pad_token_id".split()
NO_TOKEN = -1  # in configs of LLaMA 1


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _is_number(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and value > 0


def _are_ids(value: Any) -> bool:
    return all(_is_whole(one) and one >= NO_TOKEN for one in _as_list(value))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# By kind: the names of the fields, whether a value is one, and what it is called.
KINDS: list[tuple[Sequence[str], Callable[[Any], bool], str]] = [
    (SIZES + SIZES_OR_NULL, _is_size, "a whole number, 1 or more"),
    (NUMBERS, _is_number, "a number above 0"),
    (FLAGS, lambda value: isinstance(value, bool), "true or false"),
    (TOKEN_IDS, _are_ids, "a token id"),
]


def value_error(config: Mapping[str, Any]) -> str | None:
    """What is wrong with the values of a stored config, or None.

    Fields that a family does not have are not required; null means a default except for a size that
    every decoder has.
    """
    for names, fits, expected in KINDS:
        for name in names:
            value = config.get(name)
            if name in config and not fits(value) and (value is not None or name in SIZES):
                return f"config.json has {name}={value!r}, expected {expected}"
    vocabulary = config.get("vocab_size")
    for name in TOKEN_IDS:
        ids = _as_list(config.get(name))
        if vocabulary is not None and any(one is not None and one >= vocabulary for one in ids):
            return (
                f"config.json has {name}={config[name]!r}, but the vocabulary has ids up to "
                f"{vocabulary - 1}; remove {name}, or take config.json and weights of the model "
                "that has this token"
            )
    return _division_error(config)


def _division_error(config: Mapping[str, Any]) -> str | None:
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    groups = config.get("num_key_value_heads")
    if hidden and heads and config.get("head_dim") is None and hidden % heads:
        return _division("hidden_size", hidden, "num_attention_heads", heads)
    if heads and groups and heads % groups:
        return _division("num_attention_heads", heads, "num_key_value_heads", groups)
    return None


def _division(name: str, value: int, divisor: str, by: int) -> str:
    return f"config.json has {name}={value} and {divisor}={by}, expected a multiple of {divisor}"
