"""Which layers to keep at each depth, by the loss after removing others."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmshearing.ledger import Ledger
from llmshearing.search.scoring import Parent

Layers = tuple[int, ...]


@dataclass(frozen=True)
class Depth:
    """The best set of layers of one size."""

    kept: Layers  # layer numbers in the source, ascending
    removed: Layers  # the others
    loss: float  # held-out loss without them, before any width is cut


def best_layers(parent: Parent, ledger: Ledger, depths: Sequence[int]) -> dict[int, Depth]:
    """For each number of layers to keep, the set whose removal leaves the lowest held-out loss.

    Candidates for removal are every contiguous block, and the layers that harm least when each of
    them is removed alone.
    """
    layers = range(parent.layers)
    sizes = sorted({parent.layers - depth for depth in depths} - {0})
    if not sizes:
        return {parent.layers: Depth(tuple(layers), (), parent.score(parent.model).loss)}
    blocks = [
        tuple(range(first, first + size))
        for size in sorted({1, *sizes})
        for first in range(parent.layers - size + 1)
    ]
    losses = _losses(parent, ledger, "without blocks", blocks)
    order = sorted(layers, key=lambda layer: losses[(layer,)])
    least = [tuple(sorted(order[:size])) for size in sizes]
    losses |= _losses(
        parent, ledger, "without single layers", [one for one in least if one not in losses]
    )
    losses[()] = parent.score(parent.model).loss
    found = {}
    for depth in depths:
        sets = [removed for removed in losses if len(removed) == parent.layers - depth]
        removed = min(sets, key=lambda one: (losses[one], one))
        kept = tuple(layer for layer in layers if layer not in removed)
        found[depth] = Depth(kept, removed, losses[removed])
    return found


def _losses(
    parent: Parent, ledger: Ledger, title: str, removals: Sequence[Layers]
) -> dict[Layers, float]:
    """The held-out loss without each of the sets of layers; the ranks share the batches."""
    if not removals:
        return {}
    keys = [f"{title}/{number}" for number in range(len(parent.batches))]
    found = ledger.results(
        title, keys, lambda key: parent.losses_without(int(key.rpartition("/")[2]), removals)
    )
    sums = list(found.values())
    return {
        removed: parent.mean([batch[n] for batch in sums]) for n, removed in enumerate(removals)
    }
