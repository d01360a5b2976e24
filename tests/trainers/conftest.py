"""A second base: the built-in one with every weight a little off."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from inlay.evals.inference import Base


@pytest.fixture(scope="session")
def other_base_path(shared_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from safetensors.torch import load_file, save_file

    source = shared_base.fingerprint.path
    folder = tmp_path_factory.mktemp("bases") / "base-next"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    generator = torch.Generator().manual_seed(0)
    for file in source.glob("*.safetensors"):
        tensors = {
            name: (t.float() * (1 + 0.02 * torch.randn(t.shape, generator=generator))).to(t.dtype)
            for name, t in load_file(file).items()
        }
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def other_base(other_base_path: Path) -> Base:
    from inlay.evals.inference import load_base

    return load_base(other_base_path)
