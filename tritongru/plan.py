"""The public part of the plan: ``tritongru.plan.plan``, ``Plan``, ``Device`` and the known ``GPUS``."""

from tritongru.planning.devices import GPUS, Device
from tritongru.planning.plan import Plan, plan

__all__ = ["GPUS", "Device", "Plan", "plan"]
