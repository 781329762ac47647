"""A real run that records, per rank, the bytes allocated after its steps.

python state_bytes_of_runs.py OUT_DIR RECIPE key=value, under Composer's launcher for several ranks
"""

import json
import sys
from pathlib import Path

from composer.core import Callback
from composer.utils import dist, get_device
from torch import Tensor

from llmshearing import preflight
from llmshearing.models.shearing import unwrapped
from llmshearing.train import build_trainer


def size(tensor: Tensor) -> int:
    """Bytes of the shard that this rank holds."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.numel() * local.element_size()


class Ruler(Callback):
    def __init__(self, out: Path) -> None:
        self.out = out

    def batch_end(self, state, logger):
        model = unwrapped(state.model)
        decoder, masks = list(model.model.parameters()), []
        if model.masks is not None:
            masks = list(model.masks.parameters())
        moments = state.optimizers[0].state
        found = {
            "parameters": sum(map(size, decoder)),
            "masks": sum(map(size, masks)),
            "gradients": sum(size(p.grad) for p in decoder + masks),
            "optimizer": sum(size(t) for s in moments.values() for t in s.values()),
        }
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f"rank{dist.get_global_rank()}.json").write_text(json.dumps(found))


def measure(out: Path, recipe: Path, overrides: list[str]) -> None:
    """Train and measure."""
    checked, inputs = preflight.resolve(recipe, overrides, dist.get_world_size())
    dist.initialize_dist(get_device())
    trainer = build_trainer(checked, inputs)
    trainer.state.callbacks.append(Ruler(out))
    trainer.fit()
    trainer.close()


def main() -> None:
    out, recipe, *overrides = sys.argv[1:]
    measure(Path(out), Path(recipe), overrides)


if __name__ == "__main__":
    main()
