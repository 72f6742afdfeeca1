import math
from itertools import pairwise
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.study.report.charts import thin
from experiments.study.report.svg import Scale, element, polyline, scale_of

# What XML can hold at all.
TEXT = st.text(
    st.characters(min_codepoint=32, exclude_categories=["Cs"], exclude_characters="\ufffe\uffff"), max_size=40
)


@settings(max_examples=50)
@given(TEXT, TEXT)
def test_svg_is_well_formed_whatever_the_text(text: str, attribute: str) -> None:
    root = ElementTree.fromstring(element("text", element("title", text), text, data_method=attribute, x=1.0, y=None))
    assert root.get("data-method") == attribute
    assert root[0].text == (text or None)
    assert root[0].tail == (text or None)
    assert root.get("x") == "1"
    assert root.get("y") is None


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4), st.integers(3, 9))
def test_ticks_are_round_and_on_the_scale(low: float, span: float, most: int) -> None:
    scale = Scale(low, low + span, 10.0, 350.0)
    ticks = scale.ticks(most)
    assert 1 <= len(ticks) <= most
    assert all(low - 1e-6 <= tick <= low + span + 1e-6 for tick in ticks)
    assert all(9.9 <= scale(tick) <= 350.1 for tick in ticks)
    steps = {round(b - a, 9) for a, b in pairwise(ticks)}
    assert len(steps) <= 1 or max(steps) - min(steps) < 1e-6


@given(st.lists(st.floats(0, 100) | st.just(math.nan), max_size=5))
def test_a_scale_shows_all_that_is_finite(values: list[float]) -> None:
    scale = scale_of(values, 0.0, 100.0)
    assert scale.high > scale.low
    assert all(0 <= scale(value) <= 100 for value in values if math.isfinite(value))


def test_a_line_is_broken_where_there_is_no_value() -> None:
    line = polyline([(0.0, 1.0), (1.0, 2.0), (2.0, math.nan), (3.0, 4.0)], class_="line")
    assert line == '<path d="M0 1h.01L1 2M3 4h.01" class="line"></path>'
    assert polyline([(0.0, math.nan)]) == ""


@settings(max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=700))
def test_a_long_log_is_thinned_to_means(values: list[float]) -> None:
    points = thin(list(enumerate(values, start=1)))
    assert len(points) <= 120
    assert points[-1][0] == len(values)
    assert all(min(values) - 1e-9 <= y <= max(values) + 1e-9 for _, y in points)
    if len(values) <= 120:
        assert [y for _, y in points] == values
