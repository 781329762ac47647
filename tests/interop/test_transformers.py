"""Exported models in plain Transformers, in a process that cannot import this package."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

PROGRAM = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt, steps = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
batch = tokenizer(prompt, return_tensors="pt").to(model.device)
answer = model.generate(**batch, max_new_tokens=int(steps), do_sample=False)
assert not any(name.startswith("llmshearing") for name in sys.modules)
print(json.dumps([batch.input_ids[0].tolist(), answer[0, batch.input_ids.shape[1]:].tolist()]))
"""


@pytest.mark.usefixtures("auto_tokenizer")
def test_auto_model_loads_an_export_without_this_package(exported, greedy):
    prompt = "stone3 river1 def2"
    command = [sys.executable, "-c", PROGRAM, str(exported), prompt, "64"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=exported)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == list(greedy)
