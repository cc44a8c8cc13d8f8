"""The run as frozen, validated data: every key, its default, and what it may be.

`run.py` has the whole; the sections are in `networks.py`, `training.py`,
`serving.py` and `search.py`.
"""

from dfka_dist.config.networks import GeneratorSpec, InputSpec, TargetSpec, TeacherSpec
from dfka_dist.config.run import RunConfig
from dfka_dist.config.search import Range, SearchSpec
from dfka_dist.config.serving import EvaluationSpec, RunSection, ServingSpec
from dfka_dist.config.training import CheckpointSpec, LossWeights, TrainingSpec
from dfka_dist.config.values import PRESETS, Count, Name, Node, Precision, Task

__all__ = [
    "PRESETS",
    "CheckpointSpec",
    "Count",
    "EvaluationSpec",
    "GeneratorSpec",
    "InputSpec",
    "LossWeights",
    "Name",
    "Node",
    "Precision",
    "Range",
    "RunConfig",
    "RunSection",
    "SearchSpec",
    "ServingSpec",
    "TargetSpec",
    "Task",
    "TeacherSpec",
    "TrainingSpec",
]
