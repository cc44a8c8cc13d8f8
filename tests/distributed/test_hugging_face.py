"""Hugging Face classifiers are amalgamated: a softmax ResNet with a sigmoid ConvNeXt."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from hugging_face import KINDS, behind, blocks, save_strangers, tail_of
from safetensors.torch import load_file
from torch import Tensor

from dfka_dist.config import LossWeights, RunConfig
from dfka_dist.loading import load
from dfka_dist.models import target as targets
from dfka_dist.models.completion import complete
from dfka_dist.models.sources import read_all_weights
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import load_teachers
from dfka_dist.training.amalgamator import Amalgamator
from dfka_dist.training.diary import Record
from dfka_dist.training.outcome import Network, Outcome
from dfka_dist.training.workshop import Workshop

pytestmark = pytest.mark.usefixtures("process_group")

LABELS = ["d", "a", "b", "c", "e"]
BRANCH = {"resnet": 1, "convnext": 2}


@dataclass(frozen=True)
class Amalgamated:
    config: RunConfig
    teachers: LocalTeachers
    outcome: Outcome
    records: list[Record]
    files: dict[str, dict[str, Tensor]]
    """What each folder's weight file held; the folders are gone."""
    target: TargetNet
    saved: Path
    """Where it was saved while they were there."""


@pytest.fixture(scope="module")
def amalgamated(process_group: None, tmp_path_factory: pytest.TempPathFactory) -> Amalgamated:
    """A short joint run without a fine-tune, regrouped at depths short of the last."""
    place = tmp_path_factory.mktemp("hugging_face")
    steps = {"steps": 4, "rehearsal_steps": 2, "branch_steps": 2, "fine_tune_steps": 0}
    tree = {
        "run": {"name": "test"},
        "teachers": save_strangers(place),
        "target": {"labels": LABELS, "arguments": {"widths": [4, 6, 8]}, "branch": BRANCH},
        "generator": {"latent": 6},
        "losses": dict.fromkeys(LossWeights.model_fields, 0.5),
        "training": steps
        | {"batch_size": 8, "probe_images": 64, "report_every": 1, "precision": "fp32"},
    }
    (place / "run.yaml").write_text(yaml.safe_dump(tree))
    config = load(place / "run.yaml", complete=complete)
    teachers = LocalTeachers(load_teachers(config.teachers, read_all_weights(config.teachers)))
    records: list[Record] = []
    outcome = Amalgamator(config, teachers, records.append).run()
    target = TargetNet(outcome.design)
    target.load_state_dict(outcome.state)
    target.eval().save_pretrained(place / "target_net")
    files = {kind: load_file(place / kind / "model.safetensors") for kind in KINDS}
    for kind in KINDS:
        shutil.rmtree(place / kind)
    return Amalgamated(config, teachers, outcome, records, files, target, place / "target_net")


def test_every_loss_is_finite(amalgamated: Amalgamated) -> None:
    values = [value for record in amalgamated.records for value in record["losses"].values()]
    assert values and torch.tensor(values).isfinite().all()


def test_statistics_of_the_one_that_has_them_are_matched(amalgamated: Amalgamated) -> None:
    joint = [record["losses"] for record in amalgamated.records if record["phase"] == "joint"]
    assert joint and all(losses["batch_norm"] > 0 for losses in joint)


def test_branches_leave_where_they_were_told(amalgamated: Amalgamated) -> None:
    branches = amalgamated.outcome.design.branches
    assert {branch.teacher.name: branch.depth for branch in branches} == BRANCH


@pytest.mark.parametrize("kind", KINDS)
def test_the_tails_of_every_target_are_what_the_files_hold_bit_for_bit(
    amalgamated: Amalgamated, kind: str
) -> None:
    networks: list[Network] = amalgamated.outcome.networks
    found = [tail_of(network.state, kind) for network in networks]
    assert len({str(list(own)) for own in found}) == len(blocks(kind)), "a tail for every depth"
    for network, own in zip(networks, found, strict=True):
        assert own.keys() == behind(entry(network, kind), kind, amalgamated.files[kind])
        assert all(torch.equal(own[name], amalgamated.files[kind][name]) for name in own)


def test_every_tensor_of_the_trunk_moved(amalgamated: Amalgamated) -> None:
    config, outcome = amalgamated.config, amalgamated.outcome
    workshop = Workshop(config, amalgamated.teachers, [].append, torch.device("cpu"))
    untrained = workshop.new_target(outcome.design).trunk.blocks.state_dict()
    trained = amalgamated.target.trunk.blocks.state_dict()
    assert trained.keys() == untrained.keys()
    assert not any(torch.equal(trained[name], value) for name, value in untrained.items())


def test_the_saved_target_predicts_the_same_when_the_folders_are_gone(
    amalgamated: Amalgamated,
) -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    targets._cut.cache_clear()  # nothing is left of what was built while they were there
    again = TargetNet.from_pretrained(amalgamated.saved)
    predictions = again.predict(images)
    assert predictions.shape == (3, len(LABELS)) and predictions.isfinite().all()
    assert torch.equal(predictions, amalgamated.target.predict(images))


def entry(network: Network, kind: str) -> int:
    (branch,) = [each for each in network.design.branches if each.teacher.name == kind]
    return branch.entry
