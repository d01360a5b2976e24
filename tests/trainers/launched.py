"""One training by every process that torchrun starts; each writes its weights' digest beside the others'."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from trainers_fakes import few_steps, fitted_on

from inlay.builtin import base_path
from inlay.evals.inference import load_base
from inlay.trainers import processes
from inlay.trainers.checkpoints import Checkpoints

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    device = processes.device("cpu")
    base = load_base(base_path(), device=device)
    checkpoints = Checkpoints(folder / "run", every=2)
    if processes.is_main():
        checkpoints.folder.mkdir(exist_ok=True)
    with processes.main_first(device):
        pass
    made, fitted = fitted_on(base, few_steps(batch_size=2), checkpoints=checkpoints)
    found = {"bits": made, "curve": fitted.curve, "tokens": fitted.task_tokens, "resumed": fitted.resumed}
    (folder / f"{processes.index()}.json").write_text(json.dumps(found))
