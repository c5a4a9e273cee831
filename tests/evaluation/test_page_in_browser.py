"""The page in Chromium: every control does what it says, by mouse, keyboard and touch, and nothing is requested."""

import io
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from helpers.chromium import PROGRAM, chromium
from vqjax.evaluation.page import PageImage, page
from vqjax.training.evaluate import evaluate_workdir

pytestmark = pytest.mark.full

HOSTILE = "</script><b onclick=alert(1)>"
RED, BLUE = (200, 40, 20), (20, 41, 200)
TABLE = [("metric", "value", "95 % interval", "protocol"), ("psnr", "23.5", "23.1 to 23.9", HOSTILE)]
# Two stages of 4 x 4 tokens; of the first, code 5 is in the first row and in the last column only.
TOKENS = np.stack([[[5, 5, 5, 5], [0, 1, 2, 5], [3, 4, 0, 5], [1, 2, 3, 5]], np.arange(16).reshape(4, 4)], axis=-1)
COUNTS = [np.array([40, 10, 0, 30, 20, 100, 0, 0]), np.arange(20)]
LISTS = {"first of the split": {"": [0, 1, 2]}, "psnr": {"Best": [3, 2], "Worst": [0, 1]}}
CONTROLS = {
    "order",
    "reveal",
    "gain",
    "stage",
    "grid",
    "codebook",
    "sort",
    "log",
    "theme",
    "compare",
    "difference",
    "chart",
}


def picture(number, tokens=TOKENS, size=(32, 32)):
    original, reconstruction = (np.full([*size, 3], color, np.uint8) for color in (RED, BLUE))
    return PageImage(original, reconstruction, f"image {number}: {HOSTILE}", {"psnr": 20.0 + number}, tokens)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if PROGRAM is None:
        stop = pytest.fail if "CHROMIUM" in os.environ else pytest.skip
        stop("there is no Chromium; install Debian's package chromium, or set CHROMIUM to the program")
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page, by default one with everything; complains if it asked for anything else, or complained itself."""

    def open_page(images=None, *, lists=LISTS, code_counts=COUNTS, width=1200, phone=False):
        images = [picture(number) for number in range(4)] if images is None else images
        file = tmp_path / "page.html"
        file.write_text(
            page(
                f"Evaluation {HOSTILE}", {"split": HOSTILE}, TABLE, images=images, lists=lists, code_counts=code_counts
            )
        )
        browser.screen(width, 900, phone=phone)
        browser.prefer("light")
        browser.open(file)
        browser.wait("!document.querySelector('#pictures').hidden === data.images.length > 0")
        if images:
            browser.wait("document.querySelector('#mean').textContent !== ''")
        return browser

    yield open_page
    assert browser.errors == []
    assert {url for url in browser.requests.values() if not url.startswith("data:")} == {
        (tmp_path / "page.html").as_uri()
    }


def text(browser, selector):
    return browser.js(f"document.querySelector({json.dumps(selector)}).textContent")


def texts(browser, selector):
    return browser.js(f"Array.from(document.querySelectorAll({json.dumps(selector)}), (e) => e.textContent)")


def focus(browser, selector):
    browser.js(f"document.querySelector({json.dumps(selector)}).focus()")


def color_on_screen(browser, selector, x, y):
    left, top = browser.place(selector, x, y)
    shot = Image.open(io.BytesIO(browser.picture()))
    return shot.convert("RGB").getpixel((round(left), round(top)))


def is_marked(browser, surface, row, column, size=4):
    """Whether a patch is highlighted on the canvas over an image."""
    alpha = browser.js(
        f"(() => {{ const c = document.querySelector('{surface} .overlay'); return c.getContext('2d').getImageData("
        f"c.width * {(column + 0.5) / size} , c.height * {(row + 0.35) / size}, 1, 1).data[3]; }})()"
    )
    return alpha > 0


def marked(browser, surface="#compare"):
    return {(row, column) for row in range(4) for column in range(4) if is_marked(browser, surface, row, column)}


def places(stage, code):
    return {(int(row), int(column)) for row, column in np.argwhere(TOKENS[..., stage] == code)}


def chart(browser):
    """Pixels of the histogram."""
    return browser.js("document.querySelector('#chart canvas').toDataURL()")


def in_chart(browser, code, share):
    """Color of the histogram by index, in the column of a code, at a share of its height; negative below its floor."""
    return browser.js(
        "(() => { const c = document.querySelector('#chart canvas'), scale = c.width / c.clientWidth;"
        f"const x = EDGES.left + (c.clientWidth - EDGES.left - EDGES.right) * {(code + 0.5) / len(COUNTS[0])};"
        f"const y = c.clientHeight - EDGES.bottom - (c.clientHeight - EDGES.top - EDGES.bottom) * {share};"
        "return Array.from(c.getContext('2d').getImageData(x * scale, y * scale, 1, 1).data); })()"
    )


def test_the_names_of_others_are_shown_as_they_are(opened):
    browser = opened()
    assert text(browser, "h1") == f"Evaluation {HOSTILE}"
    assert text(browser, "#caption") == f"image 0: {HOSTILE}"
    assert text(browser, "tbody td:last-child") == HOSTILE
    assert browser.js("document.querySelectorAll('[onclick]').length") == 0


def test_the_slider_reveals_by_dragging_and_by_keys(opened):
    browser = opened()
    assert color_on_screen(browser, "#compare", 0.4, 0.1) == RED
    assert color_on_screen(browser, "#compare", 0.6, 0.1) == BLUE
    browser.drag("#compare", (0.5, 0.5), (0.4, 0.5), (0.2, 0.5))  # by the handle
    assert text(browser, "#reveal-value") == "20 %"
    assert color_on_screen(browser, "#compare", 0.4, 0.1) == BLUE
    browser.drag("#compare", (0.4, 0.9), (0.6, 0.9), (0.8, 0.9))  # by the image
    assert color_on_screen(browser, "#compare", 0.6, 0.1) == RED
    assert browser.js("document.querySelector('#reveal').value") == "80"
    assert marked(browser) == set()
    focus(browser, "#reveal")
    browser.press("Home")
    assert color_on_screen(browser, "#compare", 0.05, 0.1) == BLUE
    browser.press("ArrowRight", "ArrowRight")
    assert text(browser, "#reveal-value") == "2 %"
    browser.press("End")
    assert color_on_screen(browser, "#compare", 0.95, 0.1) == RED


def test_the_difference_is_that_of_the_pixels_times_the_gain(opened):
    browser = opened()
    difference = np.abs(np.subtract(RED, BLUE))

    def shown():
        pixel = "document.querySelector('#difference-map').getContext('2d').getImageData(3, 3, 1, 1).data"
        return browser.js(f"Array.from({pixel}).slice(0, 3)")

    assert shown() == np.minimum(255, difference * 4).tolist()
    assert text(browser, "#mean") == f"mean {difference.mean():.2f} of 255".replace(".00", "")
    focus(browser, "#gain")
    browser.press("Home")
    assert shown() == difference.tolist()
    assert text(browser, "#gain-value") == "× 1"
    browser.press("End")
    assert shown() == np.minimum(255, difference * 64).tolist()
    browser.click("#gain", 0.5, 0.5)
    assert shown() == np.minimum(255, difference * 8).tolist()


@pytest.mark.parametrize("surface", ["#compare", "#difference"])
def test_pointing_at_a_patch_shows_its_code_and_marks_the_others_of_it(opened, surface):
    browser = opened()
    assert marked(browser) == set()
    browser.point(surface, 3.5 / 4, 1.5 / 4)
    assert "Row 2, column 4" in text(browser, "#token")
    assert "code 5" in text(browser, "#token")
    assert "7 patches of this image" in text(browser, "#token")
    assert "100 of 200 tokens of the split" in text(browser, "#token")
    assert "Code 5: 100 tokens, 50 %; rank 1." in text(browser, "#code")
    assert marked(browser) == marked(browser, "#difference") == places(0, 5)
    browser.point(surface, 0.5 / 4, 1.5 / 4)
    assert marked(browser) == places(0, 0)
    browser.point("h1")
    assert marked(browser) == set()
    assert "Point at a patch" in text(browser, "#token")


def test_a_click_keeps_a_token_until_the_next(opened):
    browser = opened()
    browser.click("#compare", 0.5 / 4, 2.5 / 4)
    browser.point("h1")
    assert marked(browser) == places(0, 3)
    browser.click("#compare", 0.5 / 4, 2.5 / 4)
    browser.point("h1")
    assert marked(browser) == set()


def test_the_keys_move_over_the_tokens(opened):
    browser = opened()
    focus(browser, "#gain")
    browser.press("Tab")  # from the slider of the difference map to the settings of the tokens
    assert browser.js("document.activeElement.id") == "stage"
    focus(browser, "#compare")
    browser.press("ArrowRight")
    assert "Row 1, column 1" in text(browser, "#token")
    browser.press("ArrowDown", "ArrowRight", "ArrowRight")
    assert "Row 2, column 3" in text(browser, "#token")
    assert marked(browser) == places(0, 2)
    browser.press("End", "ArrowRight", "ArrowDown")
    assert "Row 4, column 4" in text(browser, "#token")
    browser.press("ArrowUp", "ArrowLeft")
    assert "Row 3, column 3" in text(browser, "#token")
    browser.press("Home", "ArrowLeft", "ArrowUp")
    assert "Row 1, column 1" in text(browser, "#token")
    browser.press("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight")
    assert "Row 1, column 4" in text(browser, "#token")
    browser.press("ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft")
    assert "Row 2, column 1" in text(browser, "#token")
    browser.press("Escape")
    assert marked(browser) == set()


def test_another_stage_has_its_own_tokens_and_histogram(opened):
    browser = opened()
    focus(browser, "#stage")
    browser.press("ArrowDown")
    browser.point("#compare", 2.5 / 4, 1.5 / 4)
    assert "code 6" in text(browser, "#token")
    assert "1 patch of this image" in text(browser, "#token")
    assert marked(browser) == {(1, 2)}
    assert browser.js("document.querySelector('#codebook').value") == "1"
    assert "Code 6: 6 tokens" in text(browser, "#code")


def test_the_grid_of_all_tokens_is_an_option(opened):
    browser = opened()

    def inked():
        return browser.js(
            "(() => { const c = document.querySelector('#compare .overlay'); return c.getContext('2d').getImageData("
            "0, 0, c.width, c.height).data.reduce((n, x) => n + (x > 0), 0); })()"
        )

    assert inked() == 0
    focus(browser, "#grid")
    browser.press(" ")
    assert inked() > 1000
    browser.click("#grid")
    browser.point("h1")
    assert inked() == 0


def test_the_histogram_counts_dead_codes_and_takes_orders(opened):
    browser = opened()
    assert text(browser, "#usage").startswith(
        "5 of 8 codes used by 200 tokens; 3 dead (37.5 %). Entropy 1.92 of 3 bits"
    )
    pictures = {chart(browser)}
    browser.point("#chart", 0.1, 0.5)
    assert "Code 5: 100 tokens, 50 %; rank 1." in text(browser, "#code")
    browser.click("#sort label:last-child input")
    browser.point("#chart", 0.1, 0.5)
    assert "Code 0: 40 tokens, 20 %; rank 2." in text(browser, "#code")
    browser.point("#chart", 0.38, 0.5)
    assert "Code 2: 0 tokens, 0 %; dead." in text(browser, "#code")
    browser.point("h1")
    pictures.add(chart(browser))
    browser.click("#log")
    pictures.add(chart(browser))
    focus(browser, "#sort input:checked")
    browser.press("ArrowLeft")  # to the other order
    pictures.add(chart(browser))
    assert len(pictures) == 4
    focus(browser, "#codebook")
    browser.press("ArrowDown")
    assert text(browser, "#usage").startswith("19 of 20 codes used by 190 tokens; 1 dead (5 %).")


def test_bars_are_as_tall_as_counts_and_dead_codes_are_marked(opened):
    browser = opened()
    browser.click("#sort label:last-child input")
    browser.point("h1")
    bar, dead = in_chart(browser, 5, 0.96), in_chart(browser, 2, -0.015)
    assert bar[3] == dead[3] == 255
    assert bar[2] > bar[0]
    assert dead[0] > dead[2]
    for logarithmic in (False, True):
        shares = np.log1p(COUNTS[0]) / np.log1p(100) if logarithmic else COUNTS[0] / 100
        for code, share in enumerate(shares):
            assert in_chart(browser, code, share + 0.03) != bar
            assert (in_chart(browser, code, share - 0.03) == bar) == (share > 0)
            assert (in_chart(browser, code, -0.015) == dead) == (share == 0)
        browser.click("#log")
        browser.point("h1")


def test_the_keys_move_over_the_codes(opened):
    browser = opened()
    focus(browser, "#chart")
    browser.press("ArrowRight")
    assert "Code 5: 100 tokens" in text(browser, "#code")
    browser.press("ArrowRight", "ArrowRight")
    assert "Code 3: 30 tokens" in text(browser, "#code")
    browser.press("End", "ArrowRight")
    assert "Code 7: 0 tokens" in text(browser, "#code")
    browser.press("ArrowLeft")
    assert "Code 6: 0 tokens" in text(browser, "#code")
    browser.press("Home")
    assert "Code 5" in text(browser, "#code")
    browser.press("Escape")
    assert "Point at a bar" in text(browser, "#code")


def test_the_best_and_worst_images_can_be_chosen(opened):
    browser = opened()
    assert browser.js("document.querySelectorAll('.thumb').length") == 3
    focus(browser, "#order")
    browser.press("ArrowDown")
    assert browser.js("Array.from(document.querySelectorAll('#lists h3'), (e) => e.textContent)") == ["Best", "Worst"]
    assert browser.js("Array.from(document.querySelectorAll('.thumb span'), (e) => e.textContent)") == [
        "23",
        "22",
        "20",
        "21",
    ]
    assert text(browser, "#caption").startswith("image 3")
    browser.click("#lists > div:last-child .thumb:last-child")
    assert text(browser, "#caption").startswith("image 1")
    assert text(browser, "#values") == "psnr21"
    assert browser.js("document.querySelectorAll('.thumb[aria-pressed=true]').length") == 1
    focus(browser, "#lists > div:first-child .thumb:last-child")
    browser.press("Enter")
    assert text(browser, "#caption").startswith("image 2")


def test_colors_are_those_of_the_system_or_the_chosen_ones(opened):
    browser = opened()

    def is_dark():
        return browser.js("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((x) => x < 64)")

    assert not is_dark()
    light = chart(browser)
    browser.prefer("dark")
    browser.wait("document.documentElement.dataset.theme === 'dark'")
    assert is_dark()
    assert chart(browser) != light
    browser.click("#theme label:nth-of-type(2) input")
    assert not is_dark()
    focus(browser, "#theme input:checked")
    browser.press("ArrowRight")
    assert is_dark()
    browser.prefer("light")
    assert is_dark()


def test_paper_is_white(opened):
    browser = opened()
    browser.click("#theme label:nth-of-type(3) input")
    browser.js("addEventListener('beforeprint', () => { window.printed = document.documentElement.dataset.theme; })")
    assert browser.pdf().startswith(b"%PDF")
    assert browser.js("window.printed") == "light"
    browser.wait("document.documentElement.dataset.theme === 'dark'")


@pytest.mark.parametrize("width", [340, 700])
def test_a_phone_shows_everything_within_its_width_and_takes_touches(opened, width):
    browser = opened(width=width, phone=True)
    assert browser.js("document.documentElement.scrollWidth") <= width
    browser.tap("#compare", 3.5 / 4, 2.5 / 4)
    browser.wait("document.querySelector('#token').textContent.includes('code 5')")
    assert marked(browser) == places(0, 5)
    for control in CONTROLS:
        box = f"document.querySelector('#{control}').getBoundingClientRect()"
        assert browser.js(f"{box}.width > 0 && {box}.left >= 0 && {box}.right <= {width}"), control


@pytest.mark.parametrize("size", [(64, 8), (8, 64), (1, 1)])
def test_images_of_any_shape_are_on_the_screen_as_a_whole(opened, size):
    browser = opened([picture(0, np.zeros((1, 1), int), size)], lists={"all": {"": [0]}}, code_counts=[np.ones(1, int)])
    for surface in ("#compare", "#difference"):
        width, height = browser.js(
            f"[document.querySelector('{surface}')].flatMap((e) => [e.clientWidth, e.clientHeight])"
        )
        assert height < 900
        assert width / height == pytest.approx(size[1] / size[0], rel=0.02)
    browser.point("#compare")
    assert "Row 1, column 1" in text(browser, "#token")
    assert "1 of 1 codes used" in text(browser, "#usage")


def test_values_that_are_not_numbers_and_positions_without_tokens_are_shown(opened):
    given = PageImage(*[np.zeros([8, 8, 3], np.uint8)] * 2, "", {"psnr": float("nan")}, np.array([[-1, 0], [0, 0]]))
    browser = opened([given], lists={"psnr": {"Best": [0]}}, code_counts=[np.zeros(1, int)])
    assert text(browser, "#values") == "psnrn/a"
    browser.point("#compare", 0.25, 0.25)
    assert "code none" in text(browser, "#token")
    assert "0 of 1 codes used by 0 tokens; 1 dead (100 %)" in text(browser, "#usage")


def test_flat_tokens_that_are_no_grid_have_their_own_picture(opened):
    browser = opened([picture(0, np.arange(21) % 5)], lists={"all": {"": [0]}}, code_counts=[np.arange(8)])
    assert "21 tokens that belong to no patch" in text(browser, "#token")
    browser.point("#tokens", 0.5 / 7, 0.5 / 3)
    assert "Token 1 of 21" in text(browser, "#token")
    assert "5 tokens of this image" in text(browser, "#token")
    focus(browser, "#tokens")
    browser.press("End")
    assert "Token 21 of 21" in text(browser, "#token")
    browser.point("#compare", 0.1, 0.1)
    browser.press("Escape")
    assert "Point at a token" in text(browser, "#token")


def test_what_there_is_not_is_not_shown(opened):
    def visible(browser, selector):
        return browser.js(f"document.querySelector('{selector}').getClientRects().length > 0")

    browser = opened([picture(0, None)], lists={"all": {"": [0]}}, code_counts=[])
    assert visible(browser, "#compare")
    assert not any(visible(browser, selector) for selector in ("#codes", "#token", "#stage", "#grid", "#order"))
    browser.point("#compare", 0.3, 0.3)
    browser = opened([], lists={}, code_counts=COUNTS[:1])
    assert visible(browser, "#chart")
    assert visible(browser, "table")
    assert not any(visible(browser, selector) for selector in ("#pictures", "#codebook"))


def test_every_control_has_a_name_and_a_test(opened):
    browser = opened()
    browser.call("Accessibility.enable")
    named = {"slider", "checkbox", "radio", "combobox", "button", "application", "image"}
    nodes = [node for node in browser.call("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    roles = [(node["role"]["value"], node.get("name", {}).get("value")) for node in nodes]
    assert {role for role, _ in roles} >= named - {"image"}
    assert [role for role, name in roles if role in named and not name] == []
    controls = browser.js(
        "Array.from(document.querySelectorAll('input, select, button, [tabindex], a'), (e) => e.closest('fieldset')?.id"
        " ?? (e.className === 'thumb' ? 'thumb' : e.id))"
    )
    assert set(controls) == CONTROLS | {"thumb"}


def test_the_policy_stops_scripts_and_requests(opened, tmp_path):
    """What would happen if a text were taken for code after all."""
    browser = opened()
    (tmp_path / "other.png").write_bytes(b"")
    attempts = {
        "script": "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; "
        "document.body.append(s); return window.ran ?? 0; })()",
        "fetch": "fetch('https://example.com/').then(() => 1, () => 0)",
        "image": "new Promise((done) => { const i = new Image(); i.onload = () => done(1); i.onerror = () => done(0); "
        "i.src = 'other.png'; })",
    }
    assert {name: browser.js(code) for name, code in attempts.items()} == dict.fromkeys(attempts, 0)
    complaints = [error for error in browser.errors if "Content Security Policy" in error]
    assert len(complaints) >= len(attempts)
    browser.errors.clear()


def test_the_page_of_an_evaluation(finished, browser, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    result = evaluate_workdir(tmp_path / "run")
    browser.screen(1200, 900)
    browser.open(tmp_path / "run" / "eval" / "report.html")
    browser.wait("document.querySelector('#mean').textContent !== ''")
    assert re.search(r"\[\d+\]", text(browser, "#caption"))
    assert texts(browser, "tbody th") == list(result.metrics)
    assert texts(browser, "#order option") == ["first of the split", "mse_01", "psnr", "ssim"]
    browser.point("#compare", 0.1, 0.1)
    assert "Row 1, column 1" in text(browser, "#token")
    dead = result.metrics["dead_codes_split"]
    assert f"{dead} dead" in text(browser, "#usage")
    assert browser.errors == []
    assert all(url.startswith(("file:", "data:")) for url in browser.requests.values())
