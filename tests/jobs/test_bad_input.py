"""What is wrong is said in one line, with its key, before anything is written or started."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Ended, run, write_idx
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig, ResNetForImageClassification

from dfka_dist.archive import ArchivedTeacher, ArchiveWriter, Contents
from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.models.sources import read_all_weights
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import load_teachers
from dfka_dist.training.branching import Branching, build_target

Call = Callable[..., Ended]
Refused = Callable[..., str]


@pytest.fixture
def refused(call: Call, config: Path, tmp_path: Path) -> Refused:
    """The line that `amalgamate` says of the tiny run with some arguments more."""

    def refused(*arguments: str | Path, config: Path = config) -> str:
        output = tmp_path / "output"
        line = call("amalgamate", "--config", config, "--output", output, *arguments).refusal
        assert not output.exists()
        return line

    return refused


@pytest.fixture
def weights(tiny: dict[str, Any]) -> Path:
    return Path(tiny["teachers"][0]["weights"])


# the file


def test_a_configuration_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "nowhere.yaml"
    assert refused(config=path) == f"error: --config: {path} does not exist (a YAML file)"


def test_a_configuration_that_cannot_be_read(refused: Refused, tmp_path: Path) -> None:
    assert refused(config=tmp_path).startswith(f"error: --config: {tmp_path} cannot be read: ")


def test_a_configuration_that_is_no_text(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    assert refused(config=path).startswith(f"error: --config: {path} cannot be read: ")


def test_a_configuration_that_is_no_yaml(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("run: {name: x")
    assert refused(config=path).startswith(f"error: --config: {path}, line 1 is not YAML: ")


def test_a_configuration_that_is_no_mapping(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- run\n- teachers\n")
    assert refused(config=path).startswith(f"error: --config: {path} holds no mapping ")


# keys and values


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        ("training.stepz=3", "training.stepz: unknown key (did you mean 'steps'?)"),
        ("trainings.steps=3", "trainings: unknown key (did you mean 'training'?)"),
        ("teachers.0.lables=[a]", "teachers.0.lables: unknown key (did you mean 'labels'?)"),
    ],
)
def test_an_unknown_key_and_the_nearest_known_one(
    refused: Refused, assignment: str, line: str
) -> None:
    assert refused("--set", assignment) == f"error: {line}"


@pytest.mark.parametrize(
    ("assignment", "key"),
    [
        ("training.steps=many", "training.steps"),
        ("training.steps=1.5", "training.steps"),
        ("training.steps=0", "training.steps"),
        ("losses.one_hot=-1", "losses.one_hot"),
        ("losses.one_hot=.nan", "losses.one_hot"),
        ("training.precision=fp8", "training.precision"),
        ("training.workers=3", "training.batch_size"),  # 8 images cannot be shared by three
        ("teachers=[]", "teachers"),
        ("run.name=", "run.name"),
    ],
)
def test_a_value_of_another_type_or_out_of_range(
    refused: Refused, assignment: str, key: str
) -> None:
    assert refused("--set", assignment).startswith(f"error: {key}: ")


def test_nodes_for_something_else_than_a_plan(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "nodes.yaml").write_text("- {name: a, cpus: 8}")
    line = refused("--nodes", tmp_path / "nodes.yaml")
    assert line == "error: --nodes: is for planning alone (--dry-run beside it)"


def test_an_argument_that_does_not_exist(refused: Refused) -> None:
    line = refused("--frobnicate")
    assert line.startswith("error: arguments: unrecognized arguments: --frobnicate (")


# weights


def test_weights_that_are_not_there(refused: Refused) -> None:
    line = refused("--set", "teachers.1.weights=nowhere.safetensors")
    assert line.startswith("error: teachers.1.weights: ") and " does not exist " in line


def test_weights_that_are_truncated(refused: Refused, weights: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.safetensors"
    half.write_bytes(weights.read_bytes()[:1000])
    line = refused("--set", f"teachers.0.weights={half}")
    assert line.startswith(f"error: teachers.0.weights: {half} is truncated ")


def test_weights_in_torchs_own_format_that_are_truncated(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "half.pt"
    torch.save({"weight": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:500])
    line = refused("--set", f"teachers.0.weights={path}")
    assert line.startswith(f"error: teachers.0.weights: {path} is truncated ")


def test_weights_of_another_architecture_and_the_tensors_that_do_not_fit(
    refused: Refused, make_teacher: Callable[..., TeacherSpec]
) -> None:
    other = make_teacher("wide", ["0", "1"], widths=(4, 6, 9)).weights
    line = refused("--set", f"teachers.0.weights={other}")
    assert line.startswith("error: teachers.0.weights: do not belong to this architecture: ")
    assert "block3.0.weight is [9, 6, 3, 3] for [8, 6, 3, 3]" in line


def test_weights_that_lack_a_tensor(refused: Refused, weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    del state["block2.0.weight"]
    save_file(state, tmp_path / "less.safetensors")
    line = refused("--set", f"teachers.0.weights={tmp_path / 'less.safetensors'}")
    assert "block2.0.weight is missing" in line


class Trap:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_weights_that_are_a_pickle_are_not_even_opened(refused: Refused, tmp_path: Path) -> None:
    path, sprung = tmp_path / "pickle.pt", tmp_path / "sprung"
    path.write_bytes(pickle.dumps(Trap(sprung)))
    line = refused("--set", f"teachers.0.weights={path}")
    assert line.startswith(f"error: teachers.0.weights: {path} holds pickled code")
    assert not sprung.exists()


# teachers and labels


def test_a_block_that_does_not_exist_and_those_that_do(refused: Refused) -> None:
    line = refused("--set", "teachers.0.blocks=[block1, blok2, block3]")
    assert line.startswith("error: teachers.0.blocks: no block is called 'blok2' (")
    assert "block1, block2, block3, pool, classifier" in line


def test_a_label_that_stands_twice(refused: Refused) -> None:
    line = refused("--set", 'teachers.1.labels=["2", "2"]')
    assert line == "error: teachers.1.labels: the label '2' stands twice (each once)"


def test_labels_that_do_not_match_the_weights(refused: Refused) -> None:
    line = refused("--set", 'teachers.1.labels=["2", "3", "4"]')
    assert line.startswith("error: teachers.1.weights: ") and "and these labels" in line
    assert "classifier.weight is [2, 8] for [3, 8]" in line


def test_labels_that_do_not_match_the_logits(refused: Refused) -> None:
    line = refused(
        "--set", 'teachers.1.labels=["2", "3", "4"]', "--set", "teachers.1.arguments.labels=2"
    )
    said = "error: teachers.1.labels: 3 names for 2 logits (one name for each logit)"
    assert line == said


def test_a_wanted_label_that_no_teacher_knows(refused: Refused) -> None:
    line = refused("--set", 'target.labels=["0", "9"]')
    assert line == "error: target.labels: no teacher knows '9' (some of 0, 1, 2, 3)"


def test_a_network_that_cannot_be_imported(refused: Refused) -> None:
    line = refused("--set", "teachers.0.source=not_there.networks:one")
    assert line.startswith("error: teachers.0.source: cannot import not_there.networks: ")


def test_test_data_that_are_not_there(refused: Refused, tmp_path: Path) -> None:
    line = refused("--set", f"evaluations.squares.source=idx:{tmp_path}")
    assert line.startswith(f"error: evaluations.squares.source: {tmp_path} holds no ")


def test_labels_that_the_training_data_lack(
    call: Call, write: Callable[..., Path], tmp_path: Path
) -> None:
    for part in ("train", "t10k"):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", torch.zeros(4, 16, 16).int())
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", torch.arange(4))
    config = write(tmp_path, evaluations={"squares": {"source": f"idx:{tmp_path}"}})
    output = tmp_path / "output"
    output.mkdir()
    (output / "manifest.json").write_text("{}")
    asked = ["--output", output, "--overwrite", "--set", 'teachers.1.labels=["2", "x", "y"]']
    line = call("pretrain", "--config", config, *asked).refusal
    said = "error: teachers.1.labels: the data squares have no 'x', 'y' (some of 0, 1, 2, 3)"
    assert line == said
    assert [path.read_text() for path in output.iterdir()] == ["{}"]


# the machine


def test_more_gpus_than_there_are(refused: Refused) -> None:
    asked = 2 * (torch.cuda.device_count() + 1)
    line = refused("--set", f"serving.gpus={asked / 2:g}")
    assert line.startswith(f"error: serving.gpus: servers and workers ask for {asked} GPUs ")


def test_an_output_folder_that_holds_another_run(call: Call, config: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (output / "result.json").write_text("{}")
    line = call("amalgamate", "--config", config, "--output", output).refusal
    assert line.startswith(f"error: --output: {output} already holds a run (")
    assert [path.read_text() for path in output.iterdir()] == ["{}"]


def test_an_output_folder_with_somebodys_files_is_not_even_overwritten(
    call: Call, config: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (output / "thesis.tex").write_text("mine")
    call("amalgamate", "--config", config, "--output", output, "--overwrite")
    assert [path.read_text() for path in output.iterdir()] == ["mine"]


# the cluster


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "[Errno 111] Connection refused"),
        ("http://127.0.0.1:8265", "it is no HOST:PORT"),
        ("somewhere", "it is no HOST:PORT"),
    ],
)
@pytest.mark.parametrize("dry_run", [["--dry-run"], []])
def test_an_address_where_no_cluster_is(
    refused: Refused, address: str, why: str, dry_run: list[str]
) -> None:
    line = refused("--set", f"run.address={address}", *dry_run)
    remedy = "auto, or HOST:PORT of a running Ray cluster"
    assert line == f"error: run.address: no Ray cluster at {address}: {why} ({remedy})"


def test_a_submitted_job_whose_cluster_does_not_answer(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not run by a Ray of its own."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert refused().startswith("error: run.address: no Ray cluster at 127.0.0.1:1: ")


# teachers and targets that differ


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier as Hugging Face saves it, and the teacher that it makes, as YAML."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    names = {0: "a", 1: "b"}
    own = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], id2label=names
    )
    ResNetForImageClassification(own).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.safetensors", None, "weights"),
        ("config.json", None, "config.json does not exist"),
        ("config.json", {"id2label": None}, "teachers.0.labels: are missing"),
    ],
    ids=["no weights", "no description", "no labels"],
)
def test_a_folder_of_hugging_face_that_lacks_something(
    refused: Refused,
    theirs: Path,
    tmp_path: Path,
    name: str,
    content: dict[str, Any] | None,
    says: str,
) -> None:
    folder = Path(shutil.copytree(theirs, tmp_path / "model"))
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | content))
    blocks = "[resnet.encoder.stages.0, resnet.encoder.stages.1]"
    own = f"name: theirs, source: 'hf:{folder}', task: single_label, blocks: {blocks}"
    line = refused("--set", f"teachers=[{{{own}, input: {{channels: 1, size: 16}}}}]")
    assert line.startswith("error: teachers.0.") and says in line


def test_images_of_as_many_channels_as_there_is_no_rule_for(refused: Refused) -> None:
    line = refused("--set", "teachers.0.input.channels=4")
    start = "error: teachers.0.input.channels: there is no rule for images of 4 channels (1, "
    assert line.startswith(start)


def test_a_budget_that_no_branching_meets(refused: Refused) -> None:
    budget = "target.max_parameters=10"
    line = refused("--set", budget, "--set", "training.branch_steps=2")
    start = r"error: target\.max_parameters: 10 is less than any branching needs"
    assert re.fullmatch(rf"{start} \(\d{{3,}} or more\)", line)


@pytest.fixture
def not_learned_from(refused: Refused, tiny: dict[str, Any], tmp_path: Path) -> Refused:
    """The line about an archive that fits the tiny run but for what it says of the second teacher;
    without its beginning, which names the key and the place."""

    def refused_archive(**changes: Any) -> str:
        place = tmp_path / "archive"
        low, high = (
            {
                "name": spec["name"],
                "task": spec["task"],
                "labels": spec["labels"],
                "sha256": sha256(Path(spec["weights"]).read_bytes()).hexdigest(),
            }
            for spec in tiny["teachers"]
        )
        teachers = [ArchivedTeacher(**own) for own in (low, high | changes)]
        labels = [label for teacher in teachers for label in teacher.labels]
        about = Contents(run="x", teachers=teachers, labels=labels, shape=(1, 16, 16))
        with ArchiveWriter(str(place), about) as writer:
            writer.add(
                step=0,
                first_column=0,
                images=torch.rand(4, 1, 16, 16),
                asked_for=torch.ones(4, len(labels)),
                homes=torch.full((4,), -1),
                logits={own.name: torch.zeros(4, len(own.labels)) for own in teachers},
            )
        images = f"training.images=archive:{place}"
        line = refused("--set", "training.recipe=distill", "--set", images)
        start = f"error: training.images: {place} "
        assert line.startswith(start)
        return line.removeprefix(start)

    return refused_archive


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "other"}, "holds answers of low, other, not of high ("),
        ({"task": "single_label"}, "has other task for high: single_label ("),
        ({"labels": ["3", "2"]}, "has other labels for high: 3, 2 ("),
        ({"labels": ["2", "3", "4"]}, "has other labels for high: 2, 3, 4 ("),
        ({"sha256": "0" * 64}, "holds answers of other weights of high ("),
    ],
    ids=["teacher", "task", "order of labels", "labels", "weights"],
)
def test_an_archive_of_another(
    not_learned_from: Refused, changes: dict[str, Any], says: str
) -> None:
    assert not_learned_from(**changes).startswith(says)


def test_an_archive_below_a_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refused("--set", f"training.archive={tmp_path / 'file' / 'archive'}")
    assert line.startswith("error: training.archive: ")


def test_some_teachers_without_weights_beside_others(refused: Refused) -> None:
    line = refused("--set", "teachers.1.weights=null")
    start = "error: teachers.1.weights: is null, but other teachers have weights ("
    assert line.startswith(f"{start}either all teachers or none without weights; ")


def test_no_weights_and_no_archive(refused: Refused) -> None:
    without = ("--set", "teachers.0.weights=null", "--set", "teachers.1.weights=null")
    line = refused(*without)
    assert line == "error: teachers.0.weights: is missing (a .safetensors or .pt file)"


# evaluate


@pytest.fixture(scope="module")
def saved(
    tiny: dict[str, Any],
    make_config: Callable[..., RunConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A target that was never trained."""
    run = make_config(
        [TeacherSpec.model_validate(spec) for spec in tiny["teachers"]], target=tiny["target"]
    )
    teachers = LocalTeachers(load_teachers(run.teachers, read_all_weights(run.teachers)))
    folder = tmp_path_factory.mktemp("saved") / "target_net"
    build_target(Branching(run, teachers.descriptions).design(), teachers).save_pretrained(folder)
    return folder


@pytest.fixture
def broken(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    copy = tmp_path / "target_net"
    TargetNet.from_pretrained(saved).save_pretrained(copy)
    return copy


@pytest.fixture
def not_scored(call: Call, config: Path, tmp_path: Path) -> Refused:
    """The line that `evaluate` says of a folder."""

    def refused(folder: Path, *arguments: str, config: Path = config) -> str:
        output = tmp_path / "output"
        given = ("--target-net", folder, "--config", config, "--output", output)
        line = call("evaluate", *given, *arguments).refusal
        assert not output.exists()
        return line

    return refused


def test_a_target_that_is_not_there(not_scored: Refused, tmp_path: Path) -> None:
    assert not_scored(tmp_path / "nowhere").startswith("error: --target-net: ")


def test_a_target_with_a_broken_description(not_scored: Refused, broken: Path) -> None:
    (broken / "config.json").write_text('{"labels": [')
    line = not_scored(broken)
    assert line.startswith(f"error: --target-net: {broken / 'config.json'} describes no target ")


def test_a_target_without_weights(not_scored: Refused, broken: Path) -> None:
    (broken / "model.safetensors").unlink()
    line = not_scored(broken)
    assert line.startswith(f"error: --target-net: {broken / 'model.safetensors'} cannot be read: ")


def test_a_target_with_truncated_weights(not_scored: Refused, broken: Path) -> None:
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert not_scored(broken).startswith(f"error: --target-net: {path} cannot be read: ")


def test_a_target_of_other_teachers(not_scored: Refused, saved: Path) -> None:
    line = not_scored(saved, "--set", "teachers.0.name=other")
    assert line.startswith("error: teachers: the target was made of another low (")
    line = not_scored(saved, "--set", "teachers.1.input.mean=[0.1]")
    assert line.startswith("error: teachers: the target was made of another high, by input.mean (")


def test_a_target_that_needs_code_of_somebody(not_scored: Refused, broken: Path) -> None:
    path = broken / "config.json"
    path.write_text(path.read_text().replace("builtin:convnet", "their_tails:network"))
    line = not_scored(broken)
    assert line.startswith("error: --allow-code: ")
    assert line.endswith(" needs code from their_tails (--allow-code their_tails)")


def test_a_target_to_go_on_with_that_needs_code_of_somebody(
    refused: Refused, broken: Path, tiny: dict[str, Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    path = broken / "config.json"
    path.write_text(path.read_text().replace("builtin:convnet", "their_tails:network"))
    training = tiny["training"] | {"recipe": "distill", "images": "noise"}
    target = tiny["target"] | {"start": str(broken)}
    line = refused(config=write(tmp_path, training=training, target=target))
    said = f"error: target.start: {broken} needs code from their_tails"
    assert line == f"{said} (a target of the same teachers, labels, backbone and branches)"


def test_a_target_to_go_on_with_that_this_run_does_not_make(
    refused: Refused, saved: Path, tiny: dict[str, Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    training = tiny["training"] | {"recipe": "distill", "images": "noise"}
    target = tiny["target"] | {"start": str(saved), "branch": 2}
    line = refused(config=write(tmp_path, training=training, target=target))
    said = f"error: target.start: {saved} is another target than this run makes"
    assert line.startswith(f"{said}, by branches.0.adapt (")


def test_nothing_to_score_on(
    not_scored: Refused, saved: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    line = not_scored(saved, config=write(tmp_path, evaluations=None))
    assert line == "error: evaluations: is missing (a data set to score on)"


def test_a_target_that_has_to_be_named(call: Call, config: Path) -> None:
    assert "--target-net" in call("evaluate", "--config", config).refusal


# images to learn from


def test_images_that_are_not_there(refused: Refused) -> None:
    distill = ("--set", "training.recipe=distill", "--set", "training.images=folder:/nowhere")
    said = "error: training.images: /nowhere is no folder on this machine (an image folder)"
    assert refused(*distill) == said


# as a user meets it


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        ("amalgamate", ["--set", "training.stepz=3"], "error: training.stepz: unknown key "),
        ("evaluate", ["--target-net", "nowhere"], "error: --target-net: nowhere"),
    ],
)
def test_a_program_ends_with_code_2_and_one_line(
    config: Path, tmp_path: Path, name: str, arguments: list[str], line: str
) -> None:
    before = sorted(tmp_path.iterdir())
    assert run(name, "--config", config, *arguments, cwd=tmp_path).refusal.startswith(line)
    assert sorted(tmp_path.iterdir()) == before
