"""One line an event on stderr: when, how grave, what, and whose request. Never prompts, answers or keys.

What may be said is a list of fields, so that nothing else slips in: an event with another one is a bug.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from inlay.registry.printable import printable

FIELDS = (
    "request", "tenant", "model", "variant", "version", "ref", "digest", "before", "after", "arm", "method",
    "path", "status", "code", "seconds", "first_token", "prompt_tokens", "completion_tokens", "cached_tokens",
    "stream", "url", "admin", "base", "store", "pid", "signal", "running", "waiting", "bytes", "logger",
    "error", "where", "why",
)  # fmt: skip
"""In the order in which they are written. `why` is for what operators do and libraries say; a request that
was refused has a `code`."""
LONGEST = 500
"""Characters of a text that are kept."""


class Logs:
    """Thread-safe. A reader that went away stops nothing: what it would have read is lost."""

    def __init__(self, form: Literal["json", "text"] = "json", stream: TextIO | None = None) -> None:
        self.form = form
        self._stream = stream
        self._lock = threading.Lock()

    def info(self, event: str, **fields: Any) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, error: BaseException | None = None, **fields: Any) -> None:
        """`error`: its type and the places it came through; not its text, which may quote a request."""
        if error is not None:
            fields |= {"error": type(error).__name__, "where": _places(error)}
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        unknown = fields.keys() - set(FIELDS)
        if unknown:
            raise TypeError(f"an event may have the fields of FIELDS, got {', '.join(sorted(unknown))}")
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        said = {name: _short(fields[name]) for name in FIELDS if fields.get(name) is not None}
        if self.form == "json":
            line = json.dumps({"time": now, "level": level, "event": event, **said})
        else:
            words = " ".join(f"{name}={_word(value)}" for name, value in said.items())
            line = f"{now} {level:7} {event} {words}".rstrip()
        try:
            with self._lock:
                stream = sys.stderr if self._stream is None else self._stream
                stream.write(line + "\n")
                stream.flush()
        except (OSError, ValueError):
            pass


@contextlib.contextmanager
def library_logs(logs: Logs) -> Iterator[None]:
    """What libraries log and warn of, and threads that die of an error, as lines of `logs`."""
    from transformers.utils import logging as of_transformers

    root, handler, hook = logging.getLogger(), _FromLibraries(logs), threading.excepthook
    root.addHandler(handler)
    logging.captureWarnings(True)
    of_transformers.disable_default_handler()
    of_transformers.enable_propagation()
    threading.excepthook = lambda died: logs.error("thread died", died.exc_value)
    try:
        yield
    finally:
        threading.excepthook = hook
        of_transformers.disable_propagation()
        of_transformers.enable_default_handler()
        logging.captureWarnings(False)
        root.removeHandler(handler)


class _FromLibraries(logging.Handler):
    def __init__(self, logs: Logs) -> None:
        super().__init__(logging.INFO)
        self.logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"logger": record.name}
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            # Our own words name requests by their ids; those of others may quote the error, and it a prompt.
            why = record.getMessage() if record.name.startswith("inlay.") else None
            self.logs.error("library", error, why=why, **fields)
        elif record.levelno >= logging.ERROR:
            self.logs.error("library", why=record.getMessage(), **fields)
        elif record.levelno >= logging.WARNING:
            self.logs.warning("library", why=record.getMessage(), **fields)


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, str) and len(value) > LONGEST:
        return value[:LONGEST] + "…"
    return value if isinstance(value, str | int | bool | list) else str(value)[:LONGEST]


def _word(value: Any) -> str:
    text = printable(value) if isinstance(value, str) else json.dumps(value)
    return json.dumps(text, ensure_ascii=False) if not text or " " in text or '"' in text else text


def _places(error: BaseException, most: int = 8) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)[-most:]
    return [f"{_inside(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]


def _inside(path: str) -> str:
    """A file by its place in its package: what a log needs of a path, and no machine's folders."""
    return "/".join(path.replace("\\", "/").rsplit("/", 3)[-3:])
