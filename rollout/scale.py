"""`python -m rollout.scale RUN N`: change the number of engines of a run that is under way; `--auto` lets it choose.

RUN is its run folder or URL, seen from any host. Nothing is asked of its cluster, so this needs no token and no port.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import yaml

from common.command import Command, read_path, run_command, say
from common.config.foreign_text import parse_json, parse_yaml
from common.errors import ConfigError, DeadlineError, RunFolderError
from common.storage.bucket import BucketFolder, is_url
from common.storage.output import Place
from rollout.command_file import AUTO, CommandFile, read_command

WAIT_S = 1800.0  # for nodes to join, and engines to start on them
NOTICE_S = 60.0  # within which a run that is up takes note
TAIL = 1 << 16  # bytes of the events that are read from their end
OTHERS = ("starting", "waiting", "draining")  # engines that do not serve


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 1 the engines are not there, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="python -m rollout.scale",
        description="Change the number of rollout engines of a run that is under way. Its weights stay the same.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, as runs/latest or s3://bucket/run")
    number = parser.add_mutually_exclusive_group(required=True)
    number.add_argument("engines", nargs="?", metavar="N", help="engines that are wanted from now on")
    number.add_argument("--auto", action="store_true", help="let the run choose again, within rollout.engines")
    parser.add_argument(
        "--wait",
        type=_read_seconds,
        default=WAIT_S,
        metavar="SECONDS",
        help=f"how long to wait until they are there; 0: not at all; default: {WAIT_S:g}",
    )
    with run_command() as command:
        words = parser.parse_args(argv)
        _scale(words.run, AUTO if words.auto else words.engines, words.wait, command)
    return command.exit_code


def _scale(run: str, wanted: str, wait_s: float, command: Command) -> None:
    """Write what is wanted, and wait until the run has it.

    Raises:
        RunFolderError: there is no such run, it has ended, or another command comes in between.
        ConfigError: the number is out of bounds.
        DeadlineError: the run takes no note, or the engines are not there in time.
    """
    place: Place = BucketFolder.parse(run) if is_url(run) else read_path(run).resolve()
    with _explain(place):
        engines = _read_engines(place)
        if how := _read_news(place).end:
            raise RunFolderError(
                "the run has ended, so it takes no engines",
                got=f"{place}: {how}",
                remedy="start it again with resume=auto and another rollout.engines",
            )
        try:
            count = read_command(wanted, engines)
        except ValueError as error:
            raise ConfigError(
                "the run cannot have that many engines",
                got=str(error),
                remedy="give a number within these bounds; a resumed run may have other ones in rollout.engines",
            ) from error
        CommandFile(place).write(wanted)
        command.begin_work()
        if wait_s:
            _wait(place, wanted, count, wait_s)
        else:
            say(f"asked for {wanted}")


@contextmanager
def _explain(place: Place) -> Iterator[None]:
    """Turn an error of the disk or the bucket into one of ours."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            "the run folder cannot be used",
            got=f"{place}: {error}",
            remedy="check the path, and whether this user may write there",
        ) from error


def _read_engines(place: Place) -> int | Mapping[str, int]:
    """Return `rollout.engines` of a run. Raises RunFolderError where there is none."""
    try:
        found = parse_yaml(_read(place, "config.yaml"))
        engines: Any = found["rollout"]["engines"]
        return {key: int(engines[key]) for key in ("min", "max")} if isinstance(engines, dict) else int(engines)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunFolderError(
            "no such run", got=f"no config.yaml in {place}", remedy="name the run_dir of a run, as runs/latest"
        ) from error
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise RunFolderError(
            "the run's configuration cannot be read", got=f"{place}: {error}", remedy="name the run_dir of a run"
        ) from error


class News(NamedTuple):
    """What the newest events of a run tell."""

    end: str | None = None  # how it ended, as "outcome finished"; None: it is under way as far as can be seen
    started: float = 0.0  # wall time of its last start; 0: long ago


def _read_news(place: Place) -> News:
    try:
        lines = _read(place, "events.jsonl", last=TAIL).splitlines()
    except FileNotFoundError:
        return News()
    for line in reversed(lines):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("kind") == "end":
            return News(end=f"outcome {row.get('outcome')}")
        if isinstance(row, dict) and row.get("kind") == "start":
            return News(started=float(row.get("wall", 0.0)))
    return News()


def _read(place: Place, name: str, *, last: int = 0) -> bytes:
    """Return a file of the run folder, or at least its `last` bytes. Raises OSError."""
    if isinstance(place, BucketFolder):
        return place.read(name)
    with (place / name).open("rb") as file:
        if last:
            file.seek(max(0, file.seek(0, 2) - last))
        return file.read()


def _wait(place: Place, wanted: str, count: int | None, wait_s: float) -> None:
    """Wait until a run has what it was asked for, and say what it does meanwhile."""
    file, began, said = CommandFile(place), time.monotonic(), ""
    while True:
        news, state, waited = _read_news(place), file.read_state(), time.monotonic() - began
        heard = state.get("command") == wanted and state["wall"] > news.started  # not of a start before
        if heard and state["refused"]:
            raise ConfigError("the run cannot have that many engines", got=state["refused"], remedy="ask for another")
        if heard and (count is None or _has(state, count)):
            say(f"done: {_describe(state)}")
            return
        if (now := _describe(state) if heard else "the run has not taken note yet") != said:
            said = now
            say(f"after {waited:.0f} s: {now}")
        _check_hope(place, wanted, news)
        if waited > (wait_s if heard else min(NOTICE_S, wait_s)):
            raise _make_late_error(place, wanted, now, waited, heard=heard)
        time.sleep(file.every_s)


def _has(state: Mapping[str, Any], count: int) -> bool:
    """Say whether so many engines serve, and no other one comes or goes."""
    return state["serving"] == state["wanted"] == count and not any(state[name] for name in OTHERS)


def _check_hope(place: Place, wanted: str, news: News) -> None:
    """Raise RunFolderError where nothing can come of a command: the run has ended, or another one came in between."""
    if news.end:
        raise RunFolderError(
            "the run ended before it had that many engines",
            got=f"{place}: {news.end}",
            remedy="start it again with resume=auto; the command is still there, and holds for it",
        )
    if (other := CommandFile(place).read()) != wanted:
        raise RunFolderError(
            "another command came in between", got=f"{other!r} in {place}", remedy="ask again if yours is to hold"
        )


def _make_late_error(place: Place, wanted: str, now: str, waited: float, *, heard: bool) -> DeadlineError:
    if not heard:
        return DeadlineError(
            "the run takes no note of the command",
            got=f"nothing from {place} in {waited:.0f} s",
            remedy="one that is starting follows it once it is up; one that was killed wants resume=auto",
        )
    return DeadlineError(
        f"{wanted} engines are not there yet",
        got=f"{now}, after {waited:.0f} s",
        remedy="they come once there is room for them; ask for fewer, add nodes, or see events.jsonl",
    )


def _describe(state: Mapping[str, Any]) -> str:
    """Return "engines: 2 serve, 1 start, 1 wait for a place"."""
    words = {"serving": "serve", "starting": "start", "waiting": "wait for a place", "draining": "finish their work"}
    counts = {verb: state[name] for name, verb in words.items()}
    return "engines: " + (", ".join(f"{count} {verb}" for verb, count in counts.items() if count) or "none")


def _read_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
