"""The page against what runs have written, by NumPy, Pillow and scikit-learn, and in a browser."""

import csv
import hashlib
import html
import html.parser
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from report_pages import Cards, table_rows
from sklearn.metrics import average_precision_score

from wsdl_jax import evaluation, inputs, runs
from wsdl_jax.evaluation import metrics
from wsdl_jax.inputs import perturbations
from wsdl_jax.reporting import gallery
from wsdl_jax.reporting.evaluated_runs import read
from wsdl_jax.reporting.page import report
from wsdl_jax.reporting.tables import everyday_tables, settings, tables
from wsdl_jax.runtime import storage
from wsdl_jax.runtime.errors import UserError

EVIL = "<img src=x onerror=alert(1)>\"'&amp;</script>"


@pytest.fixture(scope="module")
def pair(evaluated: epath.Path, tmp_path_factory: pytest.TempPathFactory) -> list[epath.Path]:
    """Two runs: one as it was evaluated, and a copy with robustness and another dataset."""
    folder = tmp_path_factory.mktemp("report")
    first = epath.Path(shutil.copytree(evaluated, folder / "one" / "run"))
    second = epath.Path(shutil.copytree(evaluated, folder / "two" / "run"))
    evaluation.robustness(second, "noise", [5, 20])
    with pytest.MonkeyPatch.context() as patch:  # two of them are enough
        patch.setattr(perturbations, "EVERYDAY", perturbations.EVERYDAY[-2:])
        retain(second, evaluation.everyday_robustness(second))
    evaluation.evaluate(second, fake="dolos/celebahq_repaint_p2_9k")
    return [first, second]


def retain(run: epath.Path, stored: dict[str, Any]) -> None:
    """Lets a run whose IoU is below the all-fake map's have retained something of it at 0.5."""
    for place, figures in enumerate((*stored["points"], stored)):
        figures["retained"] = 0.25 + place
    (run / "robustness-all.json").write_text(json.dumps(stored))


@pytest.fixture(scope="module")
def page(pair: list[epath.Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report of both, all test images shown."""
    out = tmp_path_factory.mktemp("page") / "compared"
    report(pair, epath.Path(out), count=1000)
    return out


def test_the_table_has_the_results(pair, page):
    first, second = (json.loads((run / "results.json").read_text()) for run in pair)
    own, other = tables(read(pair))
    assert [row.name for row in own.rows] == [
        *("one/run", "two/run", "all real", "all fake", "random", "guessing")
    ]
    for row, stored in zip(own.rows, (first, second), strict=False):
        cells = dict(zip(own.head, (cell.text for cell in row.cells), strict=True))
        for name in (*metrics.LOCALIZATION, "auc", "balanced_accuracy", "image_f1"):
            assert cells[name] == f"{stored[name]:.1f}"
        assert cells["ap"] == f"{stored['ap']:.1f} ± {stored['ap_2sd']:.1f}"
        above = f"{stored['fake_above']:.1f} / {stored['real_above']:.1f}"
        assert cells["called fake"] == above
        fitted = f"{stored['iou_fitted']:.1f} at {stored['map_threshold']:.2g}"
        assert cells["iou_fitted"] == fitted
        iou, threshold = map(float, cells["best iou_lg"].split(" at "))
        points = {p["threshold"]: p["iou_lg"] for p in stored["iou_by_threshold"]}
        assert iou == pytest.approx(max(points.values()), abs=0.05)
        assert points[threshold] == max(points.values())
        at = f"{stored['f1_best_fixed']:.1f} at {stored['f1_best_fixed_at']:.3g}"
        assert cells["best f1"] == at
    for (name, colour, cells), stored in zip(own.rows[2:5], [first] * 3, strict=True):
        assert colour is None
        for figure, (text, best) in zip(metrics.LOCALIZATION, cells, strict=False):
            known = stored["trivial"][name][figure]
            assert text == ("–" if known is None else f"{known:.1f}") and not best
    assert "celebahq_repaint_p2_9k" in other.title and other.rows[0].name == "two/run"
    text = (page / "index.html").read_text()
    assert f"{first['iou_lg']:.1f}" in text and "celebahq_repaint_p2_9k" in text


def test_trivial_figures_that_differ_are_a_range(pair):
    one, two = read(pair)
    changed = json.loads(json.dumps(two.results[0]))
    changed["trivial"]["random"]["iou_sm"] = one.results[0]["trivial"]["random"]["iou_sm"] + 10
    own, _ = tables([one, two._replace(results=[changed, *two.results[1:]])])
    cells = dict(zip(own.head, own.rows[4].cells, strict=True))
    low = one.results[0]["trivial"]["random"]["iou_sm"]
    assert cells["iou_sm"][0] == f"{low:.1f}–{low + 10:.1f}"


def test_config(pair, evaluated):
    one, two = read(pair)
    assert settings([one, two]) == []
    fields = dict(settings([one]))
    assert fields["method"] == ["patches"] and fields["data.real"] == ["dolos/celebahq_real"]
    config = runs.load_config(evaluated)
    config.train.learning_rate = 0.25
    rows = settings([one, two._replace(config=config)])
    assert rows == [("train.learning_rate", ["0.01", "0.25"])]


def test_plots(page, pair):
    text = (page / "index.html").read_text()
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert titles == [
        "Precision and recall, all test images",
        "Scores: one/run",
        "Scores: two/run",
        "IoU against the size of the mask",
        "IoU against the threshold",
        *("Retained IoU, %", "AP", "Real images called fake, %"),
        "iou_lg after noise",
        "ap after noise",
        "Training loss",
        "Validation loss",
    ]
    rows = table_rows(pair[0])
    labels = [row["label"] == "fake" for row in rows]
    ap = 100 * average_precision_score(labels, [float(row["score"]) for row in rows])
    assert f"one/run, AP {ap:.1f}" in text
    robustness = json.loads((pair[1] / "robustness-noise.json").read_text())
    clean, point = robustness["clean"]["iou_lg"], robustness["points"][1]["iou_lg"]
    for strength, value in ((0, clean), (20, point)):
        shown = f"{round(value, 2):,.2f}".rstrip("0").rstrip(".")
        assert f"two/run: {strength}, {shown}<" in text


def test_everyday_perturbations(page, pair):
    stored = json.loads((pair[1] / "robustness-all.json").read_text())
    (table,) = everyday_tables(read(pair))
    assert table.title == "two/run: dolos/celebahq_repaint_p2 and dolos/celebahq_real"
    assert [row.name for row in table.rows[1:-1]] == [p["perturbation"] for p in stored["points"]]
    text = (page / "index.html").read_text()
    for row, figures in zip(table.rows, (stored["clean"], *stored["points"]), strict=False):
        assert row.colour == 1
        cells = dict(zip(table.head, (cell.text for cell in row.cells), strict=True))
        assert cells["iou_lg"] == f"{figures['iou_lg']:.1f}"
        assert cells["ap"] == f"{figures['ap']:.1f}"
        shown = f"{round(figures['ap'], 1):,.1f}".removesuffix(".0")
        assert f"<title>two/run: {row.name}, {shown}</title>" in text
        retained = 100 * figures.get("retained", math.nan)
        assert cells["retained"] == ("–" if math.isnan(retained) else f"{retained:.1f}")
    assert "<title>two/run: gamma 1.5, 25</title>" in text  # %
    assert "<title>two/run: resize 0.75, jpeg 75, 125</title>" in text


def test_cards_show_what_was_measured(page, pair, dolos_folder):
    cards = Cards((page / "index.html").read_text()).cards
    rows = table_rows(pair[0])
    assert len(cards) == len(rows) == 19
    by_name = {(card["data-side"], card["data-name"].split()[1]): card for card in cards}
    for row in rows:
        card = by_name[row["label"], row["key"]]
        for run in ("0", "1"):
            assert float(card[f"data-score{run}"]) == float(row["score"])
            assert f"score {float(row['score']):.3f}" in card["text"]
            if row["label"] == "fake":
                assert float(card[f"data-iou{run}"]) == float(row["iou_lg"])
                assert f"IoU {100 * float(row['iou_lg']):.1f}" in card["text"]
            else:
                assert f"data-iou{run}" not in card and "IoU" not in card["text"]


def test_nothing_is_fetched(page):
    text = (page / "index.html").read_text()
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(https?:)?//", text)
    linked = set(re.findall(r'src="(images/[^"]+)"', text))
    assert linked == {f"images/{path.name}" for path in (page / "images").iterdir()}


def test_a_run_without_pictures_and_curves(evaluated, tmp_path):
    """As one whose weights were converted, and whose data is elsewhere."""
    run = epath.Path(shutil.copytree(evaluated, tmp_path / "run"))
    (run / "metrics.jsonl").unlink()
    config = json.loads((run / "config.json").read_text())
    config["data"]["dir"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    report([run], run / "report", count=0)
    text = (run / "report" / "index.html").read_text()
    assert "Training" not in text and "Gallery" not in text and "<script" not in text
    assert {path.name for path in (run / "report").iterdir()} == {"index.html", storage.MANIFEST}
    with pytest.raises(UserError, match="is not prepared in"):
        report([run], run / "other")
    assert not (run / "other").exists()


def write_rows(run: epath.Path, rows: list[dict[str, str]]) -> None:
    with (run / "predictions.csv").open("w") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def evil_run(evaluated: epath.Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> epath.Path:
    """A run in a folder, and on images, of a name that would be dangerous in a page."""
    run = epath.Path(shutil.copytree(evaluated, folder / EVIL.replace("/", "")))
    rows = table_rows(run)
    for row in rows:
        row["key"] = f"{EVIL}{row['key']}"
    write_rows(run, rows)
    vouch(run)
    read = inputs.Examples.__getitem__

    def renamed(self, index):
        record = read(self, index)
        return {**record, "key": EVIL.encode() + record["key"]}

    monkeypatch.setattr(inputs.Examples, "__getitem__", renamed)
    return run


def test_names_are_escaped(evaluated, tmp_path, monkeypatch):
    run = evil_run(evaluated, tmp_path, monkeypatch)
    report([run], epath.Path(tmp_path / "out"), count=6)
    text = (tmp_path / "out" / "index.html").read_text()
    assert "<img src=x" not in text and text.count("</script>") == 1
    parsed = Cards(text)
    assert parsed.scripts == 1 and parsed.cards
    assert all(card["data-name"].startswith("dolos/celebahq_re") for card in parsed.cards)
    assert all(EVIL in card["data-name"] for card in parsed.cards)
    assert html.escape(run.name, quote=False)[:20] in text


def vouch(run: epath.Path) -> None:
    """Lets results.json stand for predictions.csv as it is now."""
    stored = json.loads((run / "results.json").read_text())
    stored["predictions"] = hashlib.sha256((run / "predictions.csv").read_bytes()).hexdigest()
    (run / "results.json").write_text(json.dumps(stored))


def broken(run: epath.Path, what: str) -> None:
    if what == "no results":
        (run / "results.json").unlink()
    elif what == "half results":
        (run / "results.json").write_text((run / "results.json").read_text()[:50])
    elif what == "old results":
        stored = json.loads((run / "results.json").read_text())
        del stored["iou_by_threshold"]
        (run / "results.json").write_text(json.dumps(stored))
    elif what == "no predictions":
        (run / "predictions.csv").unlink()
    elif what == "half predictions":
        write_rows(run, table_rows(run)[:-3])
    elif what == "other predictions":
        (run / "predictions.csv").write_text("file,score\n1.png,0.5\n")
    elif what == "later checkpoint":
        stored = json.loads((run / "results.json").read_text())
        (run / "results.json").write_text(json.dumps({**stored, "checkpoint": 3}))
    elif what == "other images":
        rows = table_rows(run)
        write_rows(run, [{**row, "key": f"x{row['key']}"} for row in rows])
        vouch(run)
    elif what == "other scores":
        write_rows(run, [{**row, "score": 1 + float(row["score"])} for row in table_rows(run)])
        vouch(run)
    elif what == "changed predictions":
        write_rows(run, [{**row, "score": 1 + float(row["score"])} for row in table_rows(run)])
    elif what == "old robustness":
        stored = json.loads((run / "results.json").read_text())
        old = {**stored, "perturbation": "jpeg", "checkpoint": 1, "unit": "", "points": []}
        old["clean"] = stored
        (run / "robustness-jpeg.json").write_text(json.dumps(old))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no results", r"no results\.json: run python -m wsdl_jax\.evaluate --run"),
        ("half results", r"results\.json cannot be read"),
        ("old results", r"results\.json has no '\w+': it is of another version"),
        ("no predictions", r"predictions\.csv is not there: evaluate"),
        ("half predictions", r"predictions\.csv is not of results\.json"),
        ("changed predictions", r"predictions\.csv is not of results\.json"),
        ("other predictions", r"predictions\.csv cannot be read .*label"),
        ("later checkpoint", r"was evaluated at step 3, and is best at step 5 now"),
        ("other images", r"dolos/celebahq_repaint_p2 is not what .* was evaluated on .*: 00"),
        ("other scores", r"celebahq_repaint_p2 is not what .* --data_dir right.*: 00.* has score"),
        ("old robustness", r"has results of steps 5 and 1: run .* --perturb jpeg again"),
    ],
)
def test_what_cannot_be_reported_on(evaluated, tmp_path, what, message):
    run = epath.Path(shutil.copytree(evaluated, tmp_path / "run"))
    broken(run, what)
    with pytest.raises(UserError, match=message) as caught:
        report([run], run / "report", count=3)
    assert "\n" not in str(caught.value)
    assert not list(Path(run).glob("*report*"))


def test_folders_that_are_not_replaced(evaluated, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "index.html").write_text("<p>mine")
    (tmp_path / "file").write_text("mine")
    for out, message in (
        (notes, "is there and is no report: move"),
        (tmp_path / "file", "is a file"),
    ):
        with pytest.raises(UserError, match=message):
            report([evaluated], epath.Path(out), count=0)
    assert (notes / "index.html").read_text() == "<p>mine"
    with pytest.raises(UserError, match="given twice"):
        report([evaluated, evaluated], epath.Path(tmp_path / "out"), count=0)


def test_a_report_is_replaced_as_a_whole(evaluated, tmp_path, monkeypatch):
    out = epath.Path(tmp_path / "out")
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    report([evaluated], out, count=3)
    before = {path: path.read_bytes() for path in Path(out).rglob("*") if path.is_file()}
    assert len(before) > 5

    def interrupted(*_: Any) -> Iterator:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with monkeypatch.context() as context:
        context.setattr(gallery, "_maps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            report([evaluated], out, count=3)
    assert {p: p.read_bytes() for p in Path(out).rglob("*") if p.is_file()} == before
    # What a user has put there stays, and so does the report.
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out/notes.txt is not of the report that .*out is"):
        report([evaluated], out, count=0)
    (tmp_path / "out/notes.txt").unlink()
    assert {p: p.read_bytes() for p in Path(out).rglob("*") if p.is_file()} == before
    report([evaluated], out, count=0)
    assert {path.name for path in out.iterdir()} == {"index.html", storage.MANIFEST}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RUN… is missing"),
        (["a", "b"], "--out is missing"),
    ],
)
def test_wrong_flags_are_one_line(arguments, message):
    command = [sys.executable, "-m", "wsdl_jax.report", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in done.stderr


def test_the_command(evaluated, tmp_path):
    run = shutil.copytree(evaluated, tmp_path / "run")
    command = [sys.executable, "-m", "wsdl_jax.report", run, "--gallery", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"written to {run}/report/index.html" in done.stderr
    assert (run / "report" / "index.html").exists()


# ---------------------------------------------------------------------------------------------
# In a browser


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Any]:
    """Headless Chromium that records what its console says."""
    webdriver = pytest.importorskip("selenium.webdriver")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--window-size=1300,1000", f"--user-data-dir={tmp_path / 'profile'}"),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(programs[1])
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def visible(browser: Any) -> list[tuple[str, float, float]]:
    """(side, score, IoU) of the cards that are shown, in order."""
    return browser.execute_script("""
        return [...document.querySelectorAll("#cards .card")].filter((card) => card.offsetHeight)
          .map((card) => [card.dataset.side, +card.dataset.score0, +(card.dataset.iou0 ?? NaN)])
    """)


def choose(browser: Any, name: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", name)).select_by_value(value)


def test_in_a_browser(chromium, page):
    from selenium.webdriver.common.keys import Keys

    chromium.get((page / "index.html").as_uri())
    assert chromium.title == "one/run, two/run"
    for option, column, sign in (
        ("iou -1", 2, -1),
        ("iou 1", 2, 1),
        ("score -1", 1, -1),
        ("score 1", 1, 1),
    ):
        choose(chromium, "sort", option)
        rows = visible(chromium)
        assert len(rows) == 19
        known = [row[column] for row in rows if row[column] is not None]
        assert known == sorted(known, key=lambda value: sign * value) and len(set(known)) > 5
        assert known == [row[column] for row in rows][: len(known)]  # the others come last
    choose(chromium, "run", "1")
    choose(chromium, "side", "real")
    assert {row[0] for row in visible(chromium)} == {"real"} and len(visible(chromium)) == 8
    choose(chromium, "side", "")
    text = chromium.find_element("id", "text")
    text.send_keys("00003")
    assert len(visible(chromium)) == 2  # one real, one fake
    assert chromium.find_element("id", "count").text == "2 of 19"
    text.send_keys(Keys.CONTROL + "a" + Keys.NULL + Keys.BACKSPACE)

    # By keyboard alone: to the next card, larger, the one after, back.
    active = "return document.activeElement.dataset.name"
    cards = chromium.find_elements("css selector", "#cards .card")
    chromium.execute_script("arguments[0].focus()", cards[0])
    chromium.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert chromium.execute_script(active) == cards[1].get_attribute("data-name")
    chromium.switch_to.active_element.send_keys(Keys.ENTER)
    large = "return document.querySelector('dialog[open] .card')?.dataset.name ?? null"
    assert chromium.execute_script(large) == cards[1].get_attribute("data-name")
    chromium.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert chromium.execute_script(large) == cards[2].get_attribute("data-name")
    chromium.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert chromium.execute_script(large) is None
    assert chromium.execute_script(active) == cards[2].get_attribute("data-name")

    # Every picture can be read; nothing is wider than a telephone.
    missing = chromium.execute_async_script("""
        const done = arguments[0], images = [...document.images];
        for (const image of images) image.loading = "eager";
        Promise.all(images.map((image) => image.decode().then(() => null, () => image.src)))
          .then((sources) => done(sources.filter((source) => source)));
    """)
    assert missing == []
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": False},
    )
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= 360

    # Text stands out from its ground, in light and in dark (WCAG 2, AA).
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        for selector in ("h1", "nav a", "p", "tr.trivial td", ".card p", ".card h3", "#sort"):
            assert contrast(chromium, selector) >= 4.5, (scheme, selector)
    assert chromium.get_log("browser") == []


def contrast(browser: Any, selector: str) -> float:
    colours = browser.execute_script(
        """
        const element = document.querySelector(arguments[0]);
        let ground = element;
        const transparent = "rgba(0, 0, 0, 0)";
        while (getComputedStyle(ground).backgroundColor === transparent) ground = ground.parentNode;
        return [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor];
        """,
        selector,
    )
    luminance = []
    for colour in colours:
        c = np.array([int(n) for n in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        luminance.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(luminance) / min(luminance)


def test_dangerous_names_in_a_browser(chromium, evaluated, tmp_path, monkeypatch):
    run = evil_run(evaluated, tmp_path, monkeypatch)
    report([run], epath.Path(tmp_path / "out"), count=6)
    chromium.get((tmp_path / "out" / "index.html").as_uri())
    assert chromium.title == run.name
    cards = chromium.find_elements("css selector", "#cards .card")
    assert cards and all(EVIL in card.get_attribute("data-name") for card in cards)
    assert len(visible(chromium)) == len(cards)
    assert chromium.get_log("browser") == []
