"""What we ask of our own manifests beyond what a cluster would refuse: each rule says in one line what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.helpers.kubernetes import guard_rules, pod_rules, run_rules
from tests.helpers.kubernetes.render import Document

RULES: tuple[Callable[[list[Document]], Iterator[str]], ...] = (
    guard_rules.check_namespace,
    guard_rules.check_budgets,
    guard_rules.check_network,
    guard_rules.check_monitors,
    pod_rules.check_images,
    pod_rules.check_resources,
    pod_rules.check_shared_memory,
    pod_rules.check_secrets,
    pod_rules.check_accounts,
    pod_rules.check_priorities,
    pod_rules.check_nccl,
    run_rules.check_groups,
    run_rules.check_run,
    run_rules.check_recovery,
)


def list_policy_errors(documents: list[Document]) -> list[str]:
    """Return what every rule says of all documents of one kustomization."""
    return [error for rule in RULES for error in rule(documents)]
