"""Generation speed of a model, next to another one: time to the first token, tokens a second.

The two models take turns, so that other work on the machine slows down both.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from llmshearing.errors import UserError
from llmshearing.evaluation.ranks import own_device, refuse_several
from llmshearing.export.directory import DTYPES
from llmshearing.huggingface.source import load_model, read_source
from llmshearing.progress import Progress
from llmshearing.tables import Table


@dataclass(frozen=True)
class GenerationSpeed:
    """One model at one batch size; medians over the repeats."""

    batch_size: int  # sequences at a time
    prefill_ms: float  # from the prompt to the first token
    token_ms: float  # from each further token to the next
    tokens_per_second: float  # further tokens of all sequences


@dataclass(frozen=True)
class Throughput:
    """Models with their speeds, at the same batch sizes."""

    # by Hugging Face directory. Ratios are over the last one
    speeds: dict[Path, list[GenerationSpeed]]
    parameters: dict[Path, int]  # by Hugging Face directory
    settings: dict[str, Any]  # how it was measured

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        models = {
            str(model): {"parameters": self.parameters[model], "speeds": list(map(asdict, speeds))}
            for model, speeds in self.speeds.items()
        }
        return {"settings": self.settings, "models": models}

    def as_table(self) -> Table:
        """A row for each batch size and model."""
        *_, against = self.speeds
        rows = []
        for i, reference in enumerate(self.speeds[against]):
            for model, speeds in self.speeds.items():
                speed, rate = speeds[i], speeds[i].tokens_per_second
                times = (f"{speed.prefill_ms:.2f}", f"{speed.token_ms:.2f}", f"{rate:,.1f}")
                ratio = f"{rate / reference.tokens_per_second:.2f}"
                rows.append((str(speed.batch_size), str(model), *times, ratio))
        sizes = ", ".join(f"{model} {count:,}" for model, count in self.parameters.items())
        notes = (
            f"ratio: tokens/s over those of {against}",
            f"parameters: {sizes}",
            ", ".join(f"{name} {value}" for name, value in self.settings.items()),
        )
        header = ("batch", "model", "prefill ms", "ms/token", "tokens/s", "ratio")
        return Table("", header, rows, notes)


def measure_throughput(
    model: str | Path,
    against: str | Path | None = None,
    *,
    batch_sizes: Sequence[int] = (1, 8),
    prompt: int = 128,
    new_tokens: int = 64,
    repeats: int = 5,
    dtype: str = "float32",
) -> Throughput:
    """Time greedy generation from random prompts.

    Args:
        model: a directory, or `org/name[@revision]` of the hub.
        against: another one, usually the source model.
        batch_sizes: sequences at a time.
        prompt: tokens of a prompt.
        new_tokens: tokens generated after it, the first included.
        repeats: rounds, after one that warms up.
        dtype: of the weights.

    Raises:
        UserError: no such model, an impossible number, or several ranks.
    """
    refuse_several("throughput")
    if min(*batch_sizes, prompt, repeats) < 1 or new_tokens < 2 or dtype not in DTYPES:
        raise UserError(
            f"found batch sizes {list(batch_sizes)}, prompt {prompt}, new tokens {new_tokens}, "
            f"repeats {repeats}, dtype {dtype}; expected positive numbers, at least 2 new tokens "
            f"and one of {', '.join(DTYPES)}"
        )
    device = own_device()
    paths = [Path(path) for path in (model, against) if path is not None]
    models = {path: _loaded(path, prompt + new_tokens, dtype, device) for path in paths}
    speeds: dict[Path, list[GenerationSpeed]] = {path: [] for path in models}
    total = len(batch_sizes) * (repeats + 1) * len(models)
    with Progress("throughput", total, "generations") as progress:
        for batch_size in batch_sizes:
            rounds: dict[Path, list[tuple[float, float]]] = {path: [] for path in models}
            for repeat in range(repeats + 1):
                for path, loaded in models.items():
                    times = generate(loaded, batch_size, prompt, new_tokens)
                    progress.advance(1)
                    if repeat > 0:
                        rounds[path].append(times)
            for path, found in rounds.items():
                first, rest = (statistics.median(part) for part in zip(*found, strict=True))
                token = rest / (new_tokens - 1)
                times = (1e3 * first, 1e3 * token, batch_size / token)
                speeds[path].append(GenerationSpeed(batch_size, *times))
    settings = {
        "prompt": prompt,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "dtype": dtype,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }
    return Throughput(speeds, {p: m.num_parameters() for p, m in models.items()}, settings)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    batch_size: int,
    prompt: int,
    new_tokens: int,
    after_prompt: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Seconds to the first of `new_tokens`, and from there to the last.

    `after_prompt` is called between the two.
    """
    generator = torch.Generator().manual_seed(batch_size)
    tokens = torch.randint(model.config.vocab_size, (batch_size, prompt), generator=generator)
    tokens = tokens.to(model.device)
    begin = now(model)
    output = model(input_ids=tokens, use_cache=True, logits_to_keep=1)
    token = output.logits[:, -1:].argmax(-1)
    after_prompt()
    first = now(model)
    for _ in range(new_tokens - 1):
        cache = "cache" if "cache" in output else "past_key_values"  # renamed by Transformers 5
        output = model(input_ids=token, use_cache=True, **{cache: output[cache]})
        token = output.logits[:, -1:].argmax(-1)
    return first - begin, now(model) - first


def now(model: PreTrainedModel) -> float:
    """The time at which the model's device has done all its work, in seconds."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _loaded(path: Path, length: int, dtype: str, device: torch.device) -> PreTrainedModel:
    source = read_source(path)
    longest = source.config.get("max_position_embeddings")
    if longest is not None and length > longest:
        raise UserError(
            f"found prompts and answers of {length} tokens, but {path} takes {longest}: lower "
            "--prompt or --new-tokens"
        )
    model = load_model(source).to(getattr(torch, dtype))
    return model.to(device).eval()  # pyright: ignore[reportArgumentType]
