"""Progress on stderr: a bar on a terminal, a line per interval elsewhere."""

import sys
import time
from collections import Counter
from typing import Any

LINE_INTERVAL_S, BAR_INTERVAL_S = 10.0, 0.2


class Progress:
    """Counts outcomes and shows them. `total` inputs are expected."""

    def __init__(self, total: int, verb: str) -> None:
        self.total, self.verb = total, verb
        self.counts: Counter[str] = Counter()
        self.started = self._shown = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn(verb),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[state]}"),
                TimeRemainingColumn(),
            )
            # No refresh thread: the parent of worker processes keeps to one thread.
            self._bar = Bar(*columns, console=Console(stderr=True), auto_refresh=False)
            self._task = self._bar.add_task(verb, total=total, state="")
            self._bar.start()

    def add(self, status: str) -> None:
        """One more input has ended with `status`."""
        self.counts[status] += 1
        now = time.monotonic()
        if now - self._shown >= (BAR_INTERVAL_S if self._bar else LINE_INTERVAL_S):
            self._shown = now
            self._show()

    def state(self) -> str:
        """Counts by status and the rate."""
        done = sum(self.counts.values())
        seconds = max(time.monotonic() - self.started, 1e-6)
        parts = ", ".join(f"{status} {count}" for status, count in sorted(self.counts.items()))
        return f"{parts or 'nothing yet'}; {done / seconds:.1f} per second"

    def _show(self) -> None:
        done = sum(self.counts.values())
        if self._bar:
            self._bar.update(self._task, completed=done, state=self.state())
            self._bar.refresh()
            return
        seconds = max(time.monotonic() - self.started, 1e-6)
        left = (self.total - done) * seconds / max(done, 1)
        print(f"{self.verb}: {done} of {self.total} ({self.state()}; {left:.0f} s left)", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Show the last state and leave the terminal as it was."""
        if self._bar:
            self._show()
            self._bar.stop()
