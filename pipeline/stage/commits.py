"""Brings what a run has written to the disk now and then, in a thread, and notes it."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.stage.journal import Journal, Record

COMMIT_SECONDS = 1.0


class Commits:
    """record: describes the state, once all of it is with the system. sync: until what was
    written before it was called is on the disk. Only then is the record put into the journal.
    """

    def __init__(
        self, journal: Journal, record: Callable[[], Record], sync: Callable[[], None]
    ) -> None:
        self._journal, self._record, self._sync = journal, record, sync
        self._thread = ThreadPoolExecutor(1)
        self._doing: Future[None] | None = None
        self._last = time.monotonic()

    def maybe(self) -> None:
        """If the last commit is done and COMMIT_SECONDS have passed since."""
        if time.monotonic() - self._last < COMMIT_SECONDS:
            return
        if self._doing is None or self._doing.done():
            self._settle()
            self._doing = self._thread.submit(self._commit, self._record())

    def last(self) -> None:
        """All that was written, now."""
        self._settle()
        self._commit(self._record())

    def close(self) -> None:
        """No more commits."""
        self._thread.shutdown()

    def _settle(self) -> None:
        """Wait for the commit that is on its way; its errors are raised here."""
        if self._doing is not None:
            self._doing.result()
        self._doing, self._last = None, time.monotonic()

    def _commit(self, record: Record) -> None:
        self._sync()
        self._journal.append(record)
