"""Time and peak memory of a step with a teacher, next to steps without one and a plain loop.

The plain loop is Transformers' models, both models' logits as a whole and `F.kl_div`. A step is a
forward and a backward pass of a LLaMA of random weights, taught by another of the same shape; the
peak is what it takes beyond weights and their gradients. On a GPU under bf16 autocast with a bf16
teacher, else in float32.

    python benchmarks/distillation.py [--vocabularies 32000 128256] [--tokens 2048] [--chunk 128]
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import statistics
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from loss_memory import Peak
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmshearing.architecture.families import family_of
from llmshearing.architecture.flops import forward_flops_per_token, training_flops_per_token
from llmshearing.models.metrics import shifted
from llmshearing.models.shearing import ShearingModel
from llmshearing.models.sparse_teacher import CachedTeacher
from llmshearing.models.teacher import Distiller, FrozenTeacher

LENGTH = 512


class Steps:
    """Four ways to take a step on the same weights and rows."""

    def __init__(self, options: argparse.Namespace, vocabulary: int) -> None:
        config = AutoConfig.for_model(
            "llama",
            vocab_size=vocabulary,
            hidden_size=options.hidden,
            intermediate_size=options.hidden * 8 // 3,
            num_hidden_layers=options.layers,
            num_attention_heads=options.hidden // 64,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=False,
        )
        fields = config.to_dict()
        table = family_of(fields).table(fields)
        self.predicted = 1 + forward_flops_per_token(table, LENGTH) / training_flops_per_token(
            table, LENGTH
        )
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(0)
        self.stock = AutoModelForCausalLM.from_config(config).to(self.device)
        teacher: PreTrainedModel = AutoModelForCausalLM.from_config(config).to(self.device).eval()
        for parameter in teacher.parameters() if self.device == "cuda" else ():
            parameter.data = parameter.data.bfloat16()
        self.teacher = teacher.requires_grad_(False)
        mine = copy.copy(self.stock)  # the same weights with another class
        mine._modules = dict(self.stock._modules)
        mine._modules["lm_head"] = copy.copy(self.stock.lm_head)
        self.model = ShearingModel(mine, None, 1, options.chunk)
        self.distiller = Distiller(FrozenTeacher(teacher), 0.0, 1.0, 1)
        self.distiller.weight = 1.0
        rows = torch.randint(0, vocabulary, (options.tokens // LENGTH, LENGTH), device=self.device)
        domain = torch.zeros(len(rows), dtype=torch.int64, device=self.device)
        self.batch = {"input_ids": rows, "labels": rows, "domain": domain}
        places = torch.randint(0, vocabulary, (*rows.shape, 32), device=self.device)
        self.batch |= {
            "teacher_ids": places.int(),
            "teacher_probabilities": torch.full(places.shape, 1 / 32, device=self.device).half(),
            "teacher_entropy": torch.zeros(rows.shape, device=self.device),
        }
        self.from_cache = Distiller(CachedTeacher(vocabulary), 0.0, 1.0, 1)
        self.from_cache.weight = 1.0

    def without_teacher(self) -> torch.Tensor:
        self.model.distiller = None
        return self.model.loss(self.model(self.batch), self.batch)["total"]

    def distilled(self) -> torch.Tensor:
        self.model.distiller = self.distiller
        return self.model.loss(self.model(self.batch), self.batch)["total"]

    def plain(self) -> torch.Tensor:
        rows = self.batch["input_ids"]
        counted = shifted(self.batch["labels"]) >= 0
        with torch.no_grad():
            target = self.teacher(rows, use_cache=False).logits[counted].float().log_softmax(-1)
        found = self.stock(rows, use_cache=False).logits[counted].float().log_softmax(-1)
        return F.kl_div(found, target, log_target=True, reduction="sum") / counted.sum()

    def cached(self) -> torch.Tensor:
        self.model.distiller = self.from_cache
        return self.model.loss(self.model(self.batch), self.batch)["total"]

    def step(self, name: str) -> float:
        """A forward and a backward pass; the loss."""
        self.stock.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            loss = getattr(self, name)()
        loss.backward()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return float(loss)

    def measure(self, names: Sequence[str], repeats: int) -> dict[str, tuple[float, float, float]]:
        """Median seconds, bytes at the peak and the loss, by name.

        The ways alternate, so that a busy moment of the machine falls on all of them. On one
        thread of a processor the seconds are its own, without those of other processes.
        """
        clock = time.perf_counter
        if self.device == "cpu" and torch.get_num_threads() == 1:
            clock = time.process_time
        peaks, losses = {}, {}
        for name in names:  # also the first step, which is slower
            self.stock.zero_grad(set_to_none=True)
            if self.device == "cpu":  # what earlier steps freed would not count again
                ctypes.CDLL(None).malloc_trim(0)
            with Peak() as peak:
                losses[name] = self.step(name)
            peaks[name] = peak.bytes - sum(p.nbytes for p in self.stock.parameters())
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(repeats):
            for name in names:
                started = clock()
                self.step(name)
                times[name].append(clock() - started)
        return {name: (statistics.median(times[name]), peaks[name], losses[name]) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 128_256])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{options.tokens} tokens, hidden {options.hidden}, {options.layers} layers, ", end="")
    print(f"chunks of {options.chunk}, {torch.get_num_threads()} threads")
    for vocabulary in options.vocabularies:
        steps = Steps(options, vocabulary)
        names = ("without_teacher", "plain", "distilled", "cached")
        found = steps.measure(names, options.repeats)
        print(f"vocabulary {vocabulary}, {steps.device}")
        for name, (seconds, peak, loss) in found.items():
            print(f"  {name:16}{seconds:8.3f} s {peak / 2**20:9.1f} MiB  loss {loss:.5f}")
        base, plain, ours, cached = (found[name] for name in names)
        took = ours[0] / base[0]
        print(f"  time {took:.3f} of a step without, {took / steps.predicted:.3f} of predicted")
        print(f"  from a cache: {cached[0] / base[0]:.3f} of a step without")
        print(
            f"  excess memory {(ours[1] - base[1]) / (plain[1] - base[1]):.3f} of the plain loop's"
        )


if __name__ == "__main__":
    main()
