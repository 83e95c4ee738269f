"""The documents are true: every path and make target in them exists, every law and fault that is cited is defined."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("common", "rollout", "learner", "deploy", "tests", ".github")
PAGES = sorted(page for page in [ROOT / "README.md", *(page for room in ROOMS for page in (ROOT / room).rglob("*.md"))])
TESTS_PAGE = ROOT / "tests/README.md"
# "law 3", "Laws 2 and 3", "laws 1 to 7", "fault_4_a_prompt", "law 1 and fault 8".
CITED = re.compile(r"(?<![a-z])(law|fault)s?[ _](\d+(?:(?:, | and | to )\d+)*)(?!\d)", re.IGNORECASE)


def expand(numbers: str) -> set[int]:
    """`"1, 3 and 5"` -> {1, 3, 5}, `"1 to 7"` -> 1 up to 7."""
    if " to " in numbers:
        first, last = map(int, numbers.split(" to "))
        return set(range(first, last + 1))
    return {int(number) for number in re.findall(r"\d+", numbers)}


def find_cited(text: str) -> set[tuple[str, int]]:
    """Every law and fault that a text cites, as ("law", 3)."""
    return {(kind.lower(), number) for kind, numbers in CITED.findall(text) for number in expand(numbers)}


def read_defined() -> dict[tuple[str, int], set[str]]:
    """The rows of the two tables of `tests/README.md`: ("law", 3) -> the test files that state it."""
    defined: dict[tuple[str, int], set[str]] = {}
    text = TESTS_PAGE.read_text()
    for kind in ("law", "fault"):
        table = text.split(f"| {kind} |")[1].split("\n\n")[0]
        for number, rest in re.findall(r"^\| (\d+) \| (.*)$", table, re.MULTILINE):
            defined[kind, int(number)] = set(re.findall(r"`(tests/[\w/]+\.py)`", rest))
    return defined


def sources() -> Iterator[Path]:
    """Every file of ours that people read, but for this one."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*")):
            if path.suffix in {".py", ".md", ".yaml", ".yml", ".jinja"} and path != Path(__file__):
                yield path
    yield from (ROOT / "README.md", ROOT / "Makefile", ROOT / "pyproject.toml")


def test_laws_and_faults_are_numbered_without_gaps() -> None:
    defined = read_defined()
    assert {number for kind, number in defined if kind == "law"} == set(range(1, 9))
    assert {number for kind, number in defined if kind == "fault"} == set(range(1, 14))
    assert all(files and all((ROOT / file).is_file() for file in files) for files in defined.values())


def test_citations_are_found() -> None:
    assert find_cited("Laws 2 and 3, fault_4_a_prompt; law 1 to all") == {
        ("law", 2),
        ("law", 3),
        ("fault", 4),
        ("law", 1),
    }
    assert find_cited("faults 1 to 3, flaw 9, default 8, laws 5, 6 and 7") == {
        *(("fault", number) for number in (1, 2, 3)),
        *(("law", number) for number in (5, 6, 7)),
    }


def test_every_law_and_fault_that_is_cited_is_defined() -> None:
    defined = read_defined()
    undefined = {
        (str(path.relative_to(ROOT)), *cited)
        for path in sources()
        for cited in find_cited(path.read_text())
        if cited not in defined
    }
    assert not undefined


def test_a_test_that_cites_a_law_or_fault_is_named_beside_it() -> None:
    defined = read_defined()
    cited = {
        (cited, str(path.relative_to(ROOT)))
        for path in sources()
        if path.name.startswith("test_")
        for cited in find_cited(path.read_text())
    }
    assert not {pair for pair in cited if pair[1] not in defined[pair[0]]}, "add the file to the row in tests/README.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_named_exists(page: Path) -> None:
    named = re.findall(r"`((?:common|rollout|learner|deploy|tests|\.github|\.ci)/[\w./-]*)`", page.read_text())
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_make_target_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", page.read_text(), re.MULTILINE))
    assert named <= targets


def test_each_of_seven_things_to_change_is_at_one_path() -> None:
    """The path holds what the row promises, by a word that only the right file has."""
    text = (ROOT / ".github/CONTRIBUTING.md").read_text()
    table = text.split("## Where to change it")[1].split("## ")[0]
    rows = dict(re.findall(r"^\| (.+?) \| `([^`]+)` \|$", table, re.MULTILINE))
    promised = {
        "a reward": "REWARDS",
        "a loss": "LOSSES",
        "the console line": "reward={",
        "a ZeRO setting": '"zero_optimization"',
        "a vLLM patch": "vllm",
        "the prompt template": "TEMPLATES",
        "the report's plots": "Log-prob gap",
    }
    assert rows.keys() == promised.keys()
    for what, word in promised.items():
        path = ROOT / rows[what]
        assert word in (path / "__init__.py" if path.is_dir() else path).read_text(), what


def test_the_license_is_the_one_of_the_package() -> None:
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n" in text and "Version 2.0, January 2004" in text and len(text) > 11_000


def test_the_workflow_runs_the_script_that_everyone_can_run() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert "://" not in (ROOT / ".github/workflows/ci.yml").read_text()


def test_commit_hooks_run_the_tools_of_make_lint_and_fetch_nothing() -> None:
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert hooks["repo"] == "local"
    entries = [hook["entry"] for hook in hooks["hooks"]]
    assert all(hook["language"] == "system" for hook in hooks["hooks"])
    code = re.search(r"^CODE = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert code and entries[-1] == f".venv/bin/mypy {code[1]}"
    assert [entry.split()[:2] for entry in entries[:-1]] == [[".venv/bin/ruff", "check"], [".venv/bin/ruff", "format"]]
