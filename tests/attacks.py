"""A pytest plugin: prints what was tried against geodl_dask, and how it ended, as the tests found it.

A test says so by the marker ``attack(case, tried)``: it ended as "refused" where the test passes, unless the test says
another word for it (the fixture ``attack`` of ``tests/security``). One that fails has found a way in.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

PROPERTY = "attack"
ENDINGS = ("refused", "harmless", "open")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "attack(case, tried): an attack, for the table at the end of the run")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if report.when == "call" and (mark := item.get_closest_marker("attack")):
        ended = [value for name, value in item.user_properties if name == PROPERTY] or ["refused"]
        if report.passed or report.failed:
            report.user_properties = [(PROPERTY, [*mark.args, each if report.passed else "BROKE IN"]) for each in ended]
    return report


def pytest_terminal_summary(terminalreporter) -> None:
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    means: dict[str, str] = {}
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        for name, value in report.user_properties if report.when == "call" else ():
            if name == PROPERTY:
                case, tried, ended = value
                rows[case][ended] += 1
                means[case] = tried
    if not rows:
        return
    terminalreporter.section("attacks, and how they ended")
    total: Counter[str] = Counter()
    for case in sorted(rows):
        total += rows[case]
        ended = ", ".join(f"{word} {count}" for word, count in sorted(rows[case].items()))
        terminalreporter.write_line(f"{case:34}  {ended:24}  {means[case]}")
    told = ", ".join(f"{word} {count}" for word, count in sorted(total.items()))
    terminalreporter.write_line(f"{'all ' + str(total.total()):34}  {told}")
