"""One process's torch profile: from `start` to `stop`, as a trace and as a table."""

from __future__ import annotations

from typing import Any

from common.storage.output import Place, WriteReport, describe_file, write_folder

ROWS = 20  # of the table


class Recorder:
    """Records one process with torch's profiler. Start and stop it on the thread that computes."""

    def __init__(self) -> None:
        self._profile: Any = None

    def start(self) -> None:
        """Begin to record; what was recorded before is forgotten."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profile = profile(activities=activities)
        self._profile.start()

    def stop(self, place: Place, name: str) -> WriteReport:
        """Write `name`.json.gz, for Perfetto or chrome://tracing, and `name`.txt, the operators that took longest.

        Write nothing where nothing was started: the process may have come in between.
        """
        if self._profile is None:
            return WriteReport(by=name, files=())
        profile, self._profile = self._profile, None
        profile.stop()
        by = "self_cuda_time_total" if any(event.device_type.name == "CUDA" for event in profile.events()) else None
        table = profile.key_averages().table(sort_by=by or "self_cpu_time_total", row_limit=ROWS)
        with write_folder(place) as folder:
            folder.mkdir(parents=True, exist_ok=True)
            profile.export_chrome_trace(str(folder / f"{name}.json.gz"))
            (folder / f"{name}.txt").write_text(table)
            written = [describe_file(folder, f"{name}{end}") for end in (".json.gz", ".txt")]
        return WriteReport(by=name, files=tuple(written))
