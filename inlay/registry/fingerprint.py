"""What a base model is, whatever it is called: a digest of its weights and a digest of how it is prompted.

    weights = sha256 of canonical JSON [[name, dtype, shape, sha256 of the bytes], …], sorted by name
    prompt  = sha256 of canonical JSON [[file name, sha256], …] of the tokenizer and the chat template

Cutting the same tensors into other shards, in another order, changes neither. Hashing gigabytes is done
once: the tensors' digests are cached under the file's path, size, mtime and inode, and `verify=True`
hashes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inlay.errors import InputError
from inlay.registry.canonical import CHUNK, PREFIX, canonical, digest_of, digest_of_file, digest_of_json
from inlay.registry.hub import snapshot
from inlay.registry.safetensors_header import read_header

PROMPT_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_MAX_JSON = 64 << 20
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

Tensors = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class BaseFingerprint:
    """Identity of a base. `tensors` maps names to (dtype, shape); `path` is the folder that was read,
    `source` what was asked for: the folder's whole path or the hub id.
    """

    weights: str
    prompt: str
    name: str
    revision: str | None
    path: Path
    architecture: str
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = field(repr=False)
    source: str = ""

    @classmethod
    def of(
        cls, base: str | Path | BaseFingerprint, revision: str | None = None, *, verify: bool = False
    ) -> BaseFingerprint:
        """The fingerprint of a folder, or of a hub id at `revision` (fetched, `.revision` being the commit).

        `verify` hashes every byte again instead of believing the cache. Raises InputError where it is no
        base, wants remote code, or has its weights only as pickles, StoreBusy where the hub is out of reach.
        """
        if isinstance(base, BaseFingerprint):
            return base
        folder, source = Path(base).expanduser(), str(base)
        if folder.is_dir():
            folder = folder.resolve()
            return _of_folder(folder, folder.name, revision, str(folder), verify)
        fetched, commit = snapshot(source, revision)
        return _of_folder(fetched, source, commit or revision, source, verify)


def cache_dir() -> Path:
    """Where what can be made again is kept: $INLAY_CACHE, $XDG_CACHE_HOME/inlay or ~/.cache/inlay."""
    named = os.environ.get("INLAY_CACHE")
    if named:
        return Path(named).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "inlay"


def refuse_remote_code(config: Mapping[str, Any], where: str) -> None:
    """Raise InputError if a configuration asks for code from outside, at any depth."""
    pending: list[Any] = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            if value.get("auto_map"):
                raise InputError(
                    f"{where} has an auto_map: it wants code from outside to run, which Inlay never does",
                    fix="use a model that transformers itself supports",
                )
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def read_json(path: Path, *, bound: int = _MAX_JSON) -> dict[str, Any]:
    """The JSON object in a file of at most `bound` bytes; InputError otherwise."""
    try:
        if path.stat().st_size > bound:
            raise InputError(f"{path.name} must be at most {bound} bytes, it has {path.stat().st_size}")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is not sound JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path.name} must hold a JSON object, got a {type(value).__name__}")
    return value


def _of_folder(folder: Path, name: str, revision: str | None, source: str, verify: bool) -> BaseFingerprint:
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{name} is an adapter, not a base", fix="give the folder of the model it was trained on"
        )
    if not (folder / "config.json").is_file():
        raise InputError(f"a base needs a config.json, {str(folder)!r} has none", fix="give a model's folder")
    config = read_json(folder / "config.json")
    refuse_remote_code(config, f"{name}/config.json")
    if (folder / "tokenizer_config.json").is_file():
        refuse_remote_code(read_json(folder / "tokenizer_config.json"), f"{name}/tokenizer_config.json")
    contents: dict[str, tuple[str, tuple[int, ...], str]] = {}
    for shard in shards_of(folder, name):
        for tensor, content in _tensors(shard, verify).items():
            if tensor in contents:
                raise InputError(
                    f"tensor {tensor!r} of the base {name} is in two files", fix="remove one of them"
                )
            contents[tensor] = content
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    prompt = [[n, digest_of_file(folder / n)[0]] for n in PROMPT_FILES if (folder / n).is_file()]
    return BaseFingerprint(
        weights=digest_of_json([[n, d, list(s), h] for n, (d, s, h) in sorted(contents.items())]),
        prompt=digest_of_json(prompt),
        name=name,
        revision=revision,
        path=folder,
        architecture=str(architecture or config.get("model_type") or "unknown"),
        tensors={n: (d, s) for n, (d, s, _) in sorted(contents.items())},
        source=source,
    )


def shards_of(folder: Path, name: str) -> list[Path]:
    """The files that hold a base's weights; InputError where one is missing, or there are only pickles."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index.name} of the base {name} must have a weight_map")
        files = sorted({str(f) for f in weight_map.values()})
        for file in files:
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise InputError(f"{index.name} of the base {name} points out of its folder: {file[:80]!r}")
        shards = [folder / file for file in files]
        for shard in shards:
            if not shard.is_file():
                raise InputError(f"the base {name} lacks its shard {shard.name}", fix="download it again")
        return shards
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    shards = sorted(p for p in folder.glob("*.safetensors") if p.is_file())
    if shards:
        return shards
    if any(path for pattern in _PICKLES for path in folder.glob(pattern)):
        raise InputError(
            f"the base {name} has its weights only as a pickle, which runs code when read",
            fix="load it with transformers and `model.save_pretrained(folder)`, which writes safetensors",
        )
    raise InputError(f"the base {name} has no *.safetensors", fix="give a folder with a model's weights")


def _tensors(shard: Path, verify: bool) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """{name: (dtype, shape, digest of its bytes)} of one file, from the cache where that is sound."""
    real = shard.resolve()
    status = real.stat()
    key = [str(real), status.st_size, status.st_mtime_ns, status.st_ino]
    cached = cache_dir() / "fingerprints" / f"{digest_of(canonical(key))[len(PREFIX) :]}.json"
    if not verify and cached.is_file():
        try:
            record = json.loads(cached.read_bytes())
            if record["key"] == key:
                return {n: (d, tuple(s), h) for n, (d, s, h) in record["tensors"].items()}
        except (ValueError, KeyError, TypeError, OSError):
            pass  # a broken cache is only a cache: hash again, and write it anew below
    tensors: dict[str, tuple[str, tuple[int, ...], str]] = {}
    with open(real, "rb") as file:
        for tensor in sorted(read_header(real).values(), key=lambda t: t.begin):
            state, left = hashlib.sha256(), tensor.end - tensor.begin
            file.seek(tensor.begin)
            while left:
                chunk = file.read(min(CHUNK, left))
                if not chunk:
                    raise InputError(f"{shard.name} was cut while it was read", fix="try again")
                state.update(chunk)
                left -= len(chunk)
            tensors[tensor.name] = (tensor.dtype, tensor.shape, PREFIX + state.hexdigest())
    _remember(cached, {"key": key, "tensors": {n: [d, list(s), h] for n, (d, s, h) in tensors.items()}})
    return tensors


def _remember(path: Path, record: dict[str, Any]) -> None:
    """Write a cache file in one step; where that cannot be, it costs time the next time and nothing else."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(canonical(record), encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
