"""The page of a run: what it says, how large it gets, and that no text in a run folder becomes part of it."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import RunFolderError
from learner.report.__main__ import main
from learner.report.data import read_run
from learner.report.evaluations import wilson_interval
from learner.report.plots import POINTS, choose_bin_size, choose_window, smooth
from learner.report.samples import make_thumbnail
from learner.report.write import MOST_RUNS, write_report
from tests.helpers import browser
from tests.helpers.fake_run import record
from tests.helpers.jobs import ROOT
from tests.helpers.made_run import CLASSES, add, dump, evaluation, made_run, sample

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><style>*{display:none}",
    "</pre></svg></textarea><iframe src=//evil.example>",
    "<!-- ]]> --!>",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{$ #010101 0.123456",
    "\u202ereversed\u2066",
    "\x00\x1b[31m\x7f",
    "\ud800 lone",
    "z\u0301\u0301\u0301\u0301",
    "&lt;b&gt; &amp;",
    "w" * 20_000,
)


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: dict[str, set[str]] = {}
        self.words: list[str] = []
        self.feed(text)
        self.close()
        self.text = "".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.tags.add("comment")


def page(folder: Path, *more: Path, drawn: bool = False) -> Page:
    """Write and read a page; its figures, which take most of the time, only where a test looks at them."""
    return Page(write_report([folder, *more], seconds=math.inf if drawn else 0.0).read_text())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made_run(tmp_path / "run")


def test_a_page_says_how_the_run_went(run: Path) -> None:
    found = page(run, drawn=True)
    for said in ("digits", "finished", "0.210", "0.810", "40 of 40", "1:33, start-up 0:21", "0123456789ab"):
        assert said in found.text
    for title in ("Accuracy", "Reward", "KL to the reference", "Entropy", "Gradient norm", "Completion length"):
        assert title in found.words
    assert "Zero-std groups" in found.words and "Log-prob gap, engine to learner" in found.words
    assert "Confusion matrix" in found.words and "Time of a step" in found.words
    assert re.search(r"dropped\s*2\s*0:00\s*prompt=train/3 reason=longer", found.text)
    assert "Files that could not be read" not in found.text


def test_before_and_after_carry_the_intervals_on_file(run: Path) -> None:
    text = page(run).text
    assert re.search(r"accuracy, strict\s*0\.210\s*0\.170\u20130\.250\s*0\.810\s*0\.770\u20130\.850", text)
    assert re.search(r"own data\s*after\s*0\.760\s*0\.710\s*0\.734", text)  # base, new, and H of them


def test_older_rows_get_an_interval_of_their_own(run: Path) -> None:
    (run / "evaluations.jsonl").unlink()
    for step, right in ((0, 40), (40, 380)):
        row = {"step": step, "accuracy": right / 400, "invalid_rate": 0.0, "rows": 400, "right": right, "invalid": 0}
        add(run, "evaluations.jsonl", row | {"per_class": {"one": [right // 2, 200], "two": [right // 2, 200]}})
    text = page(run).text
    low, high = wilson_interval(0.95, 400)
    assert f"{low:.3f}\u2013{high:.3f}" in text
    assert "Confusion matrix" not in text
    assert re.search(r"one\s*190/200\s*20/200", text)


def test_a_column_of_an_older_run_is_read_under_its_old_name(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text()
    known = read_run(run, "run").curves["zero_std_share"]
    (run / "metrics.jsonl").write_text(lines.replace('"zero_std_share"', '"all_equal_share"'))
    assert (read_run(run, "run").curves["zero_std_share"] == known).all()


def test_intervals_are_the_textbook_ones() -> None:
    assert wilson_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_groups_are_the_best_the_worst_and_the_most_divided_of_the_later_half(run: Path) -> None:
    samples = read_run(run, "run").samples
    assert samples.after == 19 and samples.earlier == 19 * 3 and samples.seen == 21 * 3
    assert samples.worst[0].mean == 0.0 and samples.worst[0].step == 39
    assert samples.divided[0].mean == 0.5 and samples.best[0].mean == 1.0
    assert samples.worst[0].candidates == CLASSES
    found = page(run)
    assert sum(value.startswith("data:image/png;base64,") for value in found.attributes["src"]) == 3
    assert "57 groups kept before step 19" in found.text
    assert re.search(r"answer 0\s*1\s*1\s*\+0\.50\s*-0\.50", found.text)  # times, reward, advantage, log-prob


def test_a_short_run_shows_the_groups_of_its_first_steps(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", steps=4)
    lines = (run / "samples.jsonl").read_text().splitlines(keepends=True)
    (run / "samples.jsonl").write_text("".join(lines[:3]))  # all of step 0, and step 1 is where the later half begins
    samples = read_run(run, "run").samples
    assert (samples.seen, samples.after, samples.earlier) == (3, 0, 0)
    assert "Chosen from 3 groups that the run kept from step 0 on." in page(run).text


def test_a_group_without_a_known_reward_is_not_shown(run: Path) -> None:
    row = sample(39, 1, "", list(CLASSES), str) | {"prompt_id": "nan"}
    row["completions"][0]["reward"] = None
    add(run, "samples.jsonl", row)
    samples = read_run(run, "run").samples
    assert samples.seen == 21 * 3 + 1
    assert "nan" not in {one.prompt_id for one in (*samples.best, *samples.worst, *samples.divided)}


def test_equal_answers_are_shown_once_and_an_open_question_says_so(run: Path) -> None:
    row = sample(39, 1, "", list(CLASSES), str) | {"prompt_id": "alone", "problem": "What is it?", "candidates": None}
    for one in row["completions"]:
        one |= {"text": "", "reward": 0.0}
    row["completions"][0]["reward"] = 1.0
    add(run, "samples.jsonl", row)
    text = page(run).text
    assert re.search(r"\(empty\)\s*3\s*0", text) and "The question offers no list." in text


# Hostile text


@pytest.mark.slow
def test_no_text_of_a_run_becomes_an_element_or_an_attribute(tmp_path: Path) -> None:
    """Each text stands in the place of every other in one of the pages or another."""
    plain = page(made_run(tmp_path / "plain"), drawn=True)
    for turn in (0, 5):
        texts = itertools.cycle(HOSTILE[turn:] + HOSTILE[:turn])
        run = made_run(tmp_path / f"run-{turn}", classes=(*CLASSES, *"abcd"), say=appended(texts))
        lines = [evaluation(0, f"set{text}", list(HOSTILE), 0.5) | {"model": f"model{text}"} for text in HOSTILE]
        dump(run / "evaluation.json", {"lines": lines, "matrix": {one: {one: 0.5} for one in HOSTILE}})
        found = page(run, drawn=True)
        assert found.tags - plain.tags <= {"small", "span", "h2", "h3", "article", "table"}
        assert set(found.attributes) == set(plain.attributes)
        assert not any("url(h" in one for one in found.attributes["style"])
        assert all(value.startswith("data:image/png;base64,") for value in found.attributes["src"])
        assert all(value.startswith("#") for value in found.attributes["xlink:href"])
        for text in HOSTILE:
            shown = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
            assert f"model{shown}"[:60] in found.text, text
        invisible = {sign for sign in found.text if not sign.isprintable()} - {"\n"}
        assert not invisible, [hex(ord(sign)) for sign in invisible]


def appended(texts: Iterator[str]) -> Callable[[str], str]:
    return lambda word: word + next(texts)


@pytest.mark.slow
def test_a_comparison_is_as_safe(tmp_path: Path) -> None:
    runs = []
    for number, text in enumerate(HOSTILE[:8]):
        name = re.sub(r"[/\x00]", "_", f"{number}{text}")[:100]
        runs.append(made_run(tmp_path / name, steps=4, say=appended(itertools.repeat(text))))
    found = page(runs[0], *runs[1:], drawn=True)
    assert {"script", "img", "iframe", "comment"}.isdisjoint(found.tags)
    assert not [name for name in found.attributes if name.startswith("on")]
    assert "0<script>alert(1)<_script>" in found.text


def test_the_page_forbids_scripts_and_fetches_nothing(run: Path) -> None:
    text = write_report([run]).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy and "default-src 'none'" in policy[1] and "script-src" not in policy[1]
    fetched = set(re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([a-z]+:)", text))
    assert fetched == {"data:"}
    assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "link.png", "folder", "no.png", "text.png", ""])
def test_a_thumbnail_is_a_picture_of_the_run_folder_or_nothing(run: Path, name: str) -> None:
    Image.new("RGB", (4, 4)).save(run.parent / "secret.png")
    (run / "link.png").symlink_to(run.parent / "secret.png")
    (run / "folder").mkdir()
    (run / "text.png").write_text("<svg onload=alert(1)>")
    assert make_thumbnail(run, name) is None
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 600, 3), dtype=np.uint8)).save(run / "large.png")
    assert len(make_thumbnail(run, "large.png") or b"") < 60_000


# Folders that are not whole


def test_a_running_run_is_reported_as_it_stands(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    (run / "summary.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "rew')
    holder = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(run / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert read_run(run, "run").outcome == "running"
        process.communicate("\n")
    read = read_run(run, "run")
    assert read.outcome == "ended without a summary"
    assert read.faults == ("metrics.jsonl: 1 lines are no JSON objects, the first is line 41",)
    assert read.steps == 40


def test_damage_is_named_and_the_rest_is_shown(run: Path) -> None:
    for name, text in (
        ("metrics.jsonl", '5\n[]\n\x00\n{"step": "x"}\n{"step": 3, "kl": null, "reward": "high"}\n' + "[" * 100_000),
        ("samples.jsonl", '{"completions": 3}\n{"step": null, "completions": [null, {"text": 5}], "image": 7}\n'),
        ("evaluations.jsonl", '{"step": 1e300, "per_class": [], "intervals": {"accuracy": 3}, "confusion": {}}\n'),
        ("config.yaml", "a: [1\n"),
        ("summary.json", "[]"),
        ("environment.json", "{"),
    ):
        (run / name).write_text(text)
    add(run, "metrics.jsonl", record(9).flat() | {"grad_norm": 10**400, "kl": True})
    (run / "events.jsonl").unlink()
    text = page(run, drawn=True).text
    for fault in (
        "metrics.jsonl: 4 lines are no JSON objects, the first is line 1",
        "config.yaml: unreadable",
        "summary.json: holds no object",
        "environment.json: unreadable",
        "events.jsonl: not there",
    ):
        assert fault in text
    assert "ended without a summary" in text


@pytest.mark.parametrize("kept", ["config.yaml", "metrics.jsonl", "events.jsonl", "evaluation.json"])
def test_one_file_is_enough_for_a_page(tmp_path: Path, run: Path, kept: str) -> None:
    dump(run / "evaluation.json", {"lines": [evaluation(0, "base", list(CLASSES), 0.5) | {"model": "m"}]})
    alone = tmp_path / "alone"
    alone.mkdir()
    (run / kept).rename(alone / kept)
    words = page(alone, drawn=True).words
    assert ("Files that could not be read" in words) == (kept != "evaluation.json")
    assert ("evaluated" if kept == "evaluation.json" else "ended without a summary") in words


@pytest.mark.slow
def test_no_run_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path / "nothing", tmp_path):
        assert main([str(folder)]) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: no run to report on\n  got: ") and printed.count("\n") == 3
    with pytest.raises(RunFolderError, match="too many runs"):
        write_report([tmp_path] * (MOST_RUNS + 1))
    run = made_run(tmp_path / "run")
    assert main([str(run), "--out", str(tmp_path / "no" / "folder.html")]) == 2
    assert "--out" in capsys.readouterr().err
    assert main([str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").is_file() and not (run / "report.html").exists()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "picture.png"])
def test_a_page_replaces_no_other_file(tmp_path: Path, run: Path, name: str) -> None:
    file = run / name
    before = file.read_bytes() if file.exists() else b"\x89PNG"
    file.write_bytes(before)
    with pytest.raises(RunFolderError, match=f"{name} would replace another file"):
        write_report([run], file, seconds=0)
    assert file.read_bytes() == before
    with pytest.raises(RunFolderError, match="/dev/null would replace another file"):
        write_report([run], Path("/dev/null"), seconds=0)


def test_a_folder_gets_the_page_and_an_older_page_is_replaced(tmp_path: Path, run: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "empty.html").touch()
    for _ in range(2):
        assert write_report([run], tmp_path / "pages", seconds=0) == tmp_path / "pages/report.html"
    assert write_report([run], tmp_path / "empty.html", seconds=0).stat().st_size > 0


# Size


@pytest.mark.slow
def test_a_page_of_100_000_steps_is_small_and_says_what_it_left_out(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", steps=100)
    row = json.dumps(record(7).flat()).removeprefix('{"step": 7,')
    with (run / "metrics.jsonl").open("w") as file:
        file.writelines(f'{{"step": {step},{row}\n' for step in range(100_000))
    for step in range(100_000 - 300, 100_000):
        long = sample(step, step % 3, "samples/000000-0.png", ["c" * 500] * 2000, lambda word: word * 3000)
        add(run, "samples.jsonl", long | {"prompt_id": str(step)})
    for number in range(500):
        add(run, "events.jsonl", {"wall": 1.7e9, "kind": f"kind {number}", "why": "y" * 5000})
        add(run, "evaluations.jsonl", evaluation(number, "held-out", list(CLASSES), 0.5))
    out = write_report([run])
    assert out.stat().st_size < 1_500_000
    text = Page(out.read_text()).text
    assert "lowest and highest of 417 steps" in text
    assert "291 of 300 groups kept from step 49999 on" in text and "and 1940 more" in text
    assert re.search(r"other kinds\s*46", text)  # 500 and the made run's four, of which 40 are kept, less none


def test_many_classes_are_listed_and_not_drawn(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", classes=tuple(f"class {number:04}" for number in range(1000)))
    out = write_report([run])
    text = Page(out.read_text()).text
    assert "Confusion matrix" not in text and "Most common confusions" in text
    assert "988 rarer confusions" in text and "988 more classes have mistakes. The set has 1000 classes." in text
    assert out.stat().st_size < 1_000_000


def test_figures_for_which_there_is_no_time_are_named(run: Path) -> None:
    found = Page(write_report([run], seconds=0.0).read_text())
    assert "svg" not in found.tags
    for title in ("Reward", "Time of a step", "Confusions of held-out"):
        assert f"figure \u201c{title}\u201d: the time for it was up" in found.text


# Several runs


def test_seeds_of_one_configuration_are_averaged_and_another_stands_apart(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    add(runs[1], "evaluations.jsonl", evaluation(40, "held-out", list(CLASSES), 0.7))  # the later line holds
    other = made_run(tmp_path / "c", lr=1e-3)
    text = page(runs[0], runs[1], other).text
    assert re.search(r"a, b\s*2 runs, seeds 1, 2", text) and text.count("runs, seeds") == 1
    assert re.search(r"accuracy after\s*0\.760 ± 0\.071", text)  # of 0.81 and 0.71
    differences = text[text.index("Configuration: what differs") :]
    assert re.search(r"learner\.lr\s*0\.0005\s*a\s*b\s*0\.001\s*c", differences)
    assert "data.mode" not in differences
    assert "Accuracy over time, held-out" in text


def test_runs_of_one_name_keep_apart(tmp_path: Path) -> None:
    one, two = made_run(tmp_path / "x" / "run"), made_run(tmp_path / "y" / "run")
    assert str(two) in page(one, two).text


def test_evaluations_of_several_models_make_a_matrix(tmp_path: Path) -> None:
    lines = [
        evaluation(0, name, list(CLASSES), accuracy) | {"model": model}
        for model, accuracies in (("zero-shot", (0.3, 0.2)), ("trained", (0.9, 0.5)))
        for name, accuracy in zip(("base", "new"), accuracies, strict=True)
    ]
    dump(tmp_path / "evaluation.json", {"lines": lines, "models": {"trained": {"config": {}}}})
    text = page(tmp_path, drawn=True).text
    assert "Models by data sets" in text
    for said in ("91.0", "51.0", "31.0", "21.0"):
        assert said in text
    assert re.search(r"own data\s*trained\s*0\.910\s*0\.510\s*0\.654", text)


# Curves


def test_long_curves_are_binned_and_smoothed_without_losing_their_ends() -> None:
    steps = np.arange(100_000, dtype=np.float64)
    values = np.where(steps == 777, 50.0, 1.0)
    one = smooth(steps, values, 0, band=True)
    assert len(one.x) <= POINTS and one.raw is not None
    assert one.raw[2].max() == 50.0  # a spike of one step stays to be seen
    assert np.nanmax(one.y) < 1.1
    same = smooth(steps[:10], values[:10], 0, band=True)
    assert same.y.tolist() == [1.0] * 10 and choose_window(10) == 1 and choose_bin_size(240, POINTS) == 1
    ramp = smooth(steps[:200], steps[:200], 0, band=False)
    assert ramp.y[100] == pytest.approx(100.0)


def test_gaps_stay_gaps() -> None:
    values = np.array([1.0, math.nan, math.nan, 4.0])
    one = smooth(np.arange(4, dtype=np.float64), values, 0, band=True)
    assert np.isnan(one.y).tolist() == [False, True, True, False]


@pytest.mark.slow
def test_drawing_leaves_no_setting_and_no_pyplot_behind(run: Path) -> None:
    script = """
import sys, matplotlib
from pathlib import Path
from learner.report.write import write_report
before = {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}  # to ask for it sets it
write_report([Path(sys.argv[1])])
print("matplotlib.pyplot" in sys.modules, {key for key in before if matplotlib.rcParams[key] != before[key]})
"""
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(run)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "False set()\n", done.stderr


# In a browser


@pytest.fixture(scope="module")
def tab() -> Any:
    with browser.open_browser() as tab:
        yield tab


@pytest.mark.browser
@pytest.mark.skipif(browser.BINARY is None, reason="no chromium or google-chrome on this machine")
@pytest.mark.parametrize(("width", "height", "dark"), [(375, 800, False), (1280, 900, False), (375, 800, True)])
@pytest.mark.parametrize("page_made", ["plain", "hostile", "forty", "several"], indirect=True)
def test_chromium_shows_it(tab: browser.Tab, page_made: Path, width: int, height: int, dark: bool) -> None:
    """No scrolling sideways, no complaint, nothing fetched, and something to see in either scheme."""
    shot = tab_open(tab, page_made, width, height, dark=dark)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("document.scripts.length") == 0
    assert tab.named("Log.entryAdded") == tab.named("Runtime.exceptionThrown") == []
    asked = [event["request"]["url"].split(":")[0] for event in tab.named("Network.requestWillBeSent")]
    assert asked.count("file") == 1 and set(asked) <= {"file", "data"}
    assert shot.shape == (height, width, 3)
    paper = shot[-1, 0].astype(int)
    assert paper.max() < 60 if dark else paper.min() > 220
    drawn = (np.abs(shot.astype(int) - paper).max(axis=-1) > 100).mean()
    assert 0.005 < drawn < 0.5


@pytest.fixture(scope="module")
def page_made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page to open, of the kind asked for."""
    kind, tmp_path = request.param, tmp_path_factory.mktemp("page")
    if kind == "several":
        return write_report([made_run(tmp_path / f"run {seed}{'w' * 90}", seed=seed) for seed in range(9)])
    classes = tuple(f"class number {number}" for number in range(40)) if kind == "forty" else CLASSES
    hostile = "".join(HOSTILE)
    say = (lambda word: word + hostile) if kind == "hostile" else str
    return write_report([made_run(tmp_path / "run", classes=classes, say=say)])


def tab_open(tab: browser.Tab, file: Path, width: int, height: int, *, dark: bool) -> Any:
    tab.open(file, width=width, height=height, dark=dark)
    return tab.picture()
