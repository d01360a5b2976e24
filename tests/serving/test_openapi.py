"""The OpenAPI document, and what schemathesis finds when it makes requests from it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from api_fakes import Fakes, fake_app, listening

from inlay.evals.inference import Base

KEY = "Bearer k"


@pytest.fixture(scope="module")
def fakes(shared_base: Base) -> Fakes:
    fakes = fake_app(shared_base)
    fakes.keys.add("k", "t", "*")
    return fakes


@pytest.fixture(scope="module")
def url(fakes: Fakes) -> Iterator[str]:
    with listening(fakes.app) as url:
        yield url


def test_every_status_is_documented(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    statuses = {
        (path, method): set(operation["responses"])
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    answered = {"200", "400", "401", "404", "408", "413", "429", "500", "503", "504", "default"}
    assert statuses == {
        ("/v1/chat/completions", "post"): answered,
        ("/v1/completions", "post"): answered,
        ("/v1/models", "get"): {"200", "401", "500", "default"},
        ("/v1/models/{model}", "get"): {"200", "401", "404", "500", "default"},
        ("/health", "get"): {"200", "500", "503", "default"},
        ("/ready", "get"): {"200", "500", "503", "default"},
    }
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}"):
        for operation in document["paths"][path].values():
            assert operation["security"] == [{"HTTPBearer": []}]


@pytest.mark.slow
def test_schemathesis_finds_nothing(url: str, fakes: Fakes, tmp_path: Path) -> None:
    """Its own command: examples, what lies at the bounds of each field, random and broken requests, and links
    between endpoints. No 5xx, and every answer, errors above all, as the document says."""
    checks = (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
        "unsupported_method",
        "ignored_auth",
    )
    options = [
        "--checks",
        ",".join(checks),
        "--max-examples",
        "30",
        "--seed",
        "1",
        "--header",
        f"Authorization: {KEY}",
    ]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    told = [json.loads(line) for line in fakes.log.splitlines()]
    statuses = {(each["path"], each["status"]) for each in told}
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert {(path, 200), (path, 400), (path, 401), (path, 405)} <= statuses
    assert len(told) > 300 and all(each["level"] == "info" for each in told)
    assert fakes.out == 0 and fakes.names.taken > 20
