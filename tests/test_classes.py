"""Class tables: the pixel type and nodata that they ask for, and the attributes in which they travel."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geodl_dask.classes import ClassTable, ModelClass
from geodl_dask.errors import ModelDefinitionError, RasterInputError


def table(*values: int, name: str = "class") -> ClassTable:
    return ClassTable(tuple(ModelClass(value, f"{name} {value}", (value % 256, 1, 255)) for value in values))


@pytest.mark.parametrize(
    ("values", "dtype", "nodata"),
    [
        ((0, 1), np.uint8, 255),
        ((0, 255), np.uint8, 254),
        ((254, 255, 253), np.uint8, 252),
        (range(255), np.uint8, 255),
        (range(1, 256), np.uint8, 0),
        (range(256), np.uint16, 65535),
        ((0, 256), np.uint16, 65535),
        ((65535, 65534), np.uint16, 65533),
        ((65536,), np.uint32, 2**32 - 1),
        ((2**32 - 2,), np.uint32, 2**32 - 1),
    ],
)
def test_smallest_type_leaves_one_value_for_nodata(values, dtype, nodata):
    classes = table(*values)
    assert (classes.dtype, classes.nodata) == (np.dtype(dtype), nodata)


@given(st.lists(st.integers(0, 2**32 - 2), min_size=1, max_size=40, unique=True))
def test_nodata_is_a_value_of_the_type_and_of_no_class(values):
    classes = table(*values)
    assert classes.nodata not in values
    assert {*values, classes.nodata} <= {int(classes.dtype.type(value)) for value in (*values, classes.nodata)}


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        ((), "empty"),
        ((ModelClass(-1, "a", (0, 0, 0)),), "-1"),
        ((ModelClass(2**32 - 1, "a", (0, 0, 0)),), "4294967295"),
        ((ModelClass(3, "a", (0, 0, 0)), ModelClass(3, "b", (0, 0, 0))), "3 stands twice"),
        ((ModelClass(1, "a", (0, 0, 256)),), "256"),
        ((ModelClass(1, "a", (0, -1, 0)),), "-1"),
        ((ModelClass(1, "a", (0, 0)),), r"\[0, 0\]"),
    ],
)
def test_classes_that_no_raster_can_hold_are_refused(classes, reason):
    with pytest.raises(ModelDefinitionError, match=reason):
        ClassTable(classes)


@pytest.mark.parametrize(
    ("values", "above_below"),
    [((0, 7), (7, 0)), ((7, 0), (7, 0)), ((7,), (7, 0)), ((3, 9), (3, 9)), ((9, 3), (9, 3))],
)
def test_one_score_tells_the_first_class_that_is_not_0_from_the_other(values, above_below):
    assert table(*values).change_values() == above_below


@pytest.mark.parametrize("values", [(0,), (0, 1, 2)])
def test_one_score_needs_one_or_two_classes_besides_nothing(values):
    with pytest.raises(ModelDefinitionError, match="one score"):
        table(*values).change_values()


@given(
    st.lists(
        st.builds(ModelClass, st.integers(0, 2**32 - 2), st.text(), st.tuples(*[st.integers(0, 255)] * 3)),
        min_size=1,
        max_size=5,
        unique_by=lambda each: each.value,
    )
)
def test_attributes_give_the_table_back_also_after_json(classes):
    attrs = ClassTable(tuple(classes)).to_attrs()
    for travelled in (attrs, json.loads(json.dumps(attrs))):
        assert ClassTable.from_attrs(travelled) == ClassTable(tuple(classes))
    assert len(attrs["flag_meanings"].split()) == len(classes)


def test_attributes_of_one_class_may_lose_their_lists():
    attrs = table(5).to_attrs()
    assert ClassTable.from_attrs({**attrs, "flag_values": np.int64(5), "class_names": "class 5"}) == table(5)


@pytest.mark.parametrize("names", [("No change", "Change"), ("[1]",), ('["a", "b"]',), ("[",)])
def test_attributes_may_come_as_the_text_of_tags(names):
    classes = ClassTable(tuple(ModelClass(value, name, (1, 2, 3)) for value, name in enumerate(names)))
    tags = {key: each if isinstance(each, str) else json.dumps(each) for key, each in classes.to_attrs().items()}
    assert ClassTable.from_attrs(tags) == classes


@pytest.mark.parametrize("missing", ["flag_values", "flag_colors", "class_names"])
def test_incomplete_attributes_hold_no_table(missing):
    attrs = table(0, 7).to_attrs()
    del attrs[missing]
    assert ClassTable.from_attrs(attrs) is None


NO_TABLES = [
    ("flag_colors", "#00 #ff #aa", "'#00' is no colour"),
    ("flag_colors", "#00ff00ff #00ff00ff", "'#00ff00ff' is no colour"),
    ("flag_colors", "zz zz", "non-hexadecimal"),
    ("flag_colors", 5, "split"),
    ("flag_colors", "", "shorter"),
    ("flag_values", ["x", "y"], "'x'"),
    ("flag_values", [None, 1], "NoneType"),
    ("flag_values", "[Infinity, 1]", "infinity"),
    ("flag_values", [3, 3], "3 stands twice"),
    ("flag_values", [-1, 3], "has Value -1"),
    ("class_names", ["a"], "longer|shorter"),
    ("class_names", "x" * 50_000, "longer|shorter"),
]


@pytest.mark.parametrize(("key", "value", "reason"), NO_TABLES, ids=lambda each: str(each)[:20])
def test_attributes_that_make_no_table_are_refused_in_short(key, value, reason):
    with pytest.raises(RasterInputError, match=f"make no class table: .*({reason})") as refusal:
        ClassTable.from_attrs({**table(0, 7).to_attrs(), key: value})
    assert len(str(refusal.value)) < 600
