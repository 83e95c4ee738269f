"""Leave out of an image's `.venv` what only tests, benchmarks and the set-up need: half a gigabyte.

`.venv/bin/python deploy/local/trim.py cpu|gpu`, after the set-up. What is left is Rollcall and all that it asks for, by
what the installed packages say themselves. Nothing is downloaded.
"""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata

from packaging.requirements import Requirement


def main(device: str) -> None:
    """Uninstall what a run on `device` does not need, this interpreter's pip last."""
    unneeded = find_unneeded({name_of(one): one.requires or () for one in metadata.distributions()}, device)
    print(f"trim: without {', '.join(unneeded)}", flush=True)
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "-q", "-y", *unneeded, "pip"], check=True)


def name_of(package: metadata.Distribution) -> str:
    """Return the name of an installed package, as requirements are compared."""
    return normalise(package.metadata["Name"])


def normalise(name: str) -> str:
    """Return a package's name in its one spelling: `Foo_Bar` is `foo-bar`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def find_unneeded(requirements: Mapping[str, Sequence[str]], device: str) -> list[str]:
    """Return the installed packages that `rollcall[device]` does not ask for, sorted; pip is not among them.

    Args:
        requirements: what each installed package asks for, by its name.
    """
    needed: set[tuple[str, str]] = set()
    left = [("rollcall", ""), ("rollcall", device)]  # a package, and one of its extras
    while left:
        package, extra = left.pop()
        if (package, extra) in needed:
            continue
        needed.add((package, extra))
        for text in requirements.get(package, ()):
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                left += [(normalise(wanted.name), one) for one in ("", *wanted.extras)]
    return sorted(requirements.keys() - {package for package, _ in needed} - {"pip"})


if __name__ == "__main__":
    main(sys.argv[1])
