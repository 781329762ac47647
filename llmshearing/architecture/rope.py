"""The rotary settings of a config: their two forms, and the scalings that pruning passes on.

Transformers 4 stores `rope_theta` and `rope_scaling`. Transformers 5 stores `rope_parameters`, and
still reads the older form. The code works with the older form, so the rest of it knows one.

Head sizes and positions do not change, so a scaling of the source is right for the pruned model.
Scalings that the stock model ignores, or applies in part, are refused.
"""

from collections.abc import Mapping
from typing import Any

from llmshearing.errors import UserError

# The names under which most families store the base, the rotated part of a head, and the base of
# layers with sliding attention if it is another one.
ROPE_NAMES = {
    "rope_theta": "rope_theta",
    "partial_rotary_factor": "partial_rotary_factor",
    "sliding_attention": "",
}
LAYER_TYPES = ("full_attention", "sliding_attention")

STRETCH = "attention_factor original_max_position_embeddings"
# By type: its required and its optional keys (Transformers 4.57, `modeling_rope_utils.py`). `type`
# is the old name of `rope_type`.
ROPE_TYPES = {
    "default": ("", ""),
    "linear": ("factor", ""),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "yarn": ("factor", f"{STRETCH} beta_fast beta_slow mscale mscale_all_dim truncate"),
    "longrope": ("factor long_factor short_factor", STRETCH),
    "llama3": ("factor high_freq_factor low_freq_factor original_max_position_embeddings", ""),
}


def rope_error(config: Mapping[str, Any], more: frozenset[str] = frozenset()) -> str | None:
    """What is wrong with the `rope_scaling` of a stored config, or None.

    `more` are keys that its family also reads.
    """
    scaling = config.get("rope_scaling")
    if scaling is None:
        return None
    if not isinstance(scaling, Mapping):
        return f"config.json has rope_scaling={scaling!r}; expected a mapping with a rope_type"
    kind = scaling.get("rope_type", scaling.get("type"))
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        return (
            f"config.json has rope_scaling of type {kind!r}; supported are {', '.join(ROPE_TYPES)}"
        )
    required, optional = (set(keys.split()) for keys in ROPE_TYPES[kind])
    if kind == "longrope" and "original_max_position_embeddings" in config:
        required, optional = required - {"factor"}, optional | {"factor"}  # it follows from that
    missing = sorted(key for key in required if scaling.get(key) is None)
    if missing:
        return f"config.json has rope_scaling of type {kind!r} without {', '.join(missing)}"
    unknown = sorted(scaling.keys() - required - optional - more - {"rope_type", "type"})
    if unknown:
        return (
            f"config.json has rope_scaling of type {kind!r} with {', '.join(unknown)}, which this "
            "type does not use; remove those keys"
        )
    return None


def with_older_rope(
    config: Mapping[str, Any], names: Mapping[str, str] = ROPE_NAMES
) -> dict[str, Any]:
    """A config with its rotary settings in the form that Transformers 4 and 5 both read.

    It may have them in either form, or in both; `names` are its family's, as in `ROPE_NAMES`.

    Raises:
        UserError: the two forms disagree, or sliding layers have settings without an older field.
    """
    fields = {name: value for name, value in config.items() if name != "rope_parameters"}
    newer = config.get("rope_parameters")
    if newer is None:
        return fields
    parts = [newer[k] for k in LAYER_TYPES if k in newer] if isinstance(newer, Mapping) else []
    if not isinstance(newer, Mapping) or not all(isinstance(x, Mapping | None) for x in parts):
        raise UserError(f"config.json has rope_parameters={newer!r}; expected a mapping")
    if any(kind in newer for kind in LAYER_TYPES):
        full, sliding = ({"rope_type": "default", **(newer.get(k) or {})} for k in LAYER_TYPES)
    else:
        full, sliding = dict(newer), None
    older = _older(full, names)
    scaling, length = older["rope_scaling"] or {}, "original_max_position_embeddings"
    if scaling.get("rope_type") == "longrope" and fields.get(length) == scaling.get(length, 0):
        # Phi-3's config in version 4 refuses any other key; the length is a field of its own.
        kept = {key: scaling[key] for key in scaling if key not in ("rope_type", length)}
        older["rope_scaling"] = {"type": "longrope", **kept}
    if sliding is not None:
        base = sliding.pop("rope_theta", None)
        if sliding != {"rope_type": "default"} or (
            not names["sliding_attention"] and base != full.get("rope_theta")
        ):
            raise UserError(
                f"config.json has rope_parameters={dict(newer)!r}; sliding layers are supported "
                "with unscaled positions, and with a base of their own only in families that "
                "have a field for it"
            )
        if names["sliding_attention"]:
            older[names["sliding_attention"]] = base
    for name, value in older.items():
        stated = fields.get(name)
        if name == "rope_scaling" and isinstance(stated, Mapping):
            same = _typed(stated) == _typed(value or {})
        else:
            same = stated is None or stated == value
        if not same:
            raise UserError(
                f"config.json has {name}={stated!r}, but rope_parameters say {value!r}; versions "
                "of Transformers would read one or the other, so make them equal"
            )
    return fields | older


def with_newer_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config in the older form with the newer one added, per kind of layer.

    Transformers 4 ignores the newer form. Only full attention is scaled.
    """
    plain = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    full = plain | _typed(config.get("rope_scaling") or {})
    return {**config, "rope_parameters": dict(zip(LAYER_TYPES, (full, plain), strict=True))}


def _older(parameters: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    scaling = _typed(parameters)
    bases = {names[name]: scaling.pop(name) for name in ROPE_NAMES if name in scaling}
    return bases | {"rope_scaling": None if scaling["rope_type"] == "default" else scaling}


def _typed(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """A scaling with its type under the newer of its two names."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    return {k: v for k, v in scaling.items() if k != "type"} | {"rope_type": kind}
