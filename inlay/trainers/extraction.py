"""The adapter in a fully fine-tuned model: per weight matrix the best product of small factors of its change.

    D = W' − W,  D = U S Vᵀ,  A = √S_r V_rᵀ,  B = U_r √S_r        (Eckart and Young 1936)

What no matrix holds, norms and biases, is not in it; the record says what that was and how much.
"""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from inlay.evals.inference import Base


def copy_of(base: Base) -> PreTrainedModel:
    """The base's model again, in float32 and all of it trainable; the base's own tensors are not touched."""
    return copy.deepcopy(base.model).float().requires_grad_(True)


def extracted(base: Base, trained: PreTrainedModel, rank: int) -> tuple[PeftModel, dict[str, Any]]:
    """The LoRA of at most `rank` in `trained`, on the base, and what it leaves out as plain JSON.

    `residual`: ‖D − B A‖ / ‖D‖ over all matrices, `residual_of`: of each; `left_out`: parameters that changed
    and that no matrix holds, with ‖p' − p‖ / ‖p‖; `missing`: the share of the norm of the whole change that
    is not in the adapter. Raises InputError where training changed no matrix.
    """
    from peft import PeftModel

    from inlay.composer.export import export
    from inlay.composer.factors import Adapter
    from inlay.composer.truncation import changes, cut

    factors, residual, left_out, embeddings = {}, {}, {}, set()
    whole = matrices = lost = 0.0
    for change in changes(base.model, trained):
        squared = float(change.delta.double().square().sum())
        whole += squared
        if change.module is None:
            norm = float(change.before.double().norm())
            left_out[change.key] = math.sqrt(squared) / norm if norm else math.inf
            continue
        a, b, error = cut(change.delta, rank, None)
        factors[change.module], residual[change.module] = (a, b), error
        matrices, lost = matrices + squared, lost + error**2 * squared
        if change.looked_up:
            embeddings.add(change.module)
    if not factors:
        raise InputError("full fine-tuning changed no weight matrix", fix="train longer, or at a higher rate")
    with tempfile.TemporaryDirectory(prefix="inlay-extracted-") as folder:
        made = export(Adapter("full", factors, embeddings=frozenset(embeddings)), Path(folder) / "adapter")
        with warnings.catch_warnings():
            # PEFT warns that tied weights part, and each of them has its own factors here.
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(base.model, str(made.folder))
    record = {
        "rank": made.rank,
        "residual": math.sqrt(lost / matrices),
        "residual_of": residual,
        "left_out": left_out,
        "missing": math.sqrt(max(0.0, whole - matrices + lost) / whole),
    }
    return model, record
