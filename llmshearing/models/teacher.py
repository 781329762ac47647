"""A frozen teacher next to the model that is trained, and its part of the loss.

Neither class is a module: modules of a model are trained, sharded, moved and saved with it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from llmshearing.models.blocks import decoder_of
from llmshearing.models.divergence import Distillation, LogitTransform, Teacher, TeacherStates
from llmshearing.models.metrics import DomainSums

Batch = Mapping[str, Tensor]


class TeacherSource(Protocol):
    """Where the teacher's distributions for a batch come from."""

    def on(self, batch: Batch) -> Teacher:
        """The teacher's distributions for a microbatch on the device."""
        ...


class FrozenTeacher:
    """A stock model in memory: sharded with FSDP2, whole on the device, or whole on the host."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.requires_grad_(False).eval()
        self.transform = LogitTransform.of(model.config)

    def on(self, batch: Batch) -> TeacherStates:
        """Run the decoder; the logits are computed later, chunk by chunk."""
        tokens, decoder = batch["input_ids"], decoder_of(self.model)
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            with _lent(decoder, tokens.device):
                hidden = decoder(input_ids=tokens, use_cache=False).last_hidden_state
            if isinstance(decoder, FSDPModule):
                decoder.reshard()  # FSDP2 leaves the root's parameters gathered
            head: Any = self.model.get_output_embeddings()
            bias = None if head.bias is None else _whole(head.bias, tokens.device)
            weight = _whole(head.weight, tokens.device)
        return TeacherStates(hidden.flatten(0, 1), weight, bias, self.transform)


class Distiller:
    """What a model needs to learn from a teacher; the run sets `weight` before each step.

    `beta` decides the divergence, see `divergence_`; the logits of both models are divided by
    `temperature`. `domain_divergence` adds up the divergence per domain.
    """

    def __init__(
        self, teacher: TeacherSource, beta: float, temperature: float, domains: int
    ) -> None:
        self.teacher, self.beta, self.temperature = teacher, beta, temperature
        self.weight = 0.0
        self.domain_divergence = DomainSums(domains)

    def on(self, batch: Batch) -> Distillation:
        """The teacher's part of the loss of a microbatch."""
        return Distillation(self.teacher.on(batch), self.weight, self.beta, self.temperature)


@contextlib.contextmanager
def _lent(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Bring a module that waits on the host to the device; its copy there is dropped afterwards."""
    away = {
        p: p.data for p in module.parameters() if p.device != device and not isinstance(p, DTensor)
    }
    for parameter, data in away.items():
        parameter.data = data.to(device, non_blocking=True)
    yield
    for parameter, data in away.items():
        parameter.data = data


def _whole(tensor: Tensor, device: torch.device) -> Tensor:
    """A parameter of the head, which may be sharded or on the host, whole on the device."""
    if not isinstance(tensor, DTensor):
        return tensor.to(device)
    here = DTensor.from_local(
        tensor.to_local().to(device),
        tensor.device_mesh,
        tensor.placements,
        shape=tensor.shape,
        stride=tensor.stride(),
    )
    return here.full_tensor()
