"""What the log says: one JSON object a line, only listed fields, nothing that steers a terminal."""

from __future__ import annotations

import io
import json
import logging
import threading
import warnings

import pytest

from inlay.serving.logs import LONGEST, Logs, library_logs


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line_with_its_fields_in_their_order() -> None:
    stream = io.StringIO()
    Logs(stream=stream).info(
        "request", status=200, request="r1", tenant="acme", seconds=0.12345678, stream=False
    )
    (said,) = lines(stream)
    assert list(said) == ["time", "level", "event", "request", "tenant", "status", "seconds", "stream"]
    assert (said["level"], said["event"], said["seconds"], said["stream"]) == (
        "info",
        "request",
        0.123457,
        False,
    )
    assert said["time"].endswith("Z") and "T" in said["time"]


@pytest.mark.parametrize("field", ["prompt", "answer", "key", "authorization", "messages"])
def test_fields_that_are_not_listed_are_a_bug(field: str) -> None:
    stream = io.StringIO()
    with pytest.raises(TypeError, match=field):
        Logs(stream=stream).info("request", **{field: "secret"})
    assert stream.getvalue() == ""


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_steers_a_terminal_or_forges_a_line_is_escaped(form: str) -> None:
    stream = io.StringIO()
    Logs(form, stream).warning("swapped", ref='a\x1b[2J\n{"level":"info"}\u2028\u202e', why="x" * 9999)  # type: ignore[arg-type]
    said = stream.getvalue()
    assert said.count("\n") == 1 and said.endswith("\n")
    assert not any(c in said[:-1] for c in "\x1b\n\u2028\u202e")
    assert "x" * LONGEST in said and "x" * (LONGEST + 1) not in said


def test_an_error_is_told_by_its_type_and_places_without_its_text() -> None:
    stream = io.StringIO()
    try:
        raise ValueError("the prompt was: my password")
    except ValueError as error:
        Logs(stream=stream).error("bug", error, request="r1")
    (said,) = lines(stream)
    assert said["error"] == "ValueError" and "test_logs.py" in said["where"][-1]
    assert "password" not in stream.getvalue()


def test_threads_write_whole_lines() -> None:
    stream = io.StringIO()
    logs = Logs(stream=stream)
    threads = [
        threading.Thread(target=lambda n=n: [logs.info("request", request=f"r{n}") for _ in range(50)])
        for n in range(8)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted({line["request"] for line in lines(stream)}) == [f"r{n}" for n in range(8)]
    assert len(lines(stream)) == 400


def test_a_reader_that_left_stops_nothing() -> None:
    stream = io.StringIO()
    logs = Logs(stream=stream)
    stream.close()
    logs.info("request", request="r1")
    assert stream.closed


def test_libraries_speak_through_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    with library_logs(Logs(stream=stream)):
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        logging.getLogger("uvicorn.error").info("not told")
        try:
            raise ValueError("my password")
        except ValueError:
            logging.getLogger("asyncio").exception("went wrong: my password")
            logging.getLogger("inlay.serving.scheduler").exception("requests %s failed", ["r1"])
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old", stacklevel=1)
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    found = [(line["event"], line.get("why") or line.get("error")) for line in lines(stream)]
    assert found[0] == ("library", "Invalid HTTP request received.")
    assert found[1] == ("library", "ValueError")
    assert found[2] == ("library", "requests ['r1'] failed")
    assert found[3][0] == "library" and "old" in found[3][1]
    assert found[4] == ("thread died", "ZeroDivisionError")
    assert "password" not in stream.getvalue() and capsys.readouterr().err == ""
    logging.getLogger("x").warning("after")
    assert "after" not in stream.getvalue()
