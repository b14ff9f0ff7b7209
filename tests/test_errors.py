"""The error tree: every class survives the way from a worker, and can be caught as what it is."""

from __future__ import annotations

import builtins
import inspect
import pickle
import re

import pytest

from geodl_dask import errors

BRANCHES = {errors.GeodlError, errors.RequestError, errors.RunError}
CLASSES = {each for _, each in inspect.getmembers(errors, inspect.isclass) if each.__module__ == errors.__name__}
LEAVES = sorted(CLASSES - BRANCHES, key=lambda each: each.__name__)


def drawn_under() -> dict[str, str]:
    """Each error of the docstring's tree and the one that it is drawn under."""
    parents, above = {}, {}
    for branch, name in re.findall(r"^([│├└─ ]*)(\w+Error)\b", errors.__doc__, re.MULTILINE):
        depth = len(branch) // 4
        above[depth] = name
        if depth:
            parents[name] = above[depth - 1]
    return parents


@pytest.mark.parametrize("error", sorted(CLASSES, key=lambda each: each.__name__))
def test_error_survives_pickling_with_its_message(error):
    again = pickle.loads(pickle.dumps(error("what was given, what was needed")))
    assert type(again) is error
    assert str(again) == "what was given, what was needed"


@pytest.mark.parametrize("error", LEAVES)
def test_error_is_also_the_matching_builtin(error):
    assert issubclass(error, errors.RequestError) != issubclass(error, errors.RunError)
    matching = [base for base in error.__bases__ if not issubclass(base, errors.GeodlError)]
    assert len(matching) == 1
    assert getattr(builtins, matching[0].__name__) is matching[0]
    assert matching[0] is not Exception


def test_docstring_draws_the_tree_as_it_is():
    parents = {each.__name__: each.__bases__[0].__name__ for each in CLASSES - {errors.GeodlError}}
    assert drawn_under() == parents
