"""One batch that requests join and leave between two tokens. docs/scheduler.md says how and why.

One thread owns the model, the bank and the rows. Between two tokens it does what others want done to the
bank, takes out who has the answer, reads the prompts of some that wait, and gives every row one token more.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from inlay.composer.bank import Bank
from inlay.errors import InlayError, InputError
from inlay.evals.inference import Base, PromptError
from inlay.serving.fair_queue import FairQueue
from inlay.serving.kv_rows import KvRows
from inlay.serving.prefixes import Prefixes
from inlay.serving.requests import Ended, Failed, Hear, Request
from inlay.serving.row import NotFinite as NotFinite
from inlay.serving.row import Row, fail
from inlay.serving.row_adapters import BankAdapters, Begun, Reader, RowAdapters
from inlay.serving.sampling import Sampler, draw
from inlay.serving.streaming import Spelling, TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from inlay.serving.shelf import Loaded

T = TypeVar("T")

UNBOUNDED = 1 << 20
"""The context of a base that names none."""
SHARE, STEPS = 8, 8
"""Rows change when an eighth of them would, or eight tokens after the first might have: whatever is prepared
for a batch is prepared anew then."""


class QueueFull(InlayError):
    """As many requests wait as may."""

    exit_code = 3


class Stopping(QueueFull):
    """No request is taken any more, and what was not answered in time ends."""


class Ticket:
    """A request that was taken."""

    def __init__(self, scheduler: Scheduler, row: Row) -> None:
        self._scheduler, self._row = scheduler, row

    def cancel(self) -> None:
        """The request leaves, and hears nothing more but what is on its way. From any thread, any number of
        times."""
        self._scheduler._cancel(self._row)


class Scheduler:
    """`rows`: requests answered at once; `queue`: requests that may wait; `prefix_bytes`: memory for the keys
    and values of what has ended; `read_tokens`: most tokens of prompts that are read between two tokens of
    the others, one longer prompt alone excepted. InputError for a base that is not attention to all tokens.
    """

    def __init__(
        self,
        base: Base,
        *,
        rows: int = 32,
        queue: int = 256,
        prefix_bytes: int = 256 << 20,
        read_tokens: int = 1024,
        voices: RowAdapters | None = None,
    ) -> None:
        self.bank = Bank(base.model)
        self.tokenizer: PreTrainedTokenizerBase = base.tokenizer
        config = base.model.config.get_text_config(decoder=True)
        self.context = int(getattr(config, "max_position_embeddings", None) or UNBOUNDED)
        self.rows, self.queue, self.read_tokens = rows, queue, read_tokens
        self._reader = Reader(base)
        self._voices = voices or BankAdapters(self.bank, self._reader, base)
        self._spelling = Spelling.of(base.tokenizer)
        self._ends = frozenset(_ends(base))
        self._prefixes = Prefixes(prefix_bytes)
        self._kv = KvRows(self._reader.layout)
        self._running: list[Row] = []
        self._overdue = 0  # steps since a row could have joined or left
        self._speaking: contextlib.ExitStack | None = None  # the gate of the running rows, until they change
        self._waiting: FairQueue[Row] = FairQueue()
        self._deeds: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._until: float | None = None  # when stopping: the moment that ends everything

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return sum(not row.gone for row in self._running)

    @property
    def prefix_nbytes(self) -> int:
        """Bytes of keys and values that are kept of requests that have ended."""
        return self._prefixes.nbytes

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        with self._wake:
            self._until = None
            self._thread = threading.Thread(target=self._run, name="inlay-scheduler", daemon=True)
            self._thread.start()

    def stop(self, *, drain: float | None = None) -> None:
        """Take nothing more; what waits and runs gets `drain` seconds, and what is then not answered fails.
        Returns when the thread has ended."""
        with self._wake:
            until = time.monotonic() + (drain or 0.0)
            self._until = until if self._until is None else min(until, self._until)
            self._wake.notify_all()
            thread = self._thread
            if thread is None:
                self._end()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def submit(self, loaded: Loaded, request: Request, hear: Hear) -> Ticket:
        """Thread-safe. QueueFull; PromptError for a prompt that leaves no room in the base's context."""
        sampling = request.sampling
        if not request.ids or sampling.max_tokens < 1:
            raise InputError("a request must have a token at least, and ask for one at least")
        needed = len(request.ids) + sampling.max_tokens
        if needed > self.context:
            raise PromptError(
                f"prompt and answer must fit the base's context of {self.context} tokens, and need {needed}",
                index=0,
                fix="shorten the prompt or lower max_tokens",
            )
        row = Row(request, loaded, hear, TextStream(self._spelling, sampling.stop), Sampler(sampling))
        with self._wake:
            if self._until is not None:
                raise _stopping()
            if len(self._waiting) >= self.queue:
                raise QueueFull(
                    f"{self.queue} requests may wait, and as many do", fix="try again in a moment"
                )
            self._waiting.put(row)
            self._wake.notify_all()
        return Ticket(self, row)

    def between_steps(self, deed: Callable[[], T]) -> Future[T]:
        """Run in the scheduler's thread between two tokens, in the order given; at once where that thread
        does not run, or calls. Its result, or what it raised, is the future's."""
        future: Future[T] = Future()
        with self._wake:
            if self.alive and threading.current_thread() is not self._thread:
                self._deeds.append((deed, future))
                self._wake.notify_all()
                return future
            _do(deed, future)
        return future

    def forget_prefixes(self, digest: str) -> None:
        """Let go of the keys and values that a target computed. Thread-safe."""
        self._prefixes.forget(digest)

    def _cancel(self, row: Row) -> None:
        with self._wake:
            row.cancelled = True
            self._waiting.remove(row)
            self._wake.notify_all()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._deeds or self._waiting or self._running or self._until is not None):
                    self._wake.wait()
                if self._until is not None:
                    left = self._waiting or self._running
                    if not left or time.monotonic() >= self._until:
                        break
            try:
                self._between()
                with torch.inference_mode():
                    if self._changing():
                        self._leave()
                        self._admit()
                    self._step()
            except Exception as error:  # the thread must outlive whatever a batch does
                self._collapse(error)
        self._end()

    def _end(self) -> None:
        """Who is still there fails; deeds that come from now on are done by whoever brings them."""
        with self._wake:
            for row in [*self._running, *self._waiting]:
                row.tell(Failed(_stopping()))
                self._waiting.remove(row)
            self._let_go()
            self._thread = None
            self._between()

    def _between(self) -> None:
        """The deeds, for which whoever is gone has left."""
        while True:
            with self._wake:
                if not self._deeds:
                    return
                deed, future = self._deeds.popleft()
            self._leave()
            if future.set_running_or_notify_cancel():
                _do(deed, future)

    def _changing(self) -> bool:
        """Is it time for rows to leave and to join?"""
        gone = [i for i, row in enumerate(self._running) if row.gone]
        changes = max(len(gone), min(len(self._waiting), self.rows - len(self._running) + len(gone)))
        if not changes:
            return False
        self._overdue += 1
        return (
            changes >= max(1, len(self._running) // SHARE)
            or self._overdue > STEPS
            or any(self._kv.length(i) >= self.context for i in gone)
        )

    def _admit(self) -> None:
        """Read the prompts of the next that wait: as many as there are rows for, and as a pause of the others
        allows."""
        self._overdue = 0
        with self._wake:
            rows = self._waiting.take(self.rows - len(self._running), self.read_tokens)
        if not rows:
            return
        rows = self._chosen(rows)
        unread = [row for row in rows if row.voice.begun is None]
        if unread:
            try:
                self._read(unread)
            except Exception as error:
                fail(unread, error)
        blocks: dict[KvRows, list[Row]] = {}
        for row in rows:
            if row.voice.begun is not None:
                blocks.setdefault(row.voice.begun.rows, []).append(row)
        try:
            for block, group in blocks.items():
                self._join(block, group)
        except Exception as error:
            fail(rows, error)
            raise

    def _chosen(self, rows: Sequence[Row]) -> list[Row]:
        """Those whose routes could choose for them, with what they chose; the others fail, each by itself."""
        targets: dict[Loaded, list[Row]] = {}
        for row in rows:
            targets.setdefault(row.loaded, []).append(row)
        groups = deque(targets.values())
        chosen: list[Row] = []
        while groups:
            group = groups.popleft()
            try:
                requests = [row.request for row in group]
                voices = self._voices.turn(group[0].loaded, requests, [request.ids for request in requests])
            except Exception as error:
                if len(group) == 1:
                    fail(group, error)
                groups.extend([row] for row in group if len(group) > 1)
                continue
            for row, voice in zip(group, voices, strict=True):
                row.voice = voice
            chosen += group
        return chosen

    def _read(self, rows: Sequence[Row]) -> None:
        spans = [self._prefixes.find(row.whose, row.request.ids) for row in rows]
        with self._voices.speaking([(row.loaded, row.voice) for row in rows]):
            block, logits, *_ = self._reader.read([row.request.ids for row in rows], spans)
        for i, (row, span) in enumerate(zip(rows, spans, strict=True)):
            row.cached = span.tokens if span is not None else 0
            row.voice = replace(row.voice, begun=Begun(block, i, logits[i]))

    def _join(self, block: KvRows, rows: Sequence[Row]) -> None:
        """The first token of those whose prompts are in `block`; who goes on gets a row."""
        begun = [row.voice.begun for row in rows if row.voice.begun is not None]
        drawn = draw(torch.stack([each.logits for each in begun]), [row.sampler for row in rows])
        going: list[tuple[Row, int]] = []
        for row, each, token in zip(rows, begun, drawn, strict=True):
            row.voice = replace(row.voice, begun=None)
            if row.goes_on(token, self._ends):
                going.append((row, each.row))
            else:
                self._keep(row, block, each.row)
        if going:
            self._hush()
            self._kv.join(block, [place for _, place in going])
            self._running += [row for row, _ in going]

    def _step(self) -> None:
        """One token more for every row."""
        rows = self._running
        if not rows:
            return
        if self._speaking is None:
            self._speaking = contextlib.ExitStack()
            self._speaking.enter_context(self._voices.speaking([(row.loaded, row.voice) for row in rows]))
        logits = self._reader.step(self._kv, [row.said[-1] for row in rows])
        for i, (row, drawn) in enumerate(zip(rows, draw(logits, [row.sampler for row in rows]), strict=True)):
            if not (row.gone or row.goes_on(drawn, self._ends)):
                self._keep(row, self._kv, i)

    @torch.inference_mode()
    def _leave(self) -> None:
        """Take out whoever is gone; the last rows move into their places."""
        for place in [i for i, row in enumerate(self._running) if row.gone][::-1]:
            self._hush()
            self._kv.leave(place)
            self._running[place] = self._running[-1]
            self._running.pop()

    def _keep(self, row: Row, kv: KvRows, place: int) -> None:
        """The keys and values of who has its answer, for who begins alike."""
        if isinstance(row.end, Ended):
            ids = (*row.request.ids, *row.said)[: kv.length(place)]
            self._prefixes.keep(row.whose, ids, lambda: kv.span(place))

    def _hush(self) -> None:
        """The running rows are not what they were: the gate is set anew before the next step."""
        if self._speaking is not None:
            self._speaking.close()
            self._speaking = None

    def _let_go(self) -> None:
        self._hush()
        self._running = []
        self._kv = KvRows(self._reader.layout)

    def _collapse(self, error: Exception) -> None:
        """A step failed: nobody knows what was written and what was not, and all rows of it end."""
        rows = self._running
        self._let_go()
        fail(rows, error)


def _do(deed: Callable[[], T], future: Future[T]) -> None:
    try:
        future.set_result(deed())
    except BaseException as error:
        future.set_exception(error)


def _stopping() -> Stopping:
    return Stopping("the server is stopping and answers no more", fix="ask again when it is back")


def _ends(base: Base) -> list[int]:
    """The tokens that end an answer, as `generate` of transformers knows them."""
    found = base.model.generation_config.eos_token_id
    found = base.tokenizer.eos_token_id if found is None else found
    return [] if found is None else [found] if isinstance(found, int) else [int(i) for i in found]
