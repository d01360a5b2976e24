"""What Prometheus is told: counters and histograms as things happen, gauges looked up when it asks.

A registry of its own, so that two servers of one process (tests) do not share counts. Labels are bounded:
only what the registry knew gets series of its own, and of that no more than `SERIES`; the rest is "other".
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from inlay.serving.following import Following
    from inlay.serving.logs import Logs
    from inlay.serving.scheduler import Scheduler
    from inlay.serving.shelf import Shelf

SERIES = 2000
"""Combinations of variant, version and arm that get series of their own."""
OTHER = "other"
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
LATENCY = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LOADING = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
disable_created_metrics()  # twice the series, which Prometheus does not read
_WHO = ("variant", "version", "arm")


class Metrics:
    """Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seen: set[tuple[str, str, str]] = set()
        self._lock = threading.Lock()
        mine = self.registry
        self._requests = Counter("inlay_requests", "Requests answered.", (*_WHO, "status"), registry=mine)
        self._seconds = Histogram(
            "inlay_request_seconds",
            "From a request's arrival to its end.",
            _WHO,
            buckets=LATENCY,
            registry=mine,
        )
        self._first = Histogram(
            "inlay_first_token_seconds",
            "From a request's arrival to its first token.",
            _WHO,
            buckets=FIRST_TOKEN,
            registry=mine,
        )
        self._tokens = Counter(
            "inlay_tokens",
            "Tokens of requests: prompt, completion, cached (those of the prompt that were known already).",
            (*_WHO, "kind"),
            registry=mine,
        )
        self._refused = Counter(
            "inlay_refused", "Requests refused before a target was found.", ("why",), registry=mine
        )
        self._swaps = Counter(
            "inlay_swaps", "Aliases that turned to another target.", ("variant",), registry=mine
        )
        self._failed = Counter("inlay_load_failures", "Loads that failed.", ("variant",), registry=mine)
        self._loads = Histogram(
            "inlay_load_seconds",
            "From asking for a target to having it in memory.",
            buckets=LOADING,
            registry=mine,
        )
        self._put_away = Counter("inlay_evictions", "Targets put away to make room.", registry=mine)
        ProcessCollector(registry=self.registry)

    def request(
        self,
        variant: str | None,
        version: str | None,
        arm: str | None,
        status: int,
        seconds: float,
        prompt: int = 0,
        completion: int = 0,
        cached: int = 0,
    ) -> None:
        """A request ended. `version` None: no target was found, and what it called itself is not kept.
        `arm`: the reference that a split chose."""
        who = self._who(variant, version, arm)
        self._requests.labels(*who, str(status)).inc()
        self._seconds.labels(*who).observe(seconds)
        for kind, count in (("prompt", prompt), ("completion", completion), ("cached", cached)):
            if count:
                self._tokens.labels(*who, kind).inc(count)

    def first_token(self, variant: str | None, version: str | None, arm: str | None, seconds: float) -> None:
        """The first token of a request came, `seconds` after it arrived."""
        self._first.labels(*self._who(variant, version, arm)).observe(seconds)

    def refused(self, why: str) -> None:
        """A request was refused; `why`: a code of the API's errors, never a text from outside."""
        self._refused.labels(why).inc()

    def swap(self, ref: str) -> None:
        """New requests for the alias `ref` get another target from now on."""
        self._swaps.labels(self._variant(ref)).inc()

    def load(self, seconds: float) -> None:
        """A target was brought into memory."""
        self._loads.observe(seconds)

    def load_failed(self, ref: str) -> None:
        """A target could not be loaded."""
        self._failed.labels(self._variant(ref)).inc()

    def put_away(self) -> None:
        """A target was put away to make room."""
        self._put_away.inc()

    def watch(self, scheduler: Scheduler, shelf: Shelf, following: Following) -> None:
        """What the gauges are looked up from."""
        self.registry.register(_Looked(scheduler, shelf, following))

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

    def _who(self, variant: str | None, version: str | None, arm: str | None) -> tuple[str, str, str]:
        if variant is None or version is None:
            return OTHER, OTHER, ""
        who = variant, version, arm or ""
        with self._lock:
            if who in self._seen:
                return who
            if len(self._seen) < SERIES:
                self._seen.add(who)
                return who
        return OTHER, OTHER, ""

    def _variant(self, ref: str) -> str:
        return self._who(ref.partition("@")[0], "", None)[0]


class Telling:
    """The `observer` of shelf and following: what they tell goes into metrics and logs."""

    def __init__(self, metrics: Metrics, logs: Logs) -> None:
        self.metrics = metrics
        self.logs = logs

    def swap(self, ref: str, before: str | None, after: str | None) -> None:
        """New requests for `ref` get `after`, and no longer `before`; None: nothing."""
        self.metrics.swap(ref)
        self.logs.info("swapped", ref=ref, before=before, after=after)

    def load(self, ref: str, seconds: float) -> None:
        """A target was brought into memory."""
        self.metrics.load(seconds)
        self.logs.info("loaded", ref=ref, seconds=seconds)

    def load_failed(self, ref: str, why: str) -> None:
        """A target could not be loaded; what served goes on serving."""
        self.metrics.load_failed(ref)
        self.logs.error("load failed", ref=ref, why=why)

    def put_away(self, ref: str) -> None:
        """A target was put away to make room."""
        self.metrics.put_away()
        self.logs.info("put away", ref=ref)


class _Looked(Collector):
    """Gauges that other objects hold, read when they are asked for."""

    def __init__(self, scheduler: Scheduler, shelf: Shelf, following: Following) -> None:
        self.scheduler = scheduler
        self.shelf = shelf
        self.following = following

    def describe(self) -> Iterable[Metric]:
        return ()  # so that registering it does not look anything up

    def collect(self) -> Iterable[Metric]:
        yield _gauge("inlay_queue", "Requests that wait for a row.", self.scheduler.waiting)
        yield _gauge("inlay_running", "Requests that are being answered.", self.scheduler.running)
        loaded = self.shelf.loaded()
        yield _gauge("inlay_loaded", "Targets in memory.", len(loaded))
        in_use = GaugeMetricFamily(
            "inlay_in_use",
            "Requests that wait for a target or are answered by it.",
            labels=("variant", "version"),
        )
        for each in loaded[-SERIES:]:
            variant, _, version = each.ref.partition("@")
            in_use.add_metric((variant, version), float(self.shelf.uses(each)))
        yield in_use
        yield _gauge("inlay_bank_bytes", "Bytes of adapters in the bank.", self.scheduler.bank.nbytes)
        yield _gauge("inlay_prefix_bytes", "Bytes of kept prompts.", self.scheduler.prefix_nbytes)
        yield _gauge(
            "inlay_store_age_seconds", "Since the store could last be read.", self.following.store_age()
        )
        yield _gauge(
            "inlay_problems", "Aliases whose newest target is not served.", len(self.following.problems())
        )


def _gauge(name: str, said: str, value: float) -> Metric:
    return GaugeMetricFamily(name, said, value=float(value))
