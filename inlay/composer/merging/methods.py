"""Every method of merging by name, as data: a plan can be checked and printed without torch.

`Method.basis` says what a method's result depends on. "free": equivariant under rotations of the rows and of
the columns, so that the core space gives exactly what the dense deltas give. "left": under rotations of the
rows only; such a method works on Uᵀ Δ and is exact as well. "bound": element by element, so that its result
is a matter of the basis: in core space it is defined by the singular bases, in dense space by the neurons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from inlay.errors import InputError

Basis = Literal["free", "left", "bound"]
SPACES = ("core", "dense")


@dataclass(frozen=True)
class Parameter:
    """A parameter with its range, ends included; `default` None where it must be given."""

    name: str
    kind: type
    default: Any = None
    low: float = -math.inf
    high: float = math.inf

    @property
    def range(self) -> str:
        """As messages and the documentation name it."""
        if self.kind is bool:
            return "true or false"
        number = "a whole number" if self.kind is int else "a number"
        if math.isinf(self.high):
            return number if math.isinf(self.low) else f"{number} of at least {self.low:g}"
        return f"{number} from {self.low:g} to {self.high:g}"

    def checked(self, value: Any, method: str) -> Any:
        """`value` as this parameter's kind; InputError where it is another, or out of range."""
        if self.kind is bool:
            fits = isinstance(value, bool)
        else:
            allowed = int if self.kind is int else (int, float)
            fits = not isinstance(value, bool) and isinstance(value, allowed)
            fits = fits and self.low <= value <= self.high and math.isfinite(value)
        if not fits:
            raise InputError(f"{method}: {self.name} must be {self.range}, got {str(value)[:60]!r}")
        return self.kind(value)


@dataclass(frozen=True)
class Method:
    """One method. `most` None: any number of inputs. `weighted`: the weights are the method's own; otherwise
    a member's weight scales its delta before the method sees it. `random`: it draws, by the seed. `ordered`:
    its inputs are not alike. `sums`: it gives Σ c_t Δ_t, its coefficients "fixed" by the weights, or by them
    and the deltas' lengths and "angles". `home`: the module whose `merged` computes it; "mergekit" runs the
    method of that name there."""

    name: str
    paper: str
    parameters: tuple[Parameter, ...] = ()
    fewest: int = 1
    most: int | None = None
    basis: Basis = "bound"
    random: bool = False
    ordered: bool = False
    weighted: bool = True
    home: str = "mergekit"
    sums: Literal["fixed", "angles"] | None = None

    @property
    def inputs(self) -> str:
        if self.most == self.fewest:
            return f"exactly {self.fewest}"
        return "any number" if self.fewest == 1 else f"at least {self.fewest}"


_NORMALIZE, _NO_NORMALIZE = Parameter("normalize", bool, True), Parameter("normalize", bool, False)
_RESCALE, _NO_RESCALE = Parameter("rescale", bool, True), Parameter("rescale", bool, False)
_DENSITY = Parameter("density", float, 1.0, 0.0, 1.0)
_LAMBDA = Parameter("lambda", float, 1.0)
_GAMMA = Parameter("gamma", float, 0.01, 0.0, 1.0)
_DELLA = Parameter("epsilon", float, 0.15, 0.0, 0.5)
_RAM = Parameter("epsilon", float, 1e-5, 0.0)
_SCALE = Parameter("scale", float, 1.0)
_T = Parameter("t", float, None, 0.0, 1.0)

METHODS: tuple[Method, ...] = (
    Method("linear", "https://arxiv.org/abs/2203.05482", (_NORMALIZE,), basis="free", sums="fixed"),
    Method(
        "task_arithmetic",
        "https://arxiv.org/abs/2212.04089",
        (_NO_NORMALIZE, _LAMBDA),
        basis="free",
        sums="fixed",
    ),
    Method("ties", "https://arxiv.org/abs/2306.01708", (_DENSITY, _NORMALIZE, _NO_RESCALE, _LAMBDA)),
    Method(
        "dare_linear",
        "https://arxiv.org/abs/2311.03099",
        (_DENSITY, _NO_NORMALIZE, _RESCALE, _LAMBDA),
        random=True,
    ),
    Method(
        "dare_ties",
        "https://arxiv.org/abs/2311.03099",
        (_DENSITY, _NO_NORMALIZE, _RESCALE, _LAMBDA),
        random=True,
    ),
    Method(
        "della",
        "https://arxiv.org/abs/2406.11617",
        (_DENSITY, _DELLA, _NORMALIZE, _RESCALE, _LAMBDA),
        random=True,
    ),
    Method(
        "della_linear",
        "https://arxiv.org/abs/2406.11617",
        (_DENSITY, _DELLA, _NO_NORMALIZE, _RESCALE, _LAMBDA),
        random=True,
    ),
    Method(
        "breadcrumbs",
        "https://arxiv.org/abs/2312.06795",
        (_DENSITY, _GAMMA, _NO_NORMALIZE, _NO_RESCALE, _LAMBDA),
    ),
    Method(
        "breadcrumbs_ties",
        "https://arxiv.org/abs/2312.06795",
        (_DENSITY, _GAMMA, _NO_NORMALIZE, _NO_RESCALE, _LAMBDA),
    ),
    Method(
        "sce",
        "https://arxiv.org/abs/2408.07990",
        (Parameter("select_topk", float, 1.0, 0.0, 1.0),),
        weighted=False,
    ),
    Method(
        "karcher",
        "https://arxiv.org/abs/2603.04972",
        (Parameter("max_iter", int, 10, 1, 1000), Parameter("tol", float, 1e-5, 0.0)),
        basis="free",
        weighted=False,
        sums="angles",
    ),
    Method(
        "multislerp",
        "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
        (Parameter("normalize_weights", bool, True),),
        basis="free",
        sums="angles",
    ),
    Method(
        "model_stock",
        "https://arxiv.org/abs/2403.19522",
        fewest=2,
        basis="free",
        weighted=False,
        sums="angles",
    ),
    Method("ram", "https://arxiv.org/abs/2601.13572", (_RAM,), fewest=2, weighted=False),
    Method(
        "ramplus_tl",
        "https://arxiv.org/abs/2601.13572",
        (Parameter("r", float, 0.1, 0.0), Parameter("alpha", float, 0.2, 0.0), _RAM),
        fewest=2,
        weighted=False,
    ),
    Method(
        "slerp",
        "https://en.wikipedia.org/wiki/Slerp",
        (_T,),
        fewest=2,
        most=2,
        basis="free",
        ordered=True,
        weighted=False,
        sums="angles",
    ),
    Method(
        "nuslerp",
        "https://en.wikipedia.org/wiki/Slerp",
        fewest=2,
        most=2,
        basis="free",
        sums="angles",
    ),
    Method(
        "nearswap",
        "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
        (Parameter("t", float, None, 0.0),),
        fewest=2,
        most=2,
        ordered=True,
        weighted=False,
    ),
    Method(
        "tsv_m",
        "https://arxiv.org/abs/2412.00081",
        (Parameter("keep", float, 1.0, 0.0, 1.0), _SCALE),
        basis="free",
        weighted=False,
        home="tsv_m",
    ),
    Method(
        "iso_c",
        "https://arxiv.org/abs/2502.04959",
        (_SCALE,),
        fewest=2,
        basis="free",
        weighted=False,
        home="iso_c",
    ),
    Method(
        "knots_ties",
        "https://arxiv.org/abs/2410.19735",
        (_DENSITY, _SCALE),
        basis="left",
        home="knots_ties",
        weighted=False,
    ),
)
"""What this version can merge by, in the order of the documentation."""

REFUSED: Mapping[str, str] = {
    "arcee_fusion": "it compares softmaxes over rows of whole weights, and a delta has none",
    "passthrough": "it copies one input and merges nothing",
    "cat": "it learns its weights from labelled examples, which a recipe does not carry",
}
"""Methods that people know and that have no meaning here, each with its reason."""

_BY_NAME = {method.name: method for method in METHODS}


def method_of(name: str) -> Method:
    """InputError for a method that there is not, or that is refused."""
    if name in REFUSED:
        instead = "learn it by inlay.composer.add_cat, which registers a version; " if name == "cat" else ""
        raise InputError(
            f"adapters cannot be merged by {name}: {REFUSED[name]}", fix=f"{instead}see docs/merging.md"
        )
    if name not in _BY_NAME:
        raise InputError(
            f"there is no method {str(name)[:60]!r} of merging", fix=f"one of {', '.join(_BY_NAME)}"
        )
    return _BY_NAME[name]


@dataclass(frozen=True)
class Settings:
    """How to merge, checked: every parameter has its value. At most one of `rank` and `energy` (the share of
    the squared norm that the kept directions must have) is given."""

    method: Method
    params: Mapping[str, Any]
    space: str = "core"
    rank: int | None = None
    energy: float | None = None
    seed: int = 0

    @classmethod
    def of(
        cls,
        method: str,
        inputs: int,
        *,
        params: Mapping[str, Any] | None = None,
        space: str = "core",
        rank: int | None = None,
        energy: float | None = None,
        seed: int = 0,
    ) -> Settings:
        """InputError for an unknown method, space or parameter, a value out of range, too few or too many
        inputs."""
        known = method_of(method)
        if inputs < known.fewest or (known.most is not None and inputs > known.most):
            raise InputError(f"{method} merges {known.inputs} of adapters, got {inputs}")
        if space not in SPACES:
            raise InputError(f"a space is one of {', '.join(SPACES)}, got {str(space)[:60]!r}")
        if rank is not None and energy is not None:
            raise InputError("a merge is cut by its rank or by its energy, not by both", fix="remove one")
        if rank is not None and (type(rank) is not int or rank < 1):
            raise InputError(f"rank must be a whole number from 1, got {str(rank)[:60]!r}")
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise InputError(f"seed must be a whole number from 0, got {str(seed)[:60]!r}")
        if energy is not None:
            if isinstance(energy, bool) or not isinstance(energy, int | float) or not 0.0 < energy <= 1.0:
                raise InputError(f"energy must be above 0 and at most 1, got {str(energy)[:60]!r}")
            energy = float(energy)
        return cls(known, _params(known, params or {}), space, rank, energy, seed)

    @classmethod
    def at(cls, path: str, weights: Sequence[float], method: str, **how: Any) -> Settings:
        """`of` for the merge at `path` of a recipe, its weights checked as well; errors name the place."""
        try:
            settings = cls.of(method, len(weights), **how)
            settings.check_weights(weights)
        except InputError as error:
            raise InputError(f"the merge at {path or 'the root'}: {error.message}", fix=error.fix) from None
        return settings

    def check_weights(self, weights: Sequence[float]) -> None:
        """InputError for weights that are not finite, or that the method cannot divide by."""
        if not all(math.isfinite(weight) for weight in weights):
            raise InputError(f"weights must be finite, got {[float(w) for w in weights]}")
        name = "normalize" if self.method.name == "linear" else "normalize_weights"
        divides = self.method.name in ("linear", "multislerp") and self.params[name]
        if divides and abs(math.fsum(weights)) < 1e-8:
            raise InputError(
                f"{self.method.name} divides by the sum of the weights, which is 0",
                fix=f"write params: {{{name}: false}}",
            )


def _params(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    names = [parameter.name for parameter in method.parameters]
    unknown = [str(name)[:60] for name in given if name not in names]
    if unknown:
        allowed = f"it has {', '.join(names)}" if names else "it has none"
        raise InputError(f"{method.name} has no parameter {unknown[0]!r}", fix=allowed)
    found = {}
    for parameter in method.parameters:
        if parameter.name in given:
            found[parameter.name] = parameter.checked(given[parameter.name], method.name)
        elif parameter.default is None:
            raise InputError(
                f"{method.name} needs the parameter {parameter.name}, {parameter.range}",
                fix=f"write params: {{{parameter.name}: …}}",
            )
        else:
            found[parameter.name] = parameter.default
    if method.name.startswith("della") and found["density"] not in (0.0, 1.0):
        density, epsilon = found["density"], found["epsilon"]
        if not 0.0 < density - epsilon <= density + epsilon < 1.0:
            raise InputError(
                f"{method.name}: density ± epsilon must stay between 0 and 1, got {density:g} ± {epsilon:g}"
            )
    return found
