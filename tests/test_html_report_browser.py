"""A report in a real browser (Chromium): swiped, zoomed, clicked, by keys alone, on a phone; nothing is fetched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_raster
from rasterio.io import MemoryFile
from reports import TRANSFORM, change_of, write_result

import geodl_dask as gd

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (apt-get install chromium)"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]

DESKTOP, PHONE = {"width": 1360, "height": 900}, {"width": 360, "height": 740}
BLUE, GREEN, PURPLE = (20, 40, 200), (30, 160, 40), (123, 79, 163)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Before is blue and after green, so that what is seen says which of them it is."""
    folder = tmp_path_factory.mktemp("report")
    photos = {}
    for role, color in (("from_raster", BLUE), ("to_raster", GREEN)):
        pixels = np.broadcast_to(np.array(color, np.uint8)[:, None, None], (3, 600, 800))
        photos[role] = write_raster(folder / f"{role}.tif", np.ascontiguousarray(pixels), transform=TRANSFORM)
    change = np.zeros((600, 800), np.uint8)
    change[:240, :320] = change_of()
    return gd.write_report(write_result(folder / "change.tif", change, photos=photos))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with (
        playwright.sync_playwright() as driver,
        driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as chromium,
    ):
        yield chromium


@pytest.fixture
def open_page(browser, report):
    """Open the report; at the end it has said nothing, and asked for nothing but itself."""
    contexts, said, asked = [], [], []

    def open_at(viewport: dict[str, int], **options: Any) -> Any:
        contexts.append(browser.new_context(viewport=viewport, reduced_motion="reduce", **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        page.wait_for_function("document.querySelectorAll('img.leaflet-tile-loaded').length > 2")
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {report.as_uri()}


def seen(page: Any, across: float, down: float = 0.75) -> tuple[int, ...]:
    """The colour on the map's frame at a share of its width and height."""
    page.wait_for_timeout(150)
    with MemoryFile(page.locator("#stage").screenshot()) as memory, memory.open() as dataset:
        pixels = dataset.read()
    return tuple(pixels[:3, int(down * pixels.shape[1]), int(across * (pixels.shape[2] - 1))].tolist())


def is_like(color: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return max(abs(ours - theirs) for ours, theirs in zip(color, expected, strict=True)) < 25


def drag(page: Any, starts: list[tuple[float, float]], ends: list[tuple[float, float]]) -> None:
    """One finger or more, from where to where."""
    touch = page.context.new_cdp_session(page)
    for step in range(9):
        share = min(step, 7) / 7
        points = [
            {"x": ax + share * (bx - ax), "y": ay + share * (by - ay), "id": number}
            for number, ((ax, ay), (bx, by)) in enumerate(zip(starts, ends, strict=True))
        ]
        kind = {0: "touchStart", 8: "touchEnd"}.get(step, "touchMove")
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [] if step == 8 else points})
        page.wait_for_timeout(30)
    page.wait_for_timeout(500)


def view(page: Any) -> tuple[float, float, float]:
    """Zoom, row and column of the map's middle."""
    return tuple(page.evaluate("(({map}) => [map.getZoom(), map.getCenter().lat, map.getCenter().lng])(geodlReport)"))


def test_swipe_shows_before_on_its_left_and_after_on_its_right(open_page):
    page = open_page(DESKTOP)
    assert is_like(seen(page, 0.4), BLUE) and is_like(seen(page, 0.6), GREEN)
    handle = page.locator("#swipe").bounding_box()
    middle = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 0.25 * handle["width"], middle[1], steps=5)
    page.mouse.up()
    assert 70 < float(page.locator("#swipe").input_value()) < 80
    assert is_like(seen(page, 0.6), BLUE) and is_like(seen(page, 0.84), GREEN)


def test_swipe_stays_where_it_is_when_the_map_is_moved(open_page):
    page = open_page(DESKTOP)
    page.evaluate("geodlReport.map.panBy([120, 40], {animate: false})")
    assert is_like(seen(page, 0.45), BLUE) and is_like(seen(page, 0.55), GREEN)
    page.evaluate("geodlReport.map.setZoom(geodlReport.map.getZoom() + 1, {animate: false})")
    assert is_like(seen(page, 0.45), BLUE) and is_like(seen(page, 0.55), GREEN)


def test_wheel_and_buttons_zoom_and_the_mouse_moves_the_map(open_page):
    page = open_page(DESKTOP)
    zoom, row, col = view(page)
    page.get_by_role("button", name="Zoom in").click()
    page.wait_for_timeout(200)
    assert view(page)[0] == zoom + 1
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 500)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(400)
    assert view(page)[0] > zoom + 1
    _, row, col = view(page)
    page.mouse.down()
    page.mouse.move(box["x"] + 320, box["y"] + 440, steps=6)
    page.mouse.up()
    page.wait_for_timeout(400)
    assert view(page)[1] > row and view(page)[2] < col
    page.get_by_role("button", name="Whole raster").click()
    page.wait_for_timeout(300)
    assert view(page)[0] == pytest.approx(zoom)


def test_area_that_is_chosen_is_shown_marked_and_said(open_page):
    page = open_page(DESKTOP)
    page.locator("button.area").first.click()
    page.wait_for_timeout(300)
    _, row, col = view(page)
    assert (row, col) == pytest.approx((50, 50), abs=3)
    assert page.locator("button.area").first.get_attribute("aria-pressed") == "true"
    assert page.locator("#said").inner_text() == "The map shows Woods cleared."
    mixed = tuple(0.7 * purple + 0.3 * green for purple, green in zip(PURPLE, GREEN, strict=True))
    assert is_like(seen(page, 0.53, 0.55), mixed)


def test_colours_can_be_weakened_and_classes_hidden(open_page):
    page = open_page(DESKTOP)
    page.locator("button.area").first.click()
    page.locator("#opacity").evaluate("each => { each.value = 0; each.dispatchEvent(new Event('input')); }")
    assert is_like(seen(page, 0.53, 0.55), GREEN)
    page.locator("#opacity").evaluate("each => { each.value = 100; each.dispatchEvent(new Event('input')); }")
    assert is_like(seen(page, 0.53, 0.55), PURPLE)
    page.get_by_label("Woods cleared", exact=True).uncheck()
    assert is_like(seen(page, 0.53, 0.55), GREEN)


def test_everything_works_by_keys_alone(open_page):
    page = open_page(DESKTOP)
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        if reached[-1] == "map":
            zoom, _, col = view(page)
            page.keyboard.press("ArrowRight")
            page.wait_for_function("col => geodlReport.map.getCenter().lng > col", arg=col)
            page.keyboard.press("+")
            page.wait_for_function("zoom => geodlReport.map.getZoom() > zoom", arg=zoom)
        if reached[-1] == "swipe":
            page.keyboard.press("End")
            assert page.locator("#swipe").input_value() == "100" and is_like(seen(page, 0.9), BLUE)
            page.keyboard.press("ArrowLeft")
            assert page.locator("#swipe").input_value() == "99.5"
        if reached[-1] == "layer":
            page.keyboard.press("Space")
            assert not page.evaluate("document.activeElement.checked")
        if reached[-1] == "area":
            page.keyboard.press("Enter")
            page.wait_for_timeout(200)
            assert "The map shows" in page.locator("#said").inner_text()
    assert {"map", "swipe", "layer", "opacity", "whole", "area"} <= set(reached)
    for role, name in (("region", "Map: arrow keys"), ("slider", "Swipe between"), ("slider", "Opacity")):
        assert page.get_by_role(role, name=name).count() == 1


def test_phone_has_everything_in_its_width_and_takes_touches(open_page):
    page = open_page(PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    zoom = view(page)[0]
    page.get_by_role("button", name="Zoom in").tap()
    page.wait_for_timeout(300)
    assert view(page)[0] == zoom + 1
    box = page.locator("#swipe").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    drag(page, [middle], [(middle[0] - 90, middle[1])])
    assert 15 < float(page.locator("#swipe").input_value()) < 30 and is_like(seen(page, 0.4), GREEN)
    _, row, col = view(page)
    here = middle[0] + 80, middle[1] + 60
    drag(page, [here], [(here[0] - 60, here[1] - 40)])
    assert view(page)[1] > row and view(page)[2] > col
    zoom = view(page)[0]
    drag(page, [(middle[0] + 20, here[1]), here], [(middle[0] - 40, here[1]), (here[0] + 60, here[1])])
    assert view(page)[0] > zoom
    page.locator("button.area").nth(1).tap()
    page.wait_for_timeout(400)
    assert page.locator("#said").inner_text() == "The map shows New building."
    assert view(page)[1:] == pytest.approx((165, 210), abs=3)
    top = page.locator("#stage").bounding_box()["y"]
    assert -1 <= top < PHONE["height"] / 2, "the map is in sight"
    for button in page.locator("button:visible, .leaflet-bar a").all():
        assert button.bounding_box()["height"] >= 36, "is large enough for a finger"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_inaccessible(open_page, scheme, viewport):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_page(viewport, color_scheme=scheme)
    for summary in page.locator("summary").all():
        summary.click()
    page.locator("button.area").first.click()
    found = axe.Axe().run(page).response
    assert [(each["id"], each["nodes"][0]["html"]) for each in found["violations"]] == []
    assert len(found["passes"]) > 30


def test_page_without_scripts_still_reads_well(browser, report):
    context = browser.new_context(viewport=PHONE, java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    text = page.locator("body").inner_text()
    assert "The map needs JavaScript" in text and "Woods cleared" in text and "How it was made" in text
    context.close()
