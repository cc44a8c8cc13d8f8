"""What must be true of the manifests that an overlay renders, one function a rule.

A rule is given all objects of an overlay and yields one line for everything that breaks it. It
knows what the schemas do not: the operator's own checks, Pod Security, and what this project asks
of its jobs. `broken` runs them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import deletion_rules as deletion_rules
import job_rules as job_rules
import network_rules as network_rules
import operator_rules as operator_rules
import pod_rules as pod_rules
import queue_rules as queue_rules
import run_rules as run_rules
import security_rules as security_rules
from reading import Manifest
from registry import RULES


def broken(manifests: Sequence[Manifest]) -> list[str]:
    """Everything that is wrong, with the name of the rule in front."""
    return [f"{name}: {line}" for name, check in RULES.items() for line in check(manifests)]
