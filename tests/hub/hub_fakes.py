"""A small base, adapters for it, and a process that runs verbs against the hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hub_server import Hub
from safetensors.numpy import save, save_file

WIDTH, LAYERS, TARGETS = 8, 2, ("q_proj", "v_proj")
MODULES = tuple(f"model.layers.{i}.self_attn.{t}" for i in range(LAYERS) for t in TARGETS)
TOKEN = "hf_ThisTokenMustBeSeenNowhere0123"

# huggingface_hub reads its environment when it is imported, so verbs run in a process of their own. This one
# runs many, to pay for the imports once: a JSON list of arguments a line in, [exit code, stdout, stderr] out.
_RUNNER = """
import contextlib, io, json, sys
from inlay.cli import run
real = sys.stdout
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(json.loads(line))
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=real, flush=True)
"""


def make_base(folder: Path, *, seed: int = 0, width: int = WIDTH) -> Path:
    rng = np.random.default_rng(seed)
    tensors = {f"{m}.weight": rng.normal(size=(width, width)).astype(np.float32) for m in MODULES}
    tensors["model.embed_tokens.weight"] = rng.normal(size=(32, width)).astype(np.float32)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "tokenizer.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return folder


def adapter_files(seed: int = 0, *, rank: int = 2, width: int = WIDTH, **config: Any) -> dict[str, bytes]:
    """A LoRA's two files, by name."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for module in MODULES:
        for side, shape in (("A", (rank, width)), ("B", (width, rank))):
            tensors[f"base_model.model.{module}.lora_{side}.weight"] = rng.normal(size=shape).astype(
                np.float32
            )
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": list(TARGETS), **config}
    return {
        "adapter_config.json": json.dumps(settings, indent=2).encode(),
        "adapter_model.safetensors": save(tensors),
    }


def make_adapter(folder: Path, seed: int = 0, *, more: dict[str, bytes] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True)
    for name, data in (adapter_files(seed, **config) | (more or {})).items():
        (folder / name).write_bytes(data)
    return folder


@dataclass(frozen=True)
class Ran:
    """How a verb ended."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> Any:
        """What --json printed; the test fails where the verb did."""
        assert self.code == 0, self.err + self.out
        return json.loads(self.out)["result"]


def environment(hub: Hub, home: Path, **changes: str) -> dict[str, str]:
    """The environment of a process that talks to `hub`, logged in, with a home and a cache of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "INLAY_"))}
    return kept | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",  # the hub on loopback speaks the large file protocol, not Xet
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": hub.token,
        "INLAY_CACHE": str(home / "cache"),
        "INLAY_USER": "anna",
        **changes,
    }


class Runner:
    """One process that runs verbs, one after the other."""

    def __init__(self, env: dict[str, str]) -> None:
        self.cache = Path(env["INLAY_CACHE"])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RUNNER],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: object) -> Ran:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(a) for a in arguments]) + "\n")
        self._process.stdin.flush()
        return Ran(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@contextmanager
def runner(env: dict[str, str]) -> Iterator[Runner]:
    made = Runner(env)
    try:
        yield made
    finally:
        made.close()


def run_alone(env: dict[str, str], *arguments: object) -> Ran:
    """One verb in a process of its own, as from a shell."""
    code = "import sys; from inlay.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(a) for a in arguments)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
