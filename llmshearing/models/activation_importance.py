"""Importance of units, measured in forward passes (Minitron, arXiv 2407.14679, section 2.2).

Shape legend: T tokens, L layers, u units, m entries per unit, d hidden width.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable, Dim, Row
from llmshearing.models.blocks import decoder_blocks
from llmshearing.pruning.scores import Scores, score_shapes


class ActivationImportance:
    """Accumulates the importance of each unit over forward passes of a stock model.

    * A head or an intermediate unit: the mean square of what it adds to the residual stream.
    * A KV group: the sum over its heads. A head within the groups: the sum over all groups.
    * A hidden dimension: its mean square at the output of each norm, with equal weight per norm.
    * A layer: one minus the cosine between the residual stream before and after it.

    The stock model has hooks until `close`.
    """

    def __init__(self, model: PreTrainedModel, table: CouplingTable) -> None:
        self.table = table
        self.tokens = 0
        self._hooks: list[Any] = []
        self._squares: dict[str, Tensor] = {}  # second moments of inputs [u, m, m], of norms [d]
        self._writers: list[tuple[Row, int | None, str, nn.Module]] = []
        self._layers = torch.zeros(table.source.layers, dtype=torch.float64)
        for row in table.rows:
            for layer, name in row.instances(table.source.layers):
                module = model.get_submodule(name.rpartition(".")[0])
                if row.per_layer and len(row.dims) == 2 and row.dims[1].gated:  # reads gated units
                    self._writers.append((row, layer, name, module))
                    self._on_input(module, name, row)
                elif row.is_norm and row.dims[0].axes == (Axis.HIDDEN,):
                    self._on_output(module, name)
        self._watch_layers(model)

    def scores(self) -> Scores:
        """The importance of all units in the passes so far."""
        sizes = self.table.sizes(self.table.source)
        shapes = score_shapes(self.table)
        scores = {axis: torch.zeros(shape, dtype=torch.float64) for axis, shape in shapes.items()}
        written = {name for _, _, name, _ in self._writers}
        for name, squares in self._squares.items():
            if name not in written:
                scores[Axis.HIDDEN] += squares / squares.mean().clamp(min=1e-30)
        for row, layer, name, module in self._writers:
            dim = row.dims[1]
            assert isinstance(dim, Dim)
            weight = module.get_parameter("weight").detach()
            weight = (weight.full_tensor() if isinstance(weight, DTensor) else weight).double()
            weight = weight.reshape(weight.shape[0], -1, dim.multiple)  # [d, u, m]
            gram = torch.einsum("dum,dun->umn", weight, weight)
            added = (gram * self._squares[name].to(gram)).sum((-1, -2)).cpu()
            added = added.reshape([sizes[axis] for axis in dim.axes])
            for place, axis in enumerate(dim.axes):
                rest = [n for n in range(added.ndim) if n != place]
                scores[axis][layer] += added.sum(rest) if rest else added
        scores[Axis.LAYER] += self._layers
        return {axis: (score / max(1, self.tokens)).float() for axis, score in scores.items()}

    def add_ranks(self) -> None:
        """Add up what the ranks have seen, each on rows of its own; all ranks call it together."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return
        device = next(iter(self._squares.values())).device
        counts = torch.cat([self._layers, self._layers.new_tensor([self.tokens])]).to(device)
        for seen in (counts, *self._squares.values()):
            dist.all_reduce(seen)
        self._layers, self.tokens = counts[:-1].cpu(), int(counts[-1])

    def close(self) -> None:
        """Remove the hooks from the model."""
        for hook in self._hooks:
            hook.remove()

    def _on_input(self, module: nn.Module, name: str, row: Row) -> None:
        dim = row.dims[1]
        assert isinstance(dim, Dim)
        multiple = dim.multiple

        def watch(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0].detach().float()
            x = x.reshape(-1, x.shape[-1] // multiple, multiple)  # [T, u, m]
            self._add(name, torch.einsum("tum,tun->umn", x, x))

        self._hooks.append(module.register_forward_pre_hook(watch))

    def _on_output(self, module: nn.Module, name: str) -> None:
        def watch(_: nn.Module, __: Any, output: Tensor) -> None:
            self._add(name, output.detach().float().square().flatten(0, -2).sum(0))

        self._hooks.append(module.register_forward_hook(watch))

    def _watch_layers(self, model: PreTrainedModel) -> None:
        for number, layer in enumerate(decoder_blocks(model)):

            def watch(
                _: nn.Module, arguments: Any, keywords: Any, output: Any, number: int = number
            ) -> None:
                before = arguments[0] if arguments else keywords["hidden_states"]
                after = output[0] if isinstance(output, tuple) else output
                change = 1 - cosine_similarity(before.float(), after.float(), dim=-1)
                self._layers[number] += change.sum().double().cpu()
                if number == 0:
                    self.tokens += change.numel()

            self._hooks.append(layer.register_forward_hook(watch, with_kwargs=True))

    def _add(self, name: str, value: Tensor) -> None:
        value = value.double()
        self._squares[name] = self._squares[name] + value if name in self._squares else value


@torch.no_grad()  # not inference mode: FSDP keeps tensors of this pass for the training step
def activation_importance(
    model: PreTrainedModel,
    table: CouplingTable,
    batches: Iterable[Tensor],
    tick: Callable[[int], None] = lambda _: None,
    run: Callable[[Tensor], object] | None = None,
    padding: Iterable[Tensor] = (),
) -> Scores:
    """The importance of all units of a stock model in evaluation mode, in float32.

    Batches are token ids [B, T]; 512 to 1,024 rows in total are enough. `tick` is called with the
    number of rows of each that is done; `run` is the forward pass, by default the stock model's.
    Batches of `padding` do not count; they are for ranks with fewer batches than others: all ranks
    of a sharded model run as many forward passes.
    """
    run = run or (lambda tokens: model(input_ids=tokens, use_cache=False))
    importance = ActivationImportance(model, table)
    try:
        for tokens in batches:
            run(tokens)
            tick(len(tokens))
    finally:
        importance.close()
    for tokens in padding:
        run(tokens)
    importance.add_ranks()
    return importance.scores()
