"""A real vLLM, in an environment of its own: `make test-vllm`. Not collected anywhere else."""

from __future__ import annotations

import os

import pytest

collect_ignore = [] if os.environ.get("INLAY_TEST_VLLM") else ["test_vllm_server.py"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vllm: needs vLLM; run by `make test-vllm`")
