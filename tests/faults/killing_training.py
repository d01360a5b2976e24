"""kill -9 a training, take it up in another process, and compare the bits with those of an unbroken one.

Run by test_killed_training.py in a process of its own, so that a fork is cheap: `python killing_training.py
WORK KL`. A training is killed at each of its steps, before calls that change the disk (and so at every stage
of the writing of a checkpoint), and at any moment. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent / "trainers")]

import torch  # noqa: E402
from trainers_fakes import STEPS, few_steps, fitted_on  # noqa: E402

from inlay.builtin import base_path  # noqa: E402
from inlay.evals.inference import load_base  # noqa: E402
from inlay.trainers.checkpoints import Checkpoints  # noqa: E402

CALLS = ("open", "fsync", "rename", "mkdir", "rmdir", "unlink")
STRIDE = 5
MOMENTS = 12


def kill_me(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Calls:
    """Counts calls that change the disk, and kills this process before the one numbered `fatal`."""

    def __init__(self, fatal: int) -> None:
        self.fatal = fatal
        self.count = 0
        for name in CALLS:
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count == self.fatal:
                kill_me()
            return function(*arguments, **named)

        return call


def forked(act: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            if code:
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
            os._exit(code)
    return pid


def left_with(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_after(seconds: float) -> None:
    """Of processor time of this process, so that a busy machine moves no moment: SIGPROF, which nobody here
    handles, ends it as SIGKILL does."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def main(work: Path, kl: float) -> dict[str, Any]:
    torch.set_num_threads(1)
    base = load_base(base_path())
    settings = few_steps(kl=kl)
    fitted_on(base, few_steps(kl=kl, max_steps=1))  # every child finds all modules loaded
    run, said = work / "run", work / "said.json"

    def train(progress: Callable[[int, int, dict[str, float]], None] | None = None, fatal: int = 0) -> None:
        calls = Calls(fatal)
        checkpoints = Checkpoints(run, every=1)
        with checkpoints.held():
            made, fitted = fitted_on(base, settings, checkpoints=checkpoints, progress=progress)
            found = {"bits": made, "curve": fitted.curve, "resumed": fitted.resumed, "calls": calls.count}
            found["seconds"] = time.process_time()  # a fork's begins at 0
        said.write_text(json.dumps(found))

    def finished() -> dict[str, Any]:
        assert left_with(forked(train)) == 0
        found = json.loads(said.read_text())
        shutil.rmtree(run)
        return found

    unbroken = finished()
    resumed: dict[str, list[int]] = {"steps": [], "calls": [], "moments": []}

    def taken_up(way: str, code: int) -> None:
        assert code in (0, -signal.SIGKILL, -signal.SIGPROF), code
        found = finished()
        assert found["bits"] == unbroken["bits"], f"{way}: other bits, from {found['resumed']}"
        assert found["curve"] == unbroken["curve"]
        resumed[way].append(max(found["resumed"], default=0))

    for step in range(1, STEPS + 1):
        taken_up("steps", left_with(forked(lambda step=step: train(lambda d, *_: d == step and kill_me()))))
    for fatal in range(1, unbroken["calls"] + 1, STRIDE):
        taken_up("calls", left_with(forked(lambda fatal=fatal: train(fatal=fatal))))
    rng = random.Random(0)
    for _ in range(MOMENTS):
        seconds = rng.uniform(0.2, 1.0) * unbroken["seconds"]
        taken_up("moments", left_with(forked(lambda s=seconds: (killed_after(s), train()))))
    return resumed


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), float(sys.argv[2]))))
