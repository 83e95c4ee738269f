"""What is read of strangers goes through one door each: no call in the tree may load a model, YAML, JSON, a pickle, run
a command or print in another way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    file.relative_to(ROOT)
    for folder in ("common", "rollout", "learner", "deploy", "tests")
    for file in (ROOT / folder).rglob("*.py")
)
OURS = [file for file in FILES if file.parts[0] not in ("tests", "deploy")]
TAKES_TRUST = ("from_pretrained", "from_config", "load_dataset", "LLM", "EngineArgs", "AsyncEngineArgs", "pipeline")


def name_of(node: ast.expr) -> str:
    """`AutoConfig.from_pretrained` of such an expression."""
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def parse(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def untrusting_loads(tree: ast.Module) -> Iterator[str]:
    """Yield what may load the code of a model or set without a word on trust, or hands such a function on."""
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name | ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        if name_of(node).rpartition(".")[2] not in TAKES_TRUST:
            continue
        call = called.get(id(node))
        if name_of(node).startswith("peft.") or (call is None and name_of(node).endswith("LLM")):
            continue  # adapters name no code; the class in an annotation
        if call is None or "trust_remote_code" not in {keyword.arg for keyword in call.keywords}:
            yield f"{node.lineno}: {name_of(node)}"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_load_of_a_model_says_whether_its_code_is_trusted(file: Path) -> None:
    assert list(untrusting_loads(parse(file))) == []


@pytest.mark.parametrize("file", OURS, ids=str)
def test_only_the_configuration_may_trust(file: Path) -> None:
    """`trust_remote_code` is False, or what `model.trust_remote_code` says."""
    said = [
        name_of(keyword.value) or ast.unparse(keyword.value)
        for node in ast.walk(parse(file))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "trust_remote_code"
    ]
    assert all(one == "False" or one.endswith(("model.trust_remote_code", "spec.trust_remote_code")) for one in said)


# What else reads or runs something foreign, and the files that may: each checks what it is given.
DOORS: dict[str, tuple[str, ...]] = {
    "yaml.load": (),
    "yaml.load_all": (),
    "yaml.safe_load": (),
    "yaml.safe_load_all": (),
    "yaml.full_load": (),
    "yaml.unsafe_load": (),
    "yaml.SafeLoader": ("common/config/foreign_text.py", "common/config/recipe.py"),
    "json.load": (),
    "json.loads": ("common/config/foreign_text.py",),
    "torch.load": ("learner/trainer/zero.py", "common/models/weight_files.py"),
    "np.load": (),
    "pickle": (),
    "cloudpickle": (),
    "dill": (),
    "joblib": (),
    "marshal": (),
    "shelve": (),
    "tarfile": (),
    "zipfile": (
        "common/models/weight_files.py",
        "learner/storage/resume.py",
    ),  # is_zipfile: looks at the first bytes
    "shutil.unpack_archive": (),
    "print": ("common/command.py", "learner/main.py"),
    "eval": (),
    "exec": (),
    "compile": (),
    "os.system": (),
    "os.popen": (),
    "load_from_disk": ("common/data/formats/arrow.py",),
}


def doors_used(tree: ast.Module) -> Iterator[str]:
    """Yield every name of `DOORS` that is used, or a module of them that is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Name | ast.Attribute):
            names = [name_of(node)]
        else:
            continue
        yield from (name for name in names if name in DOORS)


@pytest.mark.parametrize("file", OURS, ids=str)
def test_what_is_foreign_comes_through_its_door(file: Path) -> None:
    assert [name for name in doors_used(parse(file)) if str(file) not in DOORS[name]] == []


@pytest.mark.parametrize("file", OURS, ids=str)
def test_torch_never_unpickles_and_no_shell_runs(file: Path) -> None:
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Call):
            said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert name_of(node.func) != "torch.load" or said["weights_only"] == "True"
            assert "shell" not in said and "allow_pickle" not in said


# Rooms that read files of strangers, and the calls that read them.
READING = [file for file in OURS if str(file).startswith(("common/data/", "common/config/", "learner/report/"))]
READERS = ("pq.read_metadata", "load_from_disk", "csv.DictReader", "read_bounded")
DOOR = ("raise_as", "reading_data")


@pytest.mark.parametrize("file", READING, ids=str)
def test_no_door_lists_the_exceptions_it_knows(file: Path) -> None:
    """A list lacks the next one: a door takes any exception, or one single kind for a reason."""
    handlers = [node for node in ast.walk(parse(file)) if isinstance(node, ast.ExceptHandler)]
    assert [node.lineno for node in handlers if isinstance(node.type, ast.Tuple)] == []


@pytest.mark.parametrize("file", READING, ids=str)
def test_readers_stand_within_a_door(file: Path) -> None:
    tree = parse(file)
    within = {
        id(node)
        for door in ast.walk(tree)
        if isinstance(door, ast.With)
        and any(
            isinstance(item.context_expr, ast.Call) and name_of(item.context_expr.func) in DOOR for item in door.items
        )
        for node in ast.walk(door)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and name_of(node.func) in READERS]
    assert [node.lineno for node in calls if id(node) not in within] == []


def test_the_search_finds_what_it_looks_for() -> None:
    source = (
        "A.from_pretrained(x)\nload(A.from_pretrained)\nLLM(model=x)\nB.from_pretrained(x, trust_remote_code=False)"
    )
    assert list(untrusting_loads(ast.parse(source))) == [
        "1: A.from_pretrained",
        "2: A.from_pretrained",
        "3: LLM",
    ]
