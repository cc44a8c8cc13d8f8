"""python left.py ADDRESS: names of the actors and placement groups that a cluster still has."""

from __future__ import annotations

import json
import logging
import sys

import ray
from ray.util import placement_group_table

OWN = ("_AutoscalingCoordinatorActor", "AutoscalingCoordinator", "_StatsActor", "JobSupervisor")
"""Classes of Ray's own that stay."""

ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
actors = [a for a in ray._private.state.actors().values() if a["State"] != "DEAD"]
groups = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
names = [a["ActorClassName"] for a in actors if a["ActorClassName"] not in OWN]
sys.stdout.write(json.dumps([*names, *(f"placement group {g['name']}" for g in groups)]) + "\n")
