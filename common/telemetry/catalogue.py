"""Every figure that a run gives to Prometheus. Ray puts `ray_` before each name, and labels of its own beside ours.

All are gauges. A count is of this start of its process, or of the whole run where it says so: `increase` and `rate`
read it as they read a counter, and it is there from 0 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

PREFIX = "rollcall_"
EXPORTED = f"ray_{PREFIX}"  # how a name begins where Prometheus reads it


class Metric(NamedTuple):
    """One figure."""

    help: str
    labels: tuple[str, ...] = ()  # beside `run`


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        # Of a run, by its driver.
        "run_open": Metric("1 from the first step on; 0 once the run has ended by itself, whatever its outcome"),
        "steps": Metric("optimizer steps done, over all starts of the run"),
        "last_step_timestamp_seconds": Metric("when the last step ended, or the first one began, in Unix time"),
        "phase_seconds": Metric("seconds of the last step", ("phase",)),
        "tokens_per_second": Metric("completion tokens of the last step by its seconds"),
        "reward_mean": Metric("mean reward of the last step"),
        "zero_std_share": Metric("share of the last step's sampled groups that teach nothing"),
        "entropy": Metric("mean entropy of the last step's tokens, in nats"),
        "kl": Metric("mean KL to the reference of the last step's tokens"),
        "logprob_gap": Metric("log-prob gap of engine and learner in the last step: max, mean", ("of",)),
        "logprob_gap_limit": Metric("log-prob gap at which the run stops: max, mean", ("of",)),
        "groups": Metric("groups of the whole run that were asked, trained, dropped, or are pending", ("what",)),
        "dropped_share": Metric("share of the last step's groups that failed or were skipped, and are not trained on"),
        "queue": Metric("groups that wait: for an engine, in engines, for the driver, for a reward", ("of",)),
        "engines": Metric("engines that are wanted, serving, starting, waiting for a place, draining", ("state",)),
        "weights_version": Metric(
            "version of the weights that the learner has published, or an engine holds", ("actor",)
        ),
        "weights_lag": Metric("versions that an engine is behind those published", ("actor",)),
        "weights_lag_limit": Metric("versions that an engine may be behind without anything being wrong"),
        "losses": Metric("engines, ranks and reward workers that were lost and replaced in this start", ("of",)),
        "checkpoint_timestamp_seconds": Metric("when the newest checkpoint was written, or this start began"),
        "checkpoint_failures": Metric("checkpoints that could not be written in this start"),
        # Of an actor, by itself.
        "busy_seconds": Metric("seconds that an actor has worked since its start", ("actor",)),
        # Of vLLM, by the engine it runs in.
        "vllm_requests_running": Metric("completions that vLLM samples now", ("actor",)),
        "vllm_requests_waiting": Metric("completions that wait within vLLM for room", ("actor",)),
        "vllm_kv_cache_usage": Metric("used share of vLLM's KV cache", ("actor",)),
        "vllm_preemptions": Metric("completions that vLLM put off for want of KV cache, since its start", ("actor",)),
    }
)
