"""Progress of a run on a terminal, with the remaining time; or nothing, for scripts."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from archipel.search.driver import Progress as Silent


class Terminal(Silent):
    """One bar for each phase, on standard error."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=32),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
        )
        self.task = None

    def __enter__(self) -> Terminal:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(done=error is None)
        self.bars.stop()

    def _end(self, done: bool = True) -> None:
        """Fill the bar of the phase that is over; one that had nothing to do goes away, one cut short stays."""
        if self.task is None:
            return
        task = self.bars.tasks[self.task]
        if task.completed and not done:
            pass
        elif task.completed:
            self.bars.update(self.task, completed=task.total)
        else:
            self.bars.update(self.task, visible=False)
        self.bars.stop_task(self.task)
        self.task = None

    def phase(self, name: str, total: float | None = None) -> None:
        self._end()
        self.task = self.bars.add_task(name, total=1.0 if total is None else total, text="")

    def update(self, done: float, text: str = "") -> None:
        if self.task is not None:
            self.bars.update(self.task, completed=done, text=text)

    def notice(self, text: str) -> None:
        self.console.print(text)
