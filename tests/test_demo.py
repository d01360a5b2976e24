"""The demo: its story for real, and the figures it must show."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `inlay demo --json` says, with the folder it made."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-c", "from inlay.cli import main; main()", "demo", "story", "--json"]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["result"]
    return {**found, "root": folder / "story", "said": done.stderr}


def test_each_adapter_learns_its_task_and_forgets_little(demo: dict) -> None:
    rows = {row["subject"]: row for row in demo["rows"]}
    assert rows["base"]["n"] >= 400
    for task in ("ticket-queue", "order-slip"):
        row = rows[f"{task}@v1"]
        assert rows["base"]["targets"][task] <= 0.05, "the base cannot do it"
        assert row["targets"][task] >= 0.95
        assert row["upper"] <= 0.05


def test_routing_keeps_members_scores_and_the_bases_skills(demo: dict) -> None:
    rows = {row["subject"]: row for row in demo["rows"]}
    acme = rows["acme@v1"]
    for task in ("ticket-queue", "order-slip"):
        assert acme["targets"][task] >= 0.95 * rows[f"{task}@v1"]["targets"][task]
    assert acme["lost"] <= 0.01


def test_the_guard_refuses_the_careless_version_with_numbers(demo: dict) -> None:
    assert re.search(
        r"ticket-queue@v2 may not become ticket-queue@prod: .*\d+\.\d points of held-out", demo["refusal"]
    )
    rows = {row["subject"]: row for row in demo["rows"]}
    assert rows["ticket-queue@v2"]["upper"] > 0.05


def test_rolled_back_to_the_same_bits(demo: dict) -> None:
    assert demo["bit_identical_after_rollback"] is True
    story = " ".join(demo["journal"])
    assert "forc" in story and "rolled" in story


def test_the_store_it_leaves_is_sound_and_the_page_whole(demo: dict) -> None:
    from inlay.registry import Registry

    with Registry.open(demo["root"] / "adapters_store") as store:
        assert store.fsck() == []
        assert store.resolve("acme@prod").ref == "acme@v1"
    page = Path(demo["root"] / "report.html").read_text()
    assert page.count("<img") + page.count("<svg") >= 2
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
