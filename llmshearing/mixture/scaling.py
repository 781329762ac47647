"""Reference losses for a model size from models of other sizes: a / N^b + c for each domain.

Source: the Sheared LLaMA paper (arXiv 2310.06694) and the values of its released code.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field
from scipy.optimize import OptimizeWarning, curve_fit

from llmshearing.errors import UserError
from llmshearing.mixture.references import References
from llmshearing.quantities import NotNegative, Positive
from llmshearing.tables import Table
from llmshearing.typed_yaml import Section, load

START = (406.4, 0.336, 0.69)  # of Chinchilla (arXiv 2203.15556)
EVALUATIONS = 20_000
FAR = 4.0  # factor outside the measured sizes from which on a warning says so


class Measured(Section):
    """A model's losses."""

    parameters: Positive
    """Its size."""
    losses: dict[str, NotNegative] = Field(min_length=1)
    """Nats per token, by domain."""


class MeasuredModels(Section):
    """A file of measured losses."""

    models: list[Measured] = Field(min_length=3)
    """Three or more, for the three unknowns of a curve."""

    def rules(self) -> list[str]:
        """Compare the models."""
        sizes = [model.parameters for model in self.models]
        if len(set(sizes)) < len(sizes):
            return [f"models: found sizes {sizes}, expected each size once"]
        names = [set(model.losses) for model in self.models]
        odd = sorted(set.union(*names) - set.intersection(*names))
        error = f"models: found {', '.join(odd)} in some only, expected the same domains in each"
        return [error] if odd else []

    @property
    def by_size(self) -> list[Measured]:
        """The models, smallest first."""
        return sorted(self.models, key=lambda model: model.parameters)


@dataclass(frozen=True)
class Curve:
    """a / N^b + c, with its residuals at the measured sizes in nats."""

    a: float
    b: float
    c: float
    residuals: tuple[float, ...]

    def at(self, parameters: float) -> float:
        """The loss at a size."""
        return self.a / parameters**self.b + self.c


def fit(models: Sequence[Measured]) -> dict[str, Curve]:
    """Fit a curve for each domain; a UserError if one does not converge."""
    sizes = np.array([model.parameters for model in models], np.float64)
    return {
        domain: _curve(domain, sizes, np.array([model.losses[domain] for model in models]))
        for domain in models[0].losses
    }


def fit_warnings(
    curves: Mapping[str, Curve], models: Sequence[Measured], parameters: float
) -> list[str]:
    """Why the losses at a size may be wrong, one sentence each."""
    found = []
    smallest, largest = models[0].parameters, models[-1].parameters
    factor = max(smallest / parameters, parameters / largest)
    if factor > FAR:
        found.append(
            f"{parameters:g} parameters are a factor {factor:.1f} outside the measured sizes "
            f"({smallest:g} to {largest:g}): the losses are extrapolated"
        )
    for domain, curve in curves.items():
        if curve.c < 0:
            found.append(
                f"{domain}: the curve's asymptote is negative ({curve.c:.2f}), which a loss cannot "
                "be; use it only near the measured sizes"
            )
        if curve.at(parameters) <= 0:
            found.append(
                f"{domain}: the curve gives {curve.at(parameters):.4f}, which cannot be a loss"
            )
    return found


def fit_file(path: str | Path, parameters: float) -> tuple[References, str]:
    """Reference losses for a size from a file of `MeasuredModels`, and notes on the fit as text.

    Raises:
        UserError: the file or the size is unusable.
    """
    if not parameters > 0 or not math.isfinite(parameters):
        raise UserError(f"found {parameters} parameters, expected a number above 0")
    models = load(MeasuredModels, path, what="file of measured losses").by_size
    curves = fit(models)
    losses = {domain: round(curve.at(parameters), 6) for domain, curve in curves.items()}
    warned = [f"warning: {text}\n" for text in fit_warnings(curves, models, parameters)]
    references = References(losses=losses, source=f"fit to {len(models)} models at {parameters:g}")
    header = ["domain", "a", "b", "c", *(f"at {model.parameters:g}" for model in models)]
    lines = [
        [domain, f"{c.a:.5g}", f"{c.b:.4f}", f"{c.c:.4f}", *(f"{r:+.2e}" for r in c.residuals)]
        for domain, c in curves.items()
    ]
    table = Table("loss = a / N^b + c, and its residuals in nats", header, lines)
    return references, f"{table}\n{''.join(warned)}"


def _curve(domain: str, sizes: np.ndarray, losses: np.ndarray) -> Curve:
    def law(size: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
        return a / size**b + c

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", OptimizeWarning)  # three points give no covariance
        try:
            (a, b, c), _ = curve_fit(law, sizes, losses, p0=START, maxfev=EVALUATIONS)
        except RuntimeError as error:
            raise UserError(f"found no curve for {domain}: {error}; check its losses") from None
    return Curve(float(a), float(b), float(c), tuple((law(sizes, a, b, c) - losses).tolist()))
