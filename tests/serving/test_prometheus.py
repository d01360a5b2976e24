"""What Prometheus reads: parsed with its own client, counts and bounds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from inlay.serving.logs import Logs
from inlay.serving.metrics import SERIES, Metrics, Telling

SCHEDULER = SimpleNamespace(waiting=0, running=2, prefix_nbytes=64, bank=SimpleNamespace(nbytes=4096))
SHELF = SimpleNamespace(loaded=lambda: [SimpleNamespace(ref="acme@v3")], uses=lambda loaded: 2)
FOLLOWING = SimpleNamespace(store_age=lambda: 0.25, problems=dict)


def values(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """The samples called `name`, by the values of their labels in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name == name
    }


def test_requests_are_counted_by_variant_version_arm_and_status() -> None:
    metrics = Metrics()
    metrics.request("acme", "v3", "acme@canary", 200, 0.3, prompt=7, completion=5, cached=4)
    metrics.request("acme", "v3", "acme@canary", 200, 0.7, prompt=1)
    metrics.request("acme", "v2", None, 503, 0.1)
    metrics.first_token("acme", "v3", "acme@canary", 0.2)
    arm = ("acme@canary", "200", "acme", "v3")
    assert values(metrics, "inlay_requests_total") == {arm: 2.0, ("", "503", "acme", "v2"): 1.0}
    assert values(metrics, "inlay_request_seconds_sum")["acme@canary", "acme", "v3"] == 1.0
    assert values(metrics, "inlay_request_seconds_bucket")["acme@canary", "0.5", "acme", "v3"] == 1.0
    assert values(metrics, "inlay_first_token_seconds_count")["acme@canary", "acme", "v3"] == 1.0
    tokens = {key[1]: value for key, value in values(metrics, "inlay_tokens_total").items()}
    assert tokens == {"prompt": 8.0, "completion": 5.0, "cached": 4.0}


def test_what_was_not_found_is_other_whatever_it_called_itself() -> None:
    metrics = Metrics()
    for n in range(50):
        metrics.request(f"made-up-{n}", None, None, 404, 0.01)
        metrics.request(None, None, None, 400, 0.01)
        metrics.refused("model_not_found")
    assert values(metrics, "inlay_requests_total") == {
        ("", "404", "other", "other"): 50.0,
        ("", "400", "other", "other"): 50.0,
    }
    assert values(metrics, "inlay_refused_total") == {("model_not_found",): 50.0}


def test_series_are_bounded() -> None:
    metrics = Metrics()
    for n in range(SERIES + 5):
        metrics.request("acme", f"v{n}", None, 200, 0.01)
    metrics.request("acme", "v3", None, 200, 0.01)
    found = values(metrics, "inlay_requests_total")
    assert len(found) == SERIES + 1
    assert found["", "200", "other", "other"] == 5.0
    assert found["", "200", "acme", "v3"] == 2.0


def test_two_servers_of_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.request("acme", "v1", None, 200, 0.1)
    assert values(other, "inlay_requests_total") == {}
    assert len(values(one, "inlay_requests_total")) == 1


def test_what_happens_is_counted_and_logged() -> None:
    stream, metrics = io.StringIO(), Metrics()
    told = Telling(metrics, Logs(stream=stream))
    told.swap("acme@prod", "acme@v1", "acme@v2")
    told.load("acme@v3", 0.04)
    told.load_failed("acme@prod", "object sha256:b is damaged")
    told.put_away("acme@v2")
    assert values(metrics, "inlay_swaps_total") == {("acme",): 1.0}
    assert values(metrics, "inlay_load_failures_total") == {("acme",): 1.0}
    assert values(metrics, "inlay_load_seconds_count") == {(): 1.0}
    assert values(metrics, "inlay_evictions_total") == {(): 1.0}
    said = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["level"], line["ref"]) for line in said] == [
        ("swapped", "info", "acme@prod"),
        ("loaded", "info", "acme@v3"),
        ("load failed", "error", "acme@prod"),
        ("put away", "info", "acme@v2"),
    ]
    assert (said[0]["before"], said[0]["after"]) == ("acme@v1", "acme@v2")
    assert said[2]["why"] == "object sha256:b is damaged"


def test_every_metric_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    parts: Any = (SCHEDULER, SHELF, FOLLOWING)
    metrics = Metrics()
    metrics.watch(*parts)
    families = [family.name for family in text_string_to_metric_families(metrics.text().decode())]
    mine = [name for name in families if name.startswith("inlay_")]
    assert len(mine) > 15
    assert [name for name in mine if f"`{name}`" not in page and f"`{name}_total`" not in page] == []


def test_gauges_are_looked_up_when_asked_for() -> None:
    problems: dict[str, str] = {}
    scheduler = SimpleNamespace(**{**vars(SCHEDULER), "waiting": 3})
    following = SimpleNamespace(store_age=FOLLOWING.store_age, problems=lambda: problems)
    metrics = Metrics()
    parts: Any = (scheduler, SHELF, following)
    metrics.watch(*parts)
    scheduler.waiting = 5
    problems["acme@prod"] = "damaged"
    gauges = ("queue", "running", "loaded", "bank_bytes", "prefix_bytes", "store_age_seconds", "problems")
    assert [values(metrics, f"inlay_{name}")[()] for name in gauges] == [
        5.0,
        2.0,
        1.0,
        4096.0,
        64.0,
        0.25,
        1.0,
    ]
    assert values(metrics, "inlay_in_use") == {("acme", "v3"): 2.0}
    assert values(metrics, "process_resident_memory_bytes")[()] > 1e6
