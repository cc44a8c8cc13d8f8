"""Whether a run goes on, begins anew, or is another one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfka_dist import resuming
from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.errors import InputError
from dfka_dist.loading import dump
from dfka_dist.models.sources import read_all_weights
from dfka_dist.training.shelf import FolderShelf

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make(make_config: MakeConfig, make_teacher: Callable[..., TeacherSpec]) -> MakeConfig:
    teachers = [make_teacher("one", "ab"), make_teacher("two", "cd")]
    return lambda **sections: make_config(teachers, **sections)


READ: dict[str, dict[str, Any]] = {"images": {}, "start": {}}


def identity(config: RunConfig, read: dict[str, dict[str, Any]] = READ) -> dict[str, Any]:
    return resuming.identity(config, read_all_weights(config.teachers), read)


@pytest.mark.parametrize(
    "training",
    [
        {"checkpoint": {"every": 3, "keep": 5, "storage": "/elsewhere"}},
        {"threads": 3},
        {"timeout": 5.0},
        {"quiet_timeout": 5.0},
        {"report_every": 3},
        {"max_failures": 0},
    ],
)
def test_how_a_run_is_kept_and_driven_is_not_what_it_is(
    make: MakeConfig, training: dict[str, Any]
) -> None:
    assert identity(make(training=training)) == identity(make())


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"steps": 3}},
        {"target": {"labels": ["a", "c"]}},
        {"losses": {"l2": 0.5}},
        {"serving": {"wire": "bf16"}},
        {"generator": {"latent": 7}},
    ],
)
def test_what_changes_the_result_makes_another_run(
    make: MakeConfig, sections: dict[str, Any]
) -> None:
    assert identity(make(**sections)) != identity(make())


def test_an_identity_names_no_place(make: MakeConfig) -> None:
    training = {
        "checkpoint": {"storage": "s3://secret/x"},
        "images": "parquet:s3://secret/y?region=eu-west-1",
    }
    config = make(training=training | {"recipe": "distill"})
    teachers = [teacher.model_copy() for teacher in config.teachers]
    teachers[0] = teachers[0].model_copy(update={"source": "hf:/secret/resnet"})
    own = identity(config.model_copy(update={"teachers": teachers}))
    assert "secret" not in str(own) and "weights" not in str(own)
    assert own["teachers"][0]["source"] == "hf:resnet"
    assert own["training"]["images"] == {"source": "parquet:y"}


def test_other_images_or_another_start_make_another_run(make: MakeConfig) -> None:
    config = make(training={"recipe": "distill", "images": "folder:/a/b"})
    before = identity(config, {"images": {"count": 1}, "start": {"sha256": "x"}})
    for read, key in (
        ({"images": {"count": 2}, "start": {"sha256": "x"}}, "training.images.count"),
        ({"images": {"count": 1}, "start": {"sha256": "y"}}, "target.start.sha256"),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(key)}: .* when the run began"):
            resuming.refuse_difference(before, identity(config, read))


def test_an_archive_that_only_one_of_several_nodes_reaches_is_refused(make: MakeConfig) -> None:
    config = make(training={"archive": "/somewhere", "checkpoint": {"every": 0}})
    assert resuming.reachable(None, config, 1) is None
    with pytest.raises(InputError, match=r"training\.archive: /somewhere is a path on each of 2"):
        resuming.reachable(None, config, 2)
    shared = {"archive": "/somewhere", "checkpoint": {"shared": True}}
    assert resuming.reachable(None, make(training=shared), 2) is None


def test_checkpoints_lie_with_the_results_or_in_the_storage_by_the_run_s_name(
    make: MakeConfig, tmp_path: Path
) -> None:
    stored = make(training={"checkpoint": {"storage": "/store/"}})
    places = [str(resuming.place_of(each, tmp_path, {})) for each in (make(), stored)]
    assert places == [str(tmp_path / "checkpoints"), f"/store/{stored.run.name}"]


def test_a_storage_that_is_none_is_refused(make: MakeConfig, tmp_path: Path) -> None:
    config = make(training={"checkpoint": {"storage": "nowhere://x"}})
    with pytest.raises(InputError, match=resuming.KEY):
        resuming.place_of(config, tmp_path, {})


def test_several_nodes_share_no_disk_unless_it_is_said(make: MakeConfig, tmp_path: Path) -> None:
    own, stored, shared = (
        make(training={"checkpoint": each})
        for each in ({}, {"storage": "/store"}, {"storage": "/store", "shared": True})
    )
    shelves = [resuming.place_of(each, tmp_path, {}) for each in (own, stored, shared)]
    assert resuming.reachable(shelves[0], own, 1) is shelves[0]
    assert resuming.reachable(shelves[0], own, 2) is None
    assert resuming.reachable(shelves[2], shared, 2) is shelves[2]
    with pytest.raises(InputError, match=r"each of 2 nodes.*training\.checkpoint\.shared"):
        resuming.reachable(shelves[1], stored, 2)


def left(folder: Path, config: RunConfig, *steps: int) -> None:
    """What a run leaves that told of these steps."""
    (folder / "resolved.yaml").write_text(dump(config), "utf-8")
    lines = [json.dumps({"global_step": step}) for step in steps]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"global_st']), "utf-8")


@pytest.mark.parametrize(("every", "step"), [(500, 500), (500, 10), (0, 900)])
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(
    make: MakeConfig, tmp_path: Path, every: int, step: int
) -> None:
    left(tmp_path, make(training={"checkpoint": {"every": every}}), 5, step)
    resuming.refuse_lost(FolderShelf(str(tmp_path / "elsewhere"), keep=1), tmp_path)


def test_a_run_that_has_left_nothing_begins(tmp_path: Path) -> None:
    resuming.refuse_lost(FolderShelf(str(tmp_path / "elsewhere"), keep=1), tmp_path)


def test_a_run_does_not_begin_anew_where_its_checkpoints_are_not(
    make: MakeConfig, tmp_path: Path
) -> None:
    left(tmp_path, make(training={"checkpoint": {"every": 500}}), 500, 510)
    shelf = FolderShelf(str(tmp_path / "elsewhere"), keep=1)
    said = r"training\.checkpoint\.storage: .*elsewhere holds no checkpoint, .* step 510 \(the stor"
    with pytest.raises(InputError, match=said):
        resuming.refuse_lost(shelf, tmp_path)
    (tmp_path / "elsewhere" / "checkpoint-000000500").mkdir(parents=True)
    resuming.refuse_lost(shelf, tmp_path)


def test_a_run_that_keeps_no_more_checkpoints_does_not_begin_anew_beside_some(
    tmp_path: Path,
) -> None:
    there = FolderShelf(str(tmp_path), keep=1)
    resuming.refuse_idle(there)
    (tmp_path / "checkpoint-000000500").mkdir()
    said = r"training\.checkpoint\.every: is 0, and .* holds checkpoints .*more than 0, or --overw"
    with pytest.raises(InputError, match=said):
        resuming.refuse_idle(there)


def test_a_run_does_not_begin_anew_beside_checkpoints_that_its_workers_do_not_reach(
    tmp_path: Path,
) -> None:
    there = FolderShelf(str(tmp_path), keep=1)
    resuming.refuse_out_of_reach(there, [], 2)
    said = (
        r"training\.checkpoint\.storage: .* holds checkpoints, .* each of 2 nodes for itself "
        r"\(.*training\.checkpoint\.shared: true, or --overwrite"
    )
    with pytest.raises(InputError, match=said):
        resuming.refuse_out_of_reach(there, [500], 2)
