"""The quick lane, ``pytest --quick``: what it leaves out, and which of its tests have become too long for it."""

from __future__ import annotations

import os
import sys
from collections import Counter

import pytest
from hypothesis import settings

# Of the processor, with the programs that a test starts: a busy machine makes no test longer by it.
SECONDS_OF_A_TEST = 0.25
SHOWN = 15
CASES_OF_A_TABLE = 3
WHOLE_EXAMPLES, QUICK_EXAMPLES = 100, 10  # of a property that names no number; the first is the library's own
BEGAN = pytest.StashKey[float]()
SPENT = "processor_seconds"


class QuickLane:
    """Leaves out tests that are marked slow, most cases of long tables, and what needs torch; says so in the end."""

    def __init__(self) -> None:
        # Tests that need torch ask with importorskip, and are skipped then.
        sys.modules["torch"] = None  # type: ignore[assignment]
        self.slow = self.cases = 0
        self.seconds: dict[str, float] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        cases = further_cases(items)
        items[:] = [item for item in items if item not in cases]
        self.slow, self.cases = len(slow), len(cases)
        config.hook.pytest_deselected(items=[*slow, *cases])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        item.stash[BEGAN] = processor_seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> object:
        report = yield
        if call.when == "teardown":
            report.user_properties.append((SPENT, processor_seconds() - item.stash[BEGAN]))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called where the run is told of, with the reports of all processes."""
        for name, value in report.user_properties:
            if name == SPENT:
                self.seconds[report.nodeid] = float(value)  # type: ignore[arg-type]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A process of xdist tells the one that started it what it left out."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["left_out"] = (self.slow, self.cases)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """Every process leaves out the same."""
        self.slow, self.cases = getattr(node, "workeroutput", {}).get("left_out", (self.slow, self.cases))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        write = terminalreporter.write_line
        skipped = [report for report in terminalreporter.stats.get("skipped", []) if needs_torch(report)]
        files = sum(isinstance(report, pytest.CollectReport) for report in skipped)
        write(
            f"quick: left out {counted(self.slow, 'test')} marked slow, {counted(self.cases, 'case')} of long tables, "
            f"and {counted(files, 'file')} and {counted(len(skipped) - files, 'test')} that need torch; "
            "without --quick all are run"
        )
        long = {name: spent for name, spent in self.seconds.items() if spent > SECONDS_OF_A_TEST}
        if long:
            write(
                f"quick: of {counted(len(self.seconds), 'test')} these take more than {SECONDS_OF_A_TEST} s of the "
                f"processor ({len(long)}); make them cheaper, or mark them slow:"
            )
        for name in sorted(long, key=long.__getitem__, reverse=True)[:SHOWN]:
            write(f"  {long[name]:5.2f} s  {name}")


def examples(number: int) -> int:
    """How many examples of a property to draw, of ``number`` in a whole run: in the quick lane a tenth."""
    return max(1, number * settings.default.max_examples // WHOLE_EXAMPLES)


def further_cases(items: list[pytest.Item]) -> set[pytest.Item]:
    """The cases of long tables that come after the first few."""
    met = Counter[str]()
    further = set()
    for item in items:
        if item.get_closest_marker("table"):
            test = item.nodeid.partition("[")[0]
            met[test] += 1
            if met[test] > CASES_OF_A_TABLE:
                further.add(item)
    return further


def processor_seconds() -> float:
    """What this process and the children that it waited for have used. Windows counts no children."""
    return sum(os.times()[:4])


def needs_torch(report: pytest.CollectReport | pytest.TestReport) -> bool:
    return isinstance(report.longrepr, tuple) and "could not import 'torch'" in report.longrepr[2]


def counted(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
