"""The trackers that `tracking.services` names: whether each can be called from here, told before anything starts."""

from __future__ import annotations

import os
from importlib.util import find_spec
from netrc import NetrcParseError, netrc

from common.config.sections import TrackingConfig
from common.errors import ConfigError

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}
AWAY = {"offline", "disabled", "dryrun"}  # modes of wandb without a server
WANDB_HOST = "api.wandb.ai"


def check_services(tracking: TrackingConfig) -> None:
    """Raise ConfigError for a tracker whose client is not installed, or that would not know where to send."""
    for name in tracking.services:
        if find_spec(name) is None:
            raise ConfigError(
                f"tracking.services names {name}, whose client is not installed",
                got=f"no module {name} in this Python",
                remedy=f"install {PACKAGES[name]} where the driver runs, or leave it out of tracking.services",
            )
    if "mlflow" in tracking.services and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError(
            "tracking.services names mlflow, and nothing says where it is",
            got="MLFLOW_TRACKING_URI is not set",
            remedy="set it where the driver runs, to a server's URL or to sqlite:///FILE",
        )
    if "wandb" in tracking.services and not _knows_wandb():
        raise ConfigError(
            "tracking.services names wandb, and there is no key for it",
            got=f"neither WANDB_API_KEY nor WANDB_MODE is set, and ~/.netrc has nothing for {WANDB_HOST}",
            remedy="set WANDB_API_KEY where the driver runs, or WANDB_MODE=offline to send the run later",
        )


def _knows_wandb() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in AWAY or os.environ.get("WANDB_BASE_URL"):
        return True
    try:
        return netrc().authenticators(WANDB_HOST) is not None
    except (OSError, NetrcParseError):
        return False
