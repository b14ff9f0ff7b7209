"""One table at the end of a test run for each family of tests that counts: what was tried, and what was lost.

Its figures are those that the tests hand in while they run, also of a test that then fails, and from whichever process
of pytest-xdist. `pytest_terminal_summary` is a hook of `conftest`, which pytest-xdist's own process loads too, as it
does no conftest further down.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_PROPERTY = "row of a table"
_COLUMNS = ("what", "cases", "faults", "survived", "lost", "seen")


@dataclass(frozen=True)
class Row:
    """What one test has counted."""

    table: str
    """Whose row it is."""
    what: str
    """Was tried."""
    cases: int
    """Tried."""
    faults: int
    """That were put in."""
    survived: int
    """Faults after which all was as it should be."""
    seen: str = ""
    """What else, in words."""

    @property
    def lost(self) -> int:
        """Faults after which it was not."""
        return self.faults - self.survived


def hand_in(node: Any, row: Row) -> None:
    """Give a row of ``node``, the test that runs, to the table."""
    node.user_properties.append((_PROPERTY, asdict(row)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the tables, where a test has handed in a row."""
    # Each test has one report of that kind; those of its setup and teardown carry the same properties.
    reports = [each for some in terminalreporter.stats.values() for each in some if getattr(each, "when", "") == "call"]
    rows = [Row(**given) for report in reports for name, given in report.user_properties if name == _PROPERTY]
    for table in sorted({row.table for row in rows}):
        lines = [[str(getattr(row, name)) for name in _COLUMNS] for row in rows if row.table == table]
        widths = [max(map(len, column)) for column in zip(_COLUMNS, *lines, strict=True)]
        terminalreporter.section(table)
        for line in (_COLUMNS, *sorted(lines)):
            terminalreporter.line("  ".join(map(str.ljust, line, widths)).rstrip())
