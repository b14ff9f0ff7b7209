"""Model arguments: grammar, values as text, known names."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geodl_dask.arguments import check_names, integer_argument, parse_arguments
from geodl_dask.errors import ModelArgumentError

NAMES = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)
VALUES = st.text(st.characters(exclude_characters=";=", exclude_categories=["C", "Z"]), min_size=1, max_size=12)


def test_the_references_example_is_read():
    assert parse_arguments("padding 0;score_threshold 0.6;batch_size 4") == {
        "padding": "0",
        "score_threshold": "0.6",
        "batch_size": "4",
    }


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", {}),
        (" ; ;", {}),
        ("  padding   64 ; batch_size\t16;", {"padding": "64", "batch_size": "16"}),
        ("text_prompt red car in the yard;padding 8", {"text_prompt": "red car in the yard", "padding": "8"}),
        ("prompt a = b", {"prompt": "a = b"}),
    ],
)
def test_blanks_are_trimmed_and_values_may_hold_them(text, expected):
    assert parse_arguments(text) == expected


def test_no_arguments_are_none_given():
    assert parse_arguments(None) == parse_arguments({}) == parse_arguments([]) == {}


@given(st.dictionaries(NAMES, VALUES))
def test_text_dict_and_pairs_say_the_same(arguments):
    text = ";".join(f"{name} {value}" for name, value in arguments.items())
    assert parse_arguments(text) == parse_arguments(arguments) == parse_arguments(list(arguments.items())) == arguments


@pytest.mark.parametrize(
    "value, text",
    [
        (8, "8"),
        (8.0, "8"),
        (0.5, "0.5"),
        (-0.0, "0"),
        (1e-7, "1e-07"),
        (True, "True"),
        (False, "False"),
        (" mean ", "mean"),
        (np.int64(8), "8"),
        (np.float32(8), "8"),
        (np.float64(0.1), "0.1"),
        (np.True_, "True"),
        (Fraction(1, 4), "0.25"),
        ("", ""),
    ],
)
def test_scalars_become_the_text_that_raster_functions_read(value, text):
    assert parse_arguments({"name": value}) == {"name": text}


def test_none_leaves_an_argument_at_its_default():
    assert parse_arguments({"padding": None, "batch_size": 4}) == {"batch_size": "4"}


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, [1], {"a": 1}, b"8", Decimal("8"), np.zeros(2), 1j], ids=lambda v: type(v).__name__
)
def test_a_value_that_is_no_scalar_is_refused(value):
    with pytest.raises(ModelArgumentError, match=r"The argument padding is .*; text, a finite number or True or False"):
        parse_arguments({"padding": value})


@pytest.mark.parametrize("text", ["padding=64", "padding = 64", "batch_size 4;padding= 64", "padding =64"])
def test_an_equals_sign_is_refused_with_a_hint(text):
    with pytest.raises(
        ModelArgumentError, match=r'equals sign; a blank is needed\. Write arguments as "padding 64;batch'
    ):
        parse_arguments(text)


def test_a_name_without_a_value_is_refused():
    with pytest.raises(ModelArgumentError, match="The argument padding has no value"):
        parse_arguments("batch_size 4;padding")


@pytest.mark.parametrize(
    "given", ["padding 1;padding 2", [("padding", 1), ("padding", 2)], {"padding": 1, " padding": 2}]
)
def test_a_name_given_twice_is_refused(given):
    with pytest.raises(ModelArgumentError, match=r"The argument padding is given twice, as '1' and '2'"):
        parse_arguments(given)


@pytest.mark.parametrize("given", [["padding 64"], ["ab"], [("padding",)], [(1, 2)], [("", 2)], [None]])
def test_what_is_no_pair_is_refused(given):
    with pytest.raises(ModelArgumentError, match="pairs of a name and a value are needed"):
        parse_arguments(given)


def test_what_is_no_collection_is_refused():
    with pytest.raises(ModelArgumentError, match="arguments is 64; text, a dict or pairs are needed"):
        parse_arguments(64)


def test_an_unknown_name_is_refused_with_the_known_ones_and_the_closest():
    with pytest.raises(ModelArgumentError) as caught:
        check_names({"batchsize": "4"}, ["padding", "batch_size"], "road.emd")
    assert str(caught.value) == (
        "road.emd has no argument batchsize. Did you mean batch_size? road.emd takes batch_size, padding."
    )


def test_a_name_in_other_case_is_suggested():
    with pytest.raises(ModelArgumentError, match="Did you mean padding"):
        check_names({"Padding": "4"}, ["padding"], "m")


def test_an_unknown_name_like_no_other_gets_no_suggestion():
    with pytest.raises(ModelArgumentError, match=r"m has no argument zoom\. m takes padding\."):
        check_names({"zoom": "4"}, ["padding"], "m")


def test_score_threshold_is_explained_where_the_model_has_none():
    with pytest.raises(ModelArgumentError) as caught:
        check_names(parse_arguments("padding 0;score_threshold 0.6"), ["padding", "batch_size"], "detectBuilding.emd")
    assert str(caught.value) == (
        "detectBuilding.emd has no score_threshold; the reference tool's own example passes it, and models trained in "
        "ArcGIS ignore it without a word. Leave it out. detectBuilding.emd takes batch_size, padding."
    )


def test_score_threshold_is_fine_where_the_model_has_one():
    check_names({"score_threshold": "0.6"}, ["score_threshold"], "m")


def test_a_model_without_arguments_says_so():
    with pytest.raises(ModelArgumentError, match=r"m has no argument padding\. m takes no arguments\."):
        check_names({"padding": "4"}, [], "m")


def test_an_integer_is_read_or_its_default_taken():
    assert integer_argument({"padding": "64"}, "padding", 8, 0) == 64
    assert integer_argument({}, "padding", 8, 0) == 8


@pytest.mark.parametrize("text", ["-1", "8.0", "8.5", "", "eight", "1_0", "٤", "1" * 5000, "64, batch_size 4"])
def test_an_integer_argument_must_be_whole_and_large_enough(text):
    with pytest.raises(ModelArgumentError, match=r"padding is .*; a whole number of at least 0 is needed"):
        integer_argument({"padding": text}, "padding", 8, 0)
