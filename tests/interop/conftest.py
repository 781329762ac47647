"""Small models of several kinds, pruned by real runs and exported."""

import json
import logging
import shutil

import pytest
import tokenizers
import torch
import transformers
from runs import run_here
from sentencepiece import SentencePieceProcessor
from tokenizers import decoders, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from llmshearing.export.export import export

PROMPT = "stone3 river1 def2"
STEPS = 64
TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# kind: config of the source, target
KINDS = {
    "llama": ({"model_type": "llama"}, {"hidden": 32, "layers": 2, "heads": 4, "intermediate": 48}),
    "qwen2-tied": (
        {
            "model_type": "qwen2",
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "initializer_range": 0.4,
        },
        # llama.cpp's Qwen2 needs hidden = heads x head_dim
        {"hidden": 32, "layers": 2, "heads": 4, "kv_groups": 2, "intermediate": 64},
    ),
    "gqa": (
        {"model_type": "llama", "num_key_value_heads": 4},
        {"hidden": 32, "layers": 2, "heads": 4, "kv_groups": 2, "intermediate": 64},
    ),
    "head-only": ({"model_type": "llama"}, {"heads": 4}),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    yield
    logging.getLogger("lm_eval").setLevel(logging.WARNING)


@pytest.fixture(scope="session", params=KINDS)
def exported(request, tmp_path_factory, tiny_model, tiny_tree):
    """An exported directory with its tokenizer, as `llmshearing export` writes it."""
    folder = tmp_path_factory.mktemp(request.param)
    changes, target = KINDS[request.param]
    make_source(folder / "source", tiny_model, changes)
    recipe = folder / "recipe.yaml"
    run = {"directory": str(folder / "run"), "duration": "4ba", "eval_interval": "4ba"}
    data = {"root": str(tiny_tree), "split": "prune", "global_batch": 8, "microbatch": 8}
    sections = {
        "run": run,
        "model": {"path": str(folder / "source")},
        "target": target,
        "data": data | {"workers": 0},
        "optimizer": {"learning_rate": 0.001},
        "parallelism": "ddp",
    }
    recipe.write_text(json.dumps(sections))
    run_here(recipe)
    result = export(folder / "run", folder / "exported", allow_undecided=True)
    config = json.loads((folder / "exported" / "config.json").read_text())
    if request.param == "head-only":
        assert config["head_dim"] * config["num_attention_heads"] != config["hidden_size"]
    assert result.shape.heads == target["heads"]
    return folder / "exported"


def make_source(folder, tiny_model, changes):
    """Random weights whose logits are far apart and never choose the end-of-text token."""
    config = AutoConfig.for_model(**{**TINY, **changes})
    torch.manual_seed(6)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
        if not config.tie_word_embeddings:  # a large tied embedding would repeat the same token
            model.get_input_embeddings().weight.mul_(4)
        model.get_output_embeddings().weight[config.eos_token_id] = 0
    model.save_pretrained(folder)
    shutil.copy(tiny_model / "tokenizer.model", folder)
    save_fast_tokenizer(folder)


@pytest.fixture
def auto_tokenizer(exported):
    """Skips where `AutoTokenizer` replaces the rules of an export's tokenizer."""
    qwen2 = json.loads((exported / "config.json").read_text())["model_type"] == "qwen2"
    if qwen2 and int(transformers.__version__.partition(".")[0]) >= 5:
        pytest.skip("Transformers 5 gives every Qwen2 the rules of Qwen's own tokenizer")


def save_fast_tokenizer(folder):
    """Write the `tokenizer.json` that gives the ids of the SentencePiece model in a folder.

    Transformers 5 converts the model to one that drops unknown characters.
    """
    model = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocabulary = {model.id_to_piece(number): number for number in range(len(model))}
    parts = ((piece[:i], piece[i:]) for piece in vocabulary for i in range(1, len(piece)))
    merges = [pair for pair in parts if set(pair) <= vocabulary.keys()]
    merges.sort(key=lambda pair: vocabulary["".join(pair)])
    fast = tokenizers.Tokenizer(
        BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    marks["model_input_names"] = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=fast, **marks).save_pretrained(folder)


@pytest.fixture(scope="session")
def greedy(exported):
    """The prompt's ids and the next greedy tokens by plain Transformers, by a clear margin."""
    model, report = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not any(report.values()), report
    tokenizer = PreTrainedTokenizerFast.from_pretrained(exported)
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    found = model.eval().generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=STEPS,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = found.sequences[0, prompt.shape[1] :].tolist()
    assert len(tokens) == STEPS
    assert len(set(tokens)) > 2, "a model that repeats itself shows little"
    best = torch.cat(found.logits).topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > 1e-3, "rounding could decide"
    return prompt[0].tolist(), tokens
