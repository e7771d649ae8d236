"""The gallery: its files, and in a real browser its filters, marks, keys, widths, dark mode and silence."""

import json
import os
import re
import shutil
import time
from types import SimpleNamespace

import pytest
from PIL import Image

from evaluation import evaluate
from evaluation.curation import read_marks
from evaluation.gallery import indexed
from id_booth.sampling.provenance import DIGITAL_SOURCE_TYPE, png_chunks, read_record
from tests.evaluation_world import EVIL, Page, config_for, make_world
from utils.files import sha256_file
from utils.images import load_image, save_png

PLACES = ("forest", "city street")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A painted evaluation whose samples carry records, with markup in a prompt and in a person's name."""
    with pytest.MonkeyPatch.context() as patch:
        world = make_world(tmp_path_factory.mktemp("gallery"), patch)
        (world / "faces/ID_3").rename(world / "faces/<b>ID_3")
        for method in ("ID-Booth", "NonFineTuned"):
            folder = world / "sets/one" / method
            (folder / "ID_3").rename(folder / "<b>ID_3")
            records = [give_record(path, method) for path in sorted(folder.glob("*/*.png"))]
            (folder / "metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
        evaluate.evaluate(config_for(world, encoders=("pixels",)))
        return world


def give_record(path, method):
    """Save a sample with its record, as our own script does; returns the record."""
    number = int(path.stem)
    pose, place = ("portrait", "side-portrait")[number % 2], PLACES[number % 2]
    prompt = f"face {pose} photo of male sks person{EVIL}, {place} background"
    record = {"identity": path.parent.name, "method": method, "prompt": prompt, "seed": number}
    record |= {"digital_source_type": DIGITAL_SOURCE_TYPE, "code_version": "1"}
    save_png(path, load_image(path), png_chunks(record))
    return record | {"file_name": f"{path.parent.name}/{path.name}"}


def data_of(folder):
    """What gallery/data.js says."""
    text = (folder / "gallery/data.js").read_text()
    return json.loads(text[text.index("{") : text.rindex(";")])


def test_files_of_the_gallery(world):
    out, data = world / "out", data_of(world / "out")
    page = Page((out / "gallery.html").read_text())
    assert page.urls == ["report.html", "gallery/data.js"] and EVIL not in (out / "gallery.html").read_text()
    assert "gallery.html" in Page((out / "report.html").read_text()).urls
    assert data["count"] == 18 and {*data["photos"]} == {"ID_1", "ID_2", "<b>ID_3"}
    for file in (out / "gallery.html", out / "gallery/data.js"):
        assert str(world) not in file.read_text()
    photos = {photo["thumb"] for of in data["photos"].values() for photo in of}
    for path in (out / "gallery").glob("*.jpg"):
        record = read_record(path)
        assert (record is None) == (path.name in photos) and max(Image.open(path).size) <= 192
    columns = {
        name: [[*of["text"], None][i] for i in of["index"]]
        for name, of in data["columns"].items()
        if "text" in of
    }
    place = columns["file"].index("ID_1/000.png")  # the base model comes first
    assert columns["thumb"][place][:24] == sha256_file(world / "sets/one/NonFineTuned/ID_1/000.png")[:24]
    assert columns["seed"][place] == "0" and columns["nearest_photo"][place].startswith("ID_1/images/")


def test_pictures_are_kept_by_content_and_go_with_their_samples(world, tmp_path, monkeypatch):
    copied = shutil.copytree(world, tmp_path / "world")
    monkeypatch.setattr("evaluation.comparison.FaceAnalyser", lambda pack, **_: analyser_of(copied, pack))
    (copied / "out/gallery/own picture.jpg").write_bytes(b"of somebody else")
    gone = copied / "sets/one/ID-Booth/ID_1/002.png"
    thumb = copied / "out/gallery" / f"{sha256_file(gone)[:24]}-192.jpg"
    before = {path: path.stat().st_mtime_ns for path in (copied / "out/gallery").glob("*-192.jpg")}
    assert thumb in before
    gone.unlink()
    evaluate.evaluate(config_for(copied, encoders=("pixels",)))
    after = {path: path.stat().st_mtime_ns for path in (copied / "out/gallery").glob("*-192.jpg")}
    assert after == {path: at for path, at in before.items() if path != thumb}
    assert (copied / "out/gallery/own picture.jpg").is_file()


def analyser_of(folder, pack):
    from tests.evaluation_world import ColourAnalyser

    return ColourAnalyser(folder, pack)


# --------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    """An installed Chromium, driven by Playwright; skips where either is absent."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """A function (folder, width, scheme) -> page of its gallery, with what it asked for and complained of."""
    contexts = []

    def opened(folder, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        contexts.append(context)
        page, seen = context.new_page(), SimpleNamespace(requests=[], complaints=[])
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("console", lambda message: seen.complaints.append(message.text))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.goto(f"file://{folder}/gallery.html")
        page.wait_for_selector(".card")
        return page, seen

    yield opened
    for context in contexts:
        context.close()


def values(page):
    """The numbers on the cards, None for one that is unknown."""
    texts = page.locator(".card b").all_inner_texts()
    return [None if text == "–" else float(text) for text in texts]


def shows(page, number):
    """Wait until so many cards are there."""
    page.wait_for_function("n => document.querySelectorAll('.card').length === n", arg=number)


def test_filters_and_order(world, open_page):
    page, seen = open_page(world / "out")
    shows(page, 9)
    assert page.input_value("#method") == "ID-Booth"  # not the base model's, of which all are bad
    page.click("#clear")
    shows(page, 18)
    assert values(page)[:3] == [None] * 3  # black, so worst
    page.select_option("#identity", "<b>ID_3")
    shows(page, 6)
    assert page.locator("#photos img").count() == 4
    known = [value for value in values(page) if value is not None]
    assert known == sorted(known) and values(page)[0] is None
    page.select_option("#order", "best")
    page.wait_for_function("document.querySelector('.card b').textContent !== '–'")
    assert values(page)[:5] == sorted(known, reverse=True)
    page.select_option("#method", "ID-Booth")
    page.select_option("#background", "city street")
    shows(page, 1)
    page.click("#clear")
    page.select_option("#pose", "side")
    shows(page, 6)
    page.click("#clear")
    page.fill("#prompt", "script FOREST")
    shows(page, 12)
    page.fill("#prompt", "nothing such")
    shows(page, 0)
    assert page.inner_text("#pages") == "none" and not seen.complaints


def test_what_was_asked_and_is_not_seen(world, open_page, tmp_path):
    """Six samples of whose prompts and pictures the answer is written here; a page without a classifier."""
    folder = shutil.copytree(world / "out", tmp_path / "out")
    data = data_of(folder)
    assert data["asked"] == ["gender", "age", "background", "pose"]
    asked = {"gender": ["male"] * 6, "background": ["forest", "forest", None, "forest", "beach", "beach"]}
    seen = {
        "gender": ["male", "male", "male", None, "female", "male"],
        "background": ["forest", "beach", "beach", None, "forest", "beach"],
    }
    for name in data["asked"]:
        for column, texts in ((name, asked.get(name)), (f"seen_{name}", seen.get(name))):
            data["columns"][column] = indexed(texts or [None] * 6)
    data["count"] = 6
    data["columns"]["method"] = indexed(["one"] * 6)
    (folder / "gallery/data.js").write_text(f"const GALLERY = {json.dumps(data)};")
    page, _ = open_page(folder)
    for choice, number in (("place", 2), ("gender", 1), ("pose", 0), ("anything", 2), ("all", 6)):
        page.select_option("#unseen", label=choice)
        shows(page, number)
    (folder / "gallery/data.js").write_text(f"const GALLERY = {json.dumps(data | {'asked': []})};")
    page, _ = open_page(folder)
    assert page.locator("#unseen").is_hidden() and page.locator("#pose").is_visible()


def test_names_are_text_and_nothing_is_asked_for_outside(world, open_page):
    page, seen = open_page(world / "out")
    page.select_option("#identity", "<b>ID_3")
    page.click(".card >> nth=1")
    assert "<b>ID_3" in page.inner_text("#heading") and EVIL in page.inner_text("#asked")
    assert page.locator("#heading b, #grid script, #asked script").count() == 0
    assert page.locator("#beside img.nearest").count() == 1 and "Seed" not in page.inner_text("#numbers")
    page.wait_for_load_state("networkidle")
    assert len(seen.requests) > 10 and not seen.complaints
    assert all(url.startswith(f"file://{world}/out/") for url in seen.requests)


def test_marks_by_keyboard_survive_and_are_exported_for_curate(world, open_page, tmp_path):
    page, _ = open_page(world / "out")
    page.click("#clear")
    page.select_option("#sort", label="face quality")
    page.focus(".card >> nth=0")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.inner_text("#where") == "2 of 18"
    page.keyboard.press("k")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("r")
    page.keyboard.press("n")
    page.keyboard.type("eyes <i> r k")
    page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    page.locator(".card[data-mark=reject]").wait_for()  # the grid is redrawn a task after the view has gone
    assert (
        page.locator(".card[data-mark=keep]").count() == page.locator(".card[data-mark=reject]").count() == 1
    )
    assert "1 keep, 1 reject" in page.inner_text("#count")
    page.reload()
    page.click("#clear")
    page.select_option("#marked", "reject")
    shows(page, 1)
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(tmp_path / "marks.json")
    assert sorted(read_marks(tmp_path / "marks.json").values()) == ["keep", "reject"]
    content = json.loads((tmp_path / "marks.json").read_text())
    assert [one["note"] for one in content["marks"].values() if "note" in one] == ["eyes <i> r k"]
    page.click(".card")
    page.keyboard.press("u")
    page.keyboard.press("Escape")
    page.locator("#view").wait_for(state="hidden")
    fresh, _ = open_page(world / "out")
    assert "0 keep, 0 reject" in fresh.inner_text("#count")
    fresh.set_input_files("#import", tmp_path / "marks.json")
    fresh.locator("#count", has_text="1 keep, 1 reject").wait_for()
    (tmp_path / "other.json").write_text("[]")
    fresh.set_input_files("#import", tmp_path / "other.json")
    fresh.locator("#kept", has_text="no marks").wait_for()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_every_screen_and_reader(world, open_page, width, scheme):
    page, _ = open_page(world / "out", width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shade = re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (int(shade[0]) < 60) == (scheme == "dark")
    findings = serious_findings(page)
    page.select_option("#identity", "ID_1")
    page.click(".card >> nth=0")
    assert findings + serious_findings(page) == []
    box = page.locator("#view").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width


@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_fits_too(world, open_page, width):
    page, seen = open_page(world / "out", width)
    page.click("a[href='report.html']")
    page.wait_for_url("**/report.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert serious_findings(page) == [] and not seen.complaints
    page.click("a[href='gallery.html']")
    page.wait_for_selector(".card")


def serious_findings(page):
    """What axe-core finds serious or worse."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    found = axe.Axe().run(page).response["violations"]
    return [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]


def test_a_hundred_people_open_at_once(world, open_page, tmp_path):
    folder = shutil.copytree(world / "out", tmp_path / "out")
    data, times = data_of(folder), 8400 // 18 + 1
    data["count"] *= times
    for column in data["columns"].values():
        column.update({name: of * times for name, of in column.items() if name != "text"})
    (folder / "gallery/data.js").write_text(f"const GALLERY = {json.dumps(data)};")
    start = time.perf_counter()
    page, seen = open_page(folder)
    assert time.perf_counter() - start < 6  # two seconds on a machine with nothing else to do
    assert page.locator(".card").count() == 60 and "of 8,406 samples" in page.inner_text("#count")
    page.keyboard.press(".")
    assert page.inner_text("#pages") == "61 to 120" and not seen.complaints
    assert page.evaluate("performance.memory.usedJSHeapSize") < 100 * 2**20
