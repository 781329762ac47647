"""Exported models under TRL's trainer."""

import pytest
import torch
from transformers import AutoModelForCausalLM

trl = pytest.importorskip("trl", reason="trl is not installed: run `make interop`")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.mark.usefixtures("auto_tokenizer")
def test_trls_sft_trainer_trains_an_export(exported, tmp_path):
    from datasets import Dataset

    texts = [f"stone{i} river{i + 1} light{i}" for i in range(16)]
    settings = trl.SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=5,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        max_length=64,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
    )
    data = Dataset.from_list([{"text": text} for text in texts])
    trainer = trl.SFTTrainer(model=str(exported), args=settings, train_dataset=data)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    before = AutoModelForCausalLM.from_pretrained(exported).state_dict()
    after = trainer.model.state_dict()
    assert before.keys() == after.keys()
    assert not torch.equal(
        before["model.embed_tokens.weight"], after["model.embed_tokens.weight"].cpu()
    )
