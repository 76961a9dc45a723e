"""Progress on the console: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_LINE_SECONDS = 10.0
# metric -> (label, format): the few numbers worth watching
SHOWN = {
    "accuracy": ("acc", ".2f"),
    "zero_advantage/outcome": ("zero-adv", ".2f"),
    "thinking_rate": ("think", ".2f"),
    "completions/mean_length": ("len", ".0f"),
    "entropy": ("H", ".2f"),
    "nll": ("nll", ".4f"),
    "step_time": ("s/step", ".1f"),
}


class Console:
    """Shows steps `start` to `total`. Use as a context manager; silent on all hosts but the first."""

    def __init__(self, total: int, start: int = 0, quiet: bool = False, unit: str = "step"):
        self._rich = RichConsole(quiet=quiet)
        self._quiet, self._total, self._start, self._unit = quiet, total, start, unit
        self._terminal = self._rich.is_terminal and not quiet
        self._began = self._last_line = time.monotonic()
        self._progress = self._task = None

    def __enter__(self):
        if self._terminal:
            self._progress = Progress(
                TextColumn(self._unit), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"), console=self._rich,
            )  # fmt: skip
            self._task = self._progress.add_task(
                "steps", total=self._total, completed=self._start, numbers=""
            )
            self._progress.start()
        return self

    def __exit__(self, *_):
        if self._progress:
            self._progress.stop()

    def step(self, step: int, metrics: dict) -> None:
        """Show a finished step."""
        numbers = "  ".join(
            f"{label} {metrics[name]:{form}}"
            for name, (label, form) in SHOWN.items()
            if metrics.get(name) is not None
        )
        if self._progress:
            self._progress.update(self._task, completed=step, numbers=numbers)
            return
        now = time.monotonic()
        first_or_last = step in (self._start + 1, self._total)
        if not self._quiet and (first_or_last or now - self._last_line >= PLAIN_LINE_SECONDS):
            self._last_line = now
            left = (now - self._began) / max(step - self._start, 1) * (self._total - step)
            print(f"{self._unit} {step}/{self._total}  left {left:.0f}s  {numbers}", flush=True)

    def say(self, text: str) -> None:
        """A line beside the bar."""
        if self._progress:
            self._progress.console.print(text, markup=False, highlight=False)
        elif not self._quiet:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """A warning, on standard error."""
        if not self._quiet:
            print(f"warning: {text}", file=sys.stderr, flush=True)


def results_table(title: str, columns: dict[str, dict]) -> Table:
    """Metrics of one or several evaluations side by side, with their 95 % intervals."""
    table = Table(title=title)
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    names = list(dict.fromkeys(m for result in columns.values() for m in result["metrics"]))
    for name in names:
        cells = []
        for result in columns.values():
            value = result["metrics"].get(name)
            low, high = result["intervals"].get(name, (None, None))
            digits = 1 if name.endswith("mean_length") else 3
            cells.append(
                "–"
                if value is None
                else f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
            )
        table.add_row(name, *cells)
    return table


def print_table(table: Table) -> None:
    """Print a table, wide enough for its content also where output is no terminal."""
    console = RichConsole()
    if not console.is_terminal:
        console = RichConsole(width=max(100, console.width))
    console.print(table)
