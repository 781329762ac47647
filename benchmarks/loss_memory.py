"""Peak memory and time of the output head with its loss: whole logits against chunks of tokens.

Each option computes losses and gradients of one microbatch, from hidden states on; the peak is what
it takes beyond hidden states, weight and their gradients. On a GPU in bfloat16, else in float32.

    python benchmarks/loss_memory.py [--tokens 8192] [--hidden 1024] [--vocabulary 32000]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from llmshearing.models.head import LossHead

CHUNKS = (256, 512, 1024, 2048, 4096)


def stock(head: LossHead, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """As Transformers computes it: logits of all tokens, widened to float32."""
    return F.cross_entropy(head(hidden).float().flatten(0, 1), targets.flatten(), reduction="sum")


def chunked(head: LossHead, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return head.losses(hidden, targets).total


class Peak:
    """Highest memory in use since the start, above what was in use then, in bytes."""

    def __enter__(self) -> Peak:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")
            self.before = self._status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if torch.cuda.is_available():
            self.bytes = torch.cuda.max_memory_allocated() - self.before
        else:
            self.bytes = self._status("VmHWM") - self.before

    @staticmethod
    def _status(name: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise LookupError(name)


def measure(compute, head, hidden, targets, repeats: int) -> tuple[float, float]:
    """Median seconds and bytes at the peak."""
    times, peaks = [], []
    for _ in range(repeats + 1):
        head.weight.grad = hidden.grad = None
        with Peak() as peak, torch.autocast(hidden.device.type, enabled=hidden.is_cuda):
            started = time.perf_counter()
            loss = compute(head, hidden, targets)
            loss.backward()
            if hidden.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        kept = head.weight.nbytes + hidden.nbytes  # the two gradients, which any way leaves behind
        peaks.append(peak.bytes - kept)
        del loss
    return statistics.median(times[1:]), statistics.median(peaks[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    head = LossHead(options.hidden, options.vocabulary, bias=False, device=device)
    hidden = torch.randn(1, options.tokens, options.hidden, device=device, requires_grad=True)
    targets = torch.randint(0, options.vocabulary, (1, options.tokens), device=device)
    print(f"{options.tokens} tokens, hidden {options.hidden}, vocabulary {options.vocabulary}")
    print(f"{device}, {torch.get_num_threads()} threads")
    base, whole = measure(stock, head, hidden, targets, options.repeats)
    print(f"{'whole logits':16}{base:8.3f} s {whole / 2**20:9.1f} MiB")
    for chunk in (0, *CHUNKS):
        head.chunk = chunk
        seconds, peak = measure(chunked, head, hidden, targets, options.repeats)
        name = f"chunks of {chunk}" if chunk else "fused, one chunk"
        ratios = f"{seconds / base:6.2f} x time {peak / whole:6.2f} x memory"
        print(f"{name:16}{seconds:8.3f} s {peak / 2**20:9.1f} MiB {ratios}")


if __name__ == "__main__":
    main()
