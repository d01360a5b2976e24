"""Small bases, adapters and recipes made in the test, and snapshots of a store.

Not a conftest, so that helpers are imported by name.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inlay.registry import EvalRecord, Registry, digest_of, digest_of_json

DTYPES = {
    "float32": "F32",
    "float16": "F16",
    "float64": "F64",
    "int64": "I64",
    "uint16": "BF16",
    "uint8": "U8",
}
WIDTH, RANK, LAYERS = 8, 2, 2
TARGETS = ("q_proj", "v_proj")
MODULES = tuple(f"model.layers.{i}.self_attn.{t}" for i in range(LAYERS) for t in TARGETS)


def safetensors(tensors: Mapping[str, np.ndarray], *, metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file; uint16 arrays stand for bf16."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position, body = 0, b""
    for name, tensor in tensors.items():
        data = np.ascontiguousarray(tensor).tobytes()
        header[name] = {
            "dtype": DTYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + len(data)],
        }
        position, body = position + len(data), body + data
    return with_header(json.dumps(header).encode(), body)


def with_header(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def base_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors = {f"{m}.weight": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) for m in MODULES}
    tensors["model.embed_tokens.weight"] = rng.normal(size=(32, WIDTH)).astype(np.float32)
    tensors["model.norm.weight"] = np.ones(WIDTH, np.float32)
    return tensors


def make_base(folder: Path, *, seed: int = 0, template: str = "{{ messages }}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text(template)
    (folder / "model.safetensors").write_bytes(safetensors(base_tensors(seed)))
    return folder


def adapter_tensors(seed: int = 0, rank: int = RANK) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors = {}
    for module in MODULES:
        tensors[f"base_model.model.{module}.lora_A.weight"] = rng.normal(size=(rank, WIDTH)).astype(
            np.float32
        )
        tensors[f"base_model.model.{module}.lora_B.weight"] = rng.normal(size=(WIDTH, rank)).astype(
            np.float32
        )
    return tensors


def make_adapter(
    folder: Path,
    *,
    seed: int = 0,
    tensors: Mapping[str, np.ndarray] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": list(TARGETS)}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **(config or {})}, indent=2))
    (folder / "adapter_model.safetensors").write_bytes(safetensors(tensors or adapter_tensors(seed)))
    return folder


def snapshot(registry: Registry) -> dict[str, Any]:
    """Every file of the store by its hash, and every row: equal before and after means unchanged."""
    files = {
        str(p.relative_to(registry.path)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(registry.path.rglob("*"))
        if p.is_file() and not p.name.startswith("registry.db")
    }
    connection = sqlite3.connect(registry.path / "registry.db")
    dump = list(connection.iterdump())
    connection.close()
    return {"files": files, "rows": dump}


def put_suite(registry: Registry, name: str, n: int = 4, *, held_out: bool = True) -> str:
    split = "held_out" if held_out else "protected"
    rows = [{"id": f"{name}-{i}", "prompt": "?", "answer": "!", "split": split} for i in range(n)]
    items = "".join(json.dumps(row) + "\n" for row in rows).encode()
    digest = digest_of(items)
    registry.put_suite(name, digest, items, metric="exact_match/1", skills={"all": {"items": n}})
    return digest


def score(
    registry: Registry,
    subject: str,
    suite: str,
    outcomes: tuple[bool, ...],
    *,
    protocol: Mapping[str, Any] | None = None,
    like: str = "legal@v1",
    metric: str = "exact_match/1",
) -> EvalRecord:
    """Put an eval of `subject` (reference, digest or "base") under the base of `like`."""
    base = registry.resolve(like).base
    digest = (
        subject if subject == "base" or subject.startswith("sha256:") else registry.resolve(subject).digest
    )
    detail = dict(protocol or {"template": "chat"})
    mean = sum(outcomes) / len(outcomes)
    return registry.put_eval(
        EvalRecord(
            subject=digest,
            base_weights=base.weights,
            base_prompt=base.prompt,
            suite=registry.suite(suite).digest,
            suite_name=suite,
            metric=metric,
            protocol=digest_of_json(detail),
            protocol_detail=detail,
            score=mean,
            n=len(outcomes),
            low=max(0.0, mean - 0.1),
            high=min(1.0, mean + 0.1),
            outcomes=outcomes,
        )
    )
