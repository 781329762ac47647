"""A manifest for tests that need one, but no run that would write it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmshearing.architecture.shape import Shape
from llmshearing.checkpoints.manifest import (
    DataRecord,
    ExportManifest,
    HeldOutRecord,
    RunManifest,
    SourceRecord,
)

SHAPE = Shape(hidden=8, layers=2, heads=2, kv_groups=2, head_dim=4, intermediate=12, vocabulary=16)
CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 16,
}


def run_manifest(**changes: Any) -> RunManifest:
    """The manifest of a run that prunes nothing, with some entries changed."""
    whole = RunManifest(
        recipe={"target": None, "pruning": {}, "data": {"global_batch": 8}},
        source=SourceRecord("models/source", SHAPE, CONFIG),
        data=DataRecord(
            root="data/sample",
            sequence_length=256,
            tokenizer={"fingerprint": "3" * 64},
            fingerprints={"prose": "1" * 64},
            held_out=HeldOutRecord({"prose": "2" * 64}, 16),
        ),
        tokens=4096,
        versions={"torch": "2.7.0"},
    )
    return replace(whole, **changes)


def export_manifest(**entries: Any) -> ExportManifest:
    """The manifest of an exported directory of no files."""
    source = SourceRecord("models/source", SHAPE, CONFIG)
    return ExportManifest(source, SHAPE, "float32", kept={}, files={}, **entries)
