"""The page in a browser, on a phone and on a desktop, light and dark."""

import pytest
from browser import browser, find_chromium

PICTURES = """[...document.querySelectorAll("img, svg")].map(picture => {
  const box = picture.getBoundingClientRect();
  return {width: box.width, height: box.height, left: box.left, right: box.right,
    natural: picture.naturalWidth ?? picture.viewBox.baseVal.width,
    shown: picture.checkVisibility({checkOpacity: true, checkVisibilityCSS: true}),
    drawn: [...picture.querySelectorAll("path")].some(path => path.getBBox().width > 0)};
})"""
LUMINANCE = """(element, property) => {
  const parts = getComputedStyle(element)[property].match(/[0-9.]+/g).slice(0, 3);
  const linear = parts.map(x => x / 255).map(x => x > .03928 ? ((x + .055) / 1.055) ** 2.4
    : x / 12.92);
  return .2126 * linear[0] + .7152 * linear[1] + .0722 * linear[2];
}"""


@pytest.fixture(scope="module")
def tab():
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium, or set CHROMIUM")
    with browser(program) as page:
        yield page


def requests_of(tab):
    return [url for url in tab.requests if not url.startswith("data:")]


def contrast(tab, element, behind, ink="color"):
    light, dark = sorted(
        tab.evaluate(f"({LUMINANCE})(document.querySelector('{selector}'), '{of}')")
        for selector, of in ((element, ink), (behind, "backgroundColor"))
    )[::-1]
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_a_phone_and_a_desktop(tab, page_of_two, width, dark):
    tab.open(page_of_two, width=width, dark=dark)
    assert tab.complaints == []
    assert requests_of(tab) == [page_of_two.as_uri()]
    assert tab.evaluate("innerWidth") == width
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    pictures = tab.evaluate(PICTURES)
    assert len(pictures) == 3 + 7 + 3
    for picture in pictures:
        assert picture["shown"]
        assert picture["drawn"]
        assert picture["natural"] > 0
        assert picture["width"] > 300
        assert picture["height"] > 200
        assert picture["left"] >= 0
        assert picture["right"] <= width
    assert contrast(tab, "body", "body") > 7
    assert contrast(tab, "figcaption", "figure") > 4.5
    assert contrast(tab, "figure svg text", "figure", ink="fill") > 7
    darker = tab.evaluate(f"({LUMINANCE})(document.body, 'backgroundColor')") < 0.1
    assert darker == dark


def test_heat_maps_are_painted(tab, page_of_two):
    tab.open(page_of_two, width=1440)
    boxes = tab.evaluate(
        "[...document.querySelectorAll('svg image')].map(image => "
        "[image.getBoundingClientRect().width, image.getBoundingClientRect().height])"
    )
    assert len(boxes) >= 4
    assert all(width > 5 and height > 5 for width, height in boxes)


def test_faults_of_a_worse_page_are_detected(tab, tmp_path):
    page = tmp_path / "worse.html"
    page.write_text(
        '<!doctype html><link rel="icon" href="data:,"><body style="width: 2000px">'
        '<img src="http://nowhere.invalid/a.png"><script>console.warn("hm"); x.y</script>'
    )
    tab.open(page, width=390)
    assert requests_of(tab) == [page.as_uri(), "http://nowhere.invalid/a.png"]
    assert len(tab.complaints) == 3
    assert tab.evaluate("document.documentElement.scrollWidth") > 390
    assert tab.evaluate(PICTURES)[0]["natural"] == 0
