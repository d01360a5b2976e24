"""A start that is orthogonal to what other adapters listen to.

An adapter adds B A x. Where the rows of a new A are orthogonal to those of the others' A, the new adapter
begins by answering to directions of x that the others do not touch, so that their sum disturbs neither
(O-LoRA, arXiv:2310.14152; InfLoRA, arXiv:2404.00228). Training moves A: the penalty holds it there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError

if TYPE_CHECKING:
    import torch

    from inlay.composer.factors import Adapter
    from inlay.evals.inference import Base
    from inlay.registry import Registry, Version

_MODULE = "base_model.model."


def others_of(store: Registry, refs: Sequence[str], base: Base) -> list[Version]:
    """The versions that `refs` name, a variant's lock standing for its members, each once.

    Raises BaseMismatch for one of another base.
    """
    from inlay.composer.bases import check_base
    from inlay.registry import Version

    found: dict[str, Version] = {}
    for ref in refs:
        named = store.resolve(ref)
        members = [named] if isinstance(named, Version) else [store.resolve(m.ref) for m in named.members]
        for version in members:
            assert isinstance(version, Version)
            check_base(version.base, base, version.ref)
            found[version.digest] = version
    return list(found.values())


def stacked(adapters: Sequence[Adapter]) -> dict[str, torch.Tensor]:
    """Module -> the rows of all its A, float64 (Σ r, in). Embeddings, whose A is looked up, are left out."""
    import torch

    rows: dict[str, list[torch.Tensor]] = {}
    for adapter in adapters:
        for module, (a, _) in adapter.factors.items():
            if module not in adapter.embeddings:
                rows.setdefault(module, []).append(a.double())
    return {module: torch.cat(parts) for module, parts in rows.items()}


def row_space(rows: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis (in, k) of the space of `rows` (n, in), k its numerical rank, as
    numpy.linalg.matrix_rank has it: singular values above max(n, in) · eps · the largest."""
    import torch

    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    least = values.max() * max(rows.shape) * torch.finfo(rows.dtype).eps
    return right[values > least].T


def start(model: Any, others: Mapping[str, torch.Tensor]) -> int:
    """Move every A of a fresh LoRA in `model` into the orthogonal complement of what `others`, by `stacked`,
    have of its module; how many modules that were.

    A ← A (I − Q Qᵀ), each row at the length it had, with Q the `row_space`. Raises InputError where an
    adapter is no LoRA that begins at zero, and where the space left is too small for its rank.
    """
    import torch

    places = _places(model)
    if any(bool(b.detach().any()) for _, b in places.values()):
        raise InputError(
            "an orthogonal start is one of an adapter that begins at zero, and this one does not",
            fix="leave its start to LoRA's own",
        )
    for module, (a, _) in places.items():
        if module in others:
            q = row_space(others[module]).to(a.device)
            rank, width = a.shape
            if rank > width - q.shape[1]:
                raise InputError(
                    f"an orthogonal start needs a rank up to what the others leave free, and of the {width} "
                    f"inputs of {module} they leave {width - q.shape[1]} for rank {rank}",
                    fix="lower the rank, or name fewer adapters in --orthogonal-to",
                )
            free = a.detach().double()
            lengths = free.norm(dim=1, keepdim=True)
            for _ in range(2):  # once more takes off what rounding left
                free = free - (free @ q) @ q.T
            with torch.no_grad():
                a.copy_(free * lengths / free.norm(dim=1, keepdim=True))
    return sum(module in others for module in places)


class Penalty:
    """λ Σ over modules of ‖A_old Aᵀ‖², the squared Frobenius norm, A_old (Σ r, in) by `stacked`; a scalar
    with gradient."""

    def __init__(self, model: Any, others: Mapping[str, torch.Tensor], weight: float) -> None:
        self.weight = weight
        self._pairs = [
            (others[module].to(a.device, a.dtype), a)
            for module, (a, _) in _places(model).items()
            if module in others
        ]

    def __call__(self) -> torch.Tensor:
        import torch

        each = [(old @ a.T).square().sum() for old, a in self._pairs]
        return self.weight * torch.stack(each).sum()


def _places(model: Any) -> dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    """Module -> its A (rank, in) and B (out, rank). InputError where the adapter is no LoRA."""
    found = {}
    for name, module in model.named_modules():
        if "default" in getattr(module, "lora_A", ()):
            a, b = (part["default"].weight for part in (module.lora_A, module.lora_B))
            found[name.removeprefix(_MODULE)] = (a, b)
    if not found or any(a.ndim != 2 for a, _ in found.values()):
        raise InputError(
            "an orthogonal start is one of LoRA's A on linear layers, and this adapter has none",
            fix="train a LoRA, rsLoRA or DoRA",
        )
    return found
