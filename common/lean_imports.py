"""Import third parties without the packages that they import in turn and nobody here uses.

They import at their top what few of their users need: torch's compiler, scikit-learn, an HTTP server. That is more than
half of the time a process takes to start. Each function says how many seconds of CPU it saves a process, measured where
all files are in the page cache.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

COMPILER = ("torch._dynamo", "torch._inductor")
MARKS = ("mark_dynamic", "mark_static", "mark_static_address", "mark_unbacked")  # on a tensor, for the compiler
UNUSED_BY_TRANSFORMERS = ("mistral_common", "pandas", "scipy", "sklearn")


@contextmanager
def pause_collector() -> Iterator[None]:
    """Keep Python's garbage collector from looking through a million imported objects again and again: 1 s."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def settle_collector() -> None:
    """Let Python's garbage collector pass over all that is there by now: looking through it once takes 0.3 s.

    For a process that has started, and keeps what it has.
    """
    gc.collect()
    gc.freeze()


def import_transformers() -> None:
    """Import transformers without what only parts of it use that nobody here does: 2 s.

    Call it before anything else imports transformers; afterwards it leaves out no more than docstrings.
    """
    if "transformers" not in sys.modules:
        _import_alone()
        _read_models_once()
    _leave_out_docstrings()


def _import_alone() -> None:
    """Import transformers as if the packages it does not need here were not installed: 1 s."""
    kept = {name: sys.modules[name] for name in UNUSED_BY_TRANSFORMERS if name in sys.modules}
    sys.modules.update(dict.fromkeys(UNUSED_BY_TRANSFORMERS))  # type: ignore[arg-type]  # None: it is not installed
    metadata: Any = importlib.import_module("importlib.metadata")
    distributions, metadata.packages_distributions = metadata.packages_distributions, dict  # reads all RECORDs: 0.2 s
    try:
        utils: Any = importlib.import_module("transformers.utils.import_utils")
        for name in UNUSED_BY_TRANSFORMERS:
            getattr(utils, f"is_{name}_available")()  # which remembers its answer
    finally:
        metadata.packages_distributions = distributions
        for name in UNUSED_BY_TRANSFORMERS:
            del sys.modules[name]
        sys.modules.update(kept)


def _read_models_once() -> None:
    """transformers reads the sources of all its models twice, once by the folder and once by its __init__.py: 0.3 s."""
    utils: Any = importlib.import_module("transformers.utils.import_utils")
    read = utils.create_import_structure_from_path

    def read_folder(path: Any) -> Any:
        return read(Path(path).parent if Path(path).name == "__init__.py" else path)

    utils.create_import_structure_from_path = read_folder


def _leave_out_docstrings() -> None:
    """transformers puts its docstrings together at import, and nobody reads them here: 1 s."""
    module: Any = importlib.import_module("transformers.utils.auto_docstring")
    module.auto_class_docstring = module.auto_method_docstring = lambda described, **_: described


@contextmanager
def without_compiler() -> Iterator[None]:
    """Import within it what decorates its functions for torch's compiler, which is left out: 2 s. Afterwards whoever
    asks for the compiler gets the real one."""
    undo = leave_out_compiler()
    try:
        yield
    finally:
        undo()


def leave_out_compiler() -> Callable[[], None]:
    """Leave torch's compiler out of a process that compiles nothing: 2 s. Returns what brings it back.

    Where the real one is loaded already, nothing is changed.
    """
    if any(name in sys.modules for name in COMPILER):
        return lambda: None
    import torch

    undo, compiled = leave_out(*COMPILER), torch.compile
    for module in ("torch._dynamo", "torch._dynamo.decorators"):
        vars(importlib.import_module(module)).update(dict.fromkeys(MARKS, do_nothing))

    def compile_nothing(model: Any = None, **_: Any) -> Any:
        return (lambda function: function) if model is None else model

    torch.compile = compile_nothing

    def bring_back() -> None:
        torch.compile = compiled
        undo()

    return bring_back


def leave_out(*packages: str) -> Callable[[], None]:
    """Let imports from these packages succeed and load nothing, from now on. Returns what ends that.

    Every name of theirs is a class, so that it can be inherited from, asked about by isinstance or stand in an
    annotation. As a decorator, with options or without, it leaves a function as it is; called with nothing it does
    nothing and returns None; called with anything else it raises RuntimeError.
    """
    finder = _Finder(packages)
    sys.meta_path.insert(0, finder)

    def bring_back() -> None:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _LeftOutModule)]:
            if finder.owns(name):
                parent, _, attribute = name.rpartition(".")
                vars(sys.modules.get(parent, finder)).pop(attribute, None)
                del sys.modules[name]

    return bring_back


def do_nothing(*_: Any, **__: Any) -> None:
    """In place of a function that is left out."""


class _LeftOut(type):
    """The type of every name in a module that was left out. `leave_out` says what can be done with such a name.

    A class of ours or of a third party that inherits from one has this type too, and works as any class does.
    """

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") or not cls._left_out():
            raise AttributeError(name)
        return _stand_in(name, f"{cls.__module__}.{cls.__name__}")

    def __call__(cls, *given: Any, **options: Any) -> Any:
        if not cls._left_out():
            return super().__call__(*given, **options)
        decorated = given[0] if given else None
        if callable(decorated):
            return decorated
        if decorated is None:
            return (lambda function: function) if options else None
        raise RuntimeError(f"{cls.__module__}.{cls.__name__} was left out of this process (common.lean_imports)")

    def _left_out(cls) -> bool:
        """Say whether this is such a name itself, not a class that inherits from one: only `_stand_in` sets the key."""
        return "__get_pydantic_core_schema__" in vars(cls)


def _stand_in(name: str, module: str) -> _LeftOut:
    """Make the class that stands for `name` of `module`."""
    return _LeftOut(name, (), {"__module__": module, "__get_pydantic_core_schema__": classmethod(_any_schema)})


def _any_schema(*_: Any) -> Any:
    """Return a schema that lets everything pass: pydantic asks for one where such a class stands in an annotation."""
    from pydantic_core.core_schema import any_schema

    return any_schema()


class _LeftOutModule(ModuleType):
    """An empty module, in which every name that is asked for is made."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _stand_in(name, self.__name__)
        setattr(self, name, made)
        return made


class _Finder(MetaPathFinder, Loader):
    """Finds modules of the packages left out, and makes them empty."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self._packages = packages

    def owns(self, name: str) -> bool:
        return any(f"{name}.".startswith(f"{package}.") for package in self._packages)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if self.owns(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _LeftOutModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing in it."""
