"""The speed table: what is measured, and that it is measured on what a model really generates."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from llmshearing.cli import main
from llmshearing.errors import UserError
from llmshearing.evaluation import throughput


def test_table_and_json_of_two_models(tiny_model, model_directory, tmp_path, capsys):
    out = tmp_path / "speed.json"
    arguments = ["throughput", str(model_directory), "--against", str(tiny_model)]
    arguments += ["--batch-sizes", "1", "3", "--prompt", "8", "--new-tokens", "4"]
    assert main([*arguments, "--json", str(out)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[1:5]] == ["1", "1", "3", "3"]
    assert table[2].split()[-1] == table[4].split()[-1] == "1.00"
    found = json.loads(out.read_text())
    assert list(found["models"]) == [str(model_directory), str(tiny_model)]
    for path, model in found["models"].items():
        expected = AutoModelForCausalLM.from_pretrained(path).num_parameters()
        assert model["parameters"] == expected
        for speed in model["speeds"]:
            rate = speed["batch_size"] / speed["token_ms"] * 1e3
            assert speed["tokens_per_second"] == pytest.approx(rate)
            assert speed["prefill_ms"] > 0
    assert found["settings"]["prompt"] == 8


def test_what_is_timed_is_greedy_generation(model_directory, monkeypatch):
    """The loop feeds the tokens that `generate` gives, for as many steps."""
    model = AutoModelForCausalLM.from_pretrained(model_directory).eval()
    fed = []
    real = model.forward

    def spy(*args, **kwargs):
        fed.append(kwargs["input_ids"])
        return real(*args, **kwargs)

    monkeypatch.setattr(model, "forward", spy)
    throughput.generate(model, 2, 6, 5)
    monkeypatch.undo()
    assert [ids.shape[1] for ids in fed] == [6, 1, 1, 1, 1]
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    expected = model.generate(fed[0], attention_mask=torch.ones_like(fed[0]), **settings)
    assert torch.equal(torch.cat(fed, 1), expected)


def test_times_are_medians_of_the_rounds_after_the_first(model_directory, monkeypatch):
    """The clock moves by 10 s for a prompt and 3 s for a token, by 99 s for the first of each."""
    clock, prompts = [0.0], []
    real = LlamaForCausalLM.forward

    def forward(self, *args, **kwargs):
        is_prompt = kwargs["input_ids"].shape[1] > 1
        if is_prompt:
            prompts.append(self)
        clock[0] += 99 if len(prompts) == 1 else 10 if is_prompt else 3
        return real(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock[0])
    sizes = {"batch_sizes": [4], "prompt": 6, "new_tokens": 5, "repeats": 1}
    found = throughput.measure_throughput(model_directory, **sizes)
    ((speed,),) = found.speeds.values()
    assert speed == throughput.GenerationSpeed(4, 10_000, 3_000, 4 / 3)
    assert len(prompts) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_sizes": [0]}, "expected positive numbers"),
        ({"dtype": "int8"}, "expected positive numbers"),
        ({"new_tokens": 1}, "at least 2 new tokens"),
        ({"prompt": 20, "new_tokens": 13}, "answers of 33 tokens, but .* takes 32"),
    ],
)
def test_what_cannot_be_timed_says_so(model_directory, settings, message):
    with pytest.raises(UserError, match=message):
        throughput.measure_throughput(model_directory, **settings)


def test_throughput_is_measured_in_one_process(model_directory, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="throughput: found 2 ranks, expected one process"):
        throughput.measure_throughput(model_directory)
