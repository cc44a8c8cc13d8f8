"""The run as data: what is read, what is made of it, and every way in which it can be wrong."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dfka_dist.config import PRESETS, RunConfig
from dfka_dist.errors import InputError
from dfka_dist.loading import dump, load, located, parse

DIGITS = PRESETS / "digits.yaml"


def teacher(name: str, labels: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "source": "builtin:convnet",
        "weights": f"weights/{name}.pt",
        "task": "multi_label",
        "labels": labels,
        "blocks": ["block1", "block2"],
        "input": {"channels": 1, "size": 16},
    }


def valid() -> dict[str, Any]:
    return {
        "run": {"name": "mine", "seed": 3},
        "teachers": [teacher("one", ["a", "b"]), teacher("two", ["b", "c"])],
        "target": {"labels": "all"},
        "generator": {"latent": 10},
        "losses": {"group": 0.5},
        "training": {"steps": 5, "batch_size": 12, "workers": 2},
        "serving": {"replicas": 1},
        "evaluations": {"mine": {"source": "parquet:data/test.parquet"}},
    }


def written(folder: Path, tree: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


def loaded(folder: Path, *assignments: str) -> RunConfig:
    return load(written(folder, valid()), list(assignments))


def refusal(folder: Path, *assignments: str) -> InputError:
    with pytest.raises(InputError) as caught:
        loaded(folder, *assignments)
    return caught.value


# what is read


def test_the_digits_preset_is_valid() -> None:
    assert load(DIGITS).labels == [str(digit) for digit in range(10)]


def test_whole_numbers_may_be_labels(tmp_path: Path) -> None:
    assert loaded(tmp_path, "teachers.0.labels=[0, 1]").teachers[0].labels == ["0", "1"]


def test_all_labels_are_those_of_the_teachers_in_their_order_each_once(tmp_path: Path) -> None:
    assert loaded(tmp_path).labels == ["a", "b", "c"]


def test_images_are_asked_for_what_is_wanted_and_then_for_what_else_its_teachers_know(
    tmp_path: Path,
) -> None:
    assert loaded(tmp_path, "target.labels=[c, b]").asked_labels == ["c", "b", "a"]


def test_wanted_labels_keep_the_order_of_the_user(tmp_path: Path) -> None:
    assert loaded(tmp_path, "target.labels=[c, a]").labels == ["c", "a"]


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        config.training.steps = 1


# --set


@pytest.mark.parametrize(
    ("assignment", "section", "key", "value"),
    [
        ("training.steps=7", "training", "steps", 7),
        ("losses.group=0.25", "losses", "group", 0.25),
        ("losses.group=1", "losses", "group", 1.0),
        ("training.precision=bf16", "training", "precision", "bf16"),
        ("training.sampled_labels=false", "training", "sampled_labels", False),
        ("target.branch=2", "target", "branch", 2),
        ("target.branch=last", "target", "branch", "last"),
        ("target.branch={one: 1}", "target", "branch", {"one": 1}),
        ("losses.distill={two: 0.5}", "losses", "distill", {"two": 0.5}),
        ("target.labels=[b, a]", "target", "labels", ["b", "a"]),
        ("target.arguments={widths: [2, 3]}", "target", "arguments", {"widths": [2, 3]}),
        ("target.arguments.widths=[2, 3]", "target", "arguments", {"widths": [2, 3]}),
    ],
)
def test_set_reads_its_value_as_yaml(
    tmp_path: Path, assignment: str, section: str, key: str, value: object
) -> None:
    config = loaded(tmp_path, assignment)
    assert getattr(getattr(config, section), key) == value


def test_set_reaches_into_lists(tmp_path: Path) -> None:
    config = loaded(tmp_path, "teachers.1.weights=/elsewhere/x.pt")
    assert [t.weights for t in config.teachers][1] == "/elsewhere/x.pt"


def test_set_replaces_one_element_of_a_list(tmp_path: Path) -> None:
    assert loaded(tmp_path, "teachers.0.labels.1=z").teachers[0].labels == ["a", "z"]


def test_set_makes_a_section_that_the_file_left_out(tmp_path: Path) -> None:
    tree = valid()
    del tree["serving"]
    assert load(written(tmp_path, tree), ["serving.replicas=3"]).serving.replicas == 3


def test_set_fills_a_section_that_the_file_left_empty(tmp_path: Path) -> None:
    tree = valid() | {"serving": None}
    assert load(written(tmp_path, tree), ["serving.replicas=3"]).serving.replicas == 3


def test_the_last_set_of_a_key_counts(tmp_path: Path) -> None:
    assert loaded(tmp_path, "training.steps=7", "training.steps=8").training.steps == 8


def test_the_value_of_a_set_may_hold_an_equals_sign(tmp_path: Path) -> None:
    config = loaded(tmp_path, "evaluations.mine.source=parquet:s3://bucket/x?region=eu")
    assert config.evaluations["mine"].source == "parquet:s3://bucket/x?region=eu"


# paths


def test_relative_weights_start_at_the_files_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, valid())
    monkeypatch.chdir("/")
    assert load(path).teachers[0].weights == str(tmp_path / "weights" / "one.pt")


def test_a_linked_file_keeps_its_own_name_and_with_it_its_kind(tmp_path: Path) -> None:
    (tmp_path / "blob").touch()
    (tmp_path / "linked.pt").symlink_to(tmp_path / "blob")
    config = loaded(tmp_path, "teachers.0.weights=linked.pt")
    assert config.teachers[0].weights == str(tmp_path / "linked.pt")


@pytest.mark.parametrize(("place", "found"), [("..", ""), (".", "inner"), ("../x", "x")])
def test_folders_in_a_path_are_resolved(tmp_path: Path, place: str, found: str) -> None:
    (tmp_path / "inner").mkdir()
    assert located(place, tmp_path / "inner") == str(tmp_path / found)


def test_what_the_user_leaves_unsaid_may_be_completed_in_front_of_validation(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, valid())
    seen: list[Path] = []

    def complete(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
        seen.append(folder)
        return tree | {"target": {"labels": ["b"]}}

    assert load(path, ["target.labels=5"], complete).target.labels == ["b"]
    assert seen == [tmp_path]


def test_relative_data_start_at_the_files_own_folder(tmp_path: Path) -> None:
    assert loaded(tmp_path).evaluations["mine"].source == f"parquet:{tmp_path}/data/test.parquet"


@pytest.mark.parametrize("place", ["preset:digits/x.safetensors", "s3://bucket/x.pt", "/x/y.pt"])
def test_presets_uris_and_absolute_paths_stay_as_they_are(tmp_path: Path, place: str) -> None:
    assert loaded(tmp_path, f"teachers.0.weights={place}").teachers[0].weights == place


def test_a_dump_read_back_elsewhere_is_the_same_run(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    elsewhere = tmp_path / "other" / "folder"
    elsewhere.mkdir(parents=True)
    (elsewhere / "resolved.yaml").write_text(dump(config), encoding="utf-8")
    assert load(elsewhere / "resolved.yaml") == config


# what is refused


@pytest.mark.parametrize(
    ("assignment", "key", "said"),
    [
        ("training.stepz=3", "training.stepz", "steps"),
        ("trainin.steps=3", "trainin", "training"),
        ("teachers.0.weight=x", "teachers.0.weight", "weights"),
        ("teachers.1.input.sizes=8", "teachers.1.input.sizes", "size"),
        ("evaluations.mine.sauce=x", "evaluations.mine.sauce", "source"),
        ("target.label=[a]", "target.label", "labels"),
    ],
)
def test_unknown_key_names_the_nearest_known_one(
    tmp_path: Path, assignment: str, key: str, said: str
) -> None:
    error = refusal(tmp_path, assignment)
    assert (error.key, error.what) == (key, "unknown key")
    assert error.remedy == f"did you mean {said!r}?"


def test_unknown_key_near_no_other_lists_them_all(tmp_path: Path) -> None:
    assert refusal(tmp_path, "run.xyzzy=1").remedy == "one of name, seed, address"


@pytest.mark.parametrize(
    ("assignment", "key"),
    [
        ("training.steps=many", "training.steps"),
        ("training.steps='7'", "training.steps"),
        ("training.steps=1.5", "training.steps"),
        ("training.steps=true", "training.steps"),
        ("training.steps=[1]", "training.steps"),
        ("training=5", "training"),
        ("teachers={}", "teachers"),
        ("teachers.0=one", "teachers.0"),
        ("teachers.0.labels=a", "teachers.0.labels"),
        ("teachers.0.labels=[a, 1.5]", "teachers.0.labels.1"),
        ("target.labels=some", "target.labels"),
        ("run.name=7", "run.name"),
        ("serving.wait_for_nodes=1", "serving.wait_for_nodes"),
        ("evaluations=digits", "evaluations"),
    ],
)
def test_value_of_a_wrong_type_is_refused_by_its_key(
    tmp_path: Path, assignment: str, key: str
) -> None:
    assert refusal(tmp_path, assignment).key == key


@pytest.mark.parametrize(
    ("assignment", "key"),
    [
        ("training.steps=0", "training.steps"),
        ("training.batch_size=1", "training.batch_size"),
        ("training.zero_stage=0", "training.zero_stage"),
        ("training.precision=fp16", "training.precision"),
        ("training.deepspeed={fp16: {enabled: true}}", "training.deepspeed"),
        ("training.deepspeed={gradient_clip: 1.0}", "training.deepspeed"),
        ("training.deepspeed={zero_optimization: {stage: 3}}", "training.deepspeed"),
        ("training.deepspeed={zero_optimization: 3}", "training.deepspeed"),
        ("training.deepspeed=[1]", "training.deepspeed"),
        ("training.micro_batch=0", "training.micro_batch"),
        ("serving.shards=0", "serving.shards"),
        ("serving.gpu_gigabytes=0", "serving.gpu_gigabytes"),
        ("training.generator_rate=0", "training.generator_rate"),
        ("training.generator_rate=.nan", "training.generator_rate"),
        ("losses.group=-1", "losses.group"),
        ("losses.group=.nan", "losses.group"),
        ("losses.group=.inf", "losses.group"),
        ("generator.latent=0", "generator.latent"),
        ("generator.width=.nan", "generator.width"),
        ("run.seed=-1", "run.seed"),
        ("run.name=''", "run.name"),
        ("run.name=a/b", "run.name"),
        ("teachers=[]", "teachers"),
        ("teachers.0.labels=[]", "teachers.0.labels"),
        ("teachers.0.labels=['']", "teachers.0.labels.0"),
        ("teachers.0.blocks=[]", "teachers.0.blocks"),
        ("teachers.0.task=regression", "teachers.0.task"),
        ("teachers.0.source=convnet", "teachers.0.source"),
        ("teachers.0.source=os.system", "teachers.0.source"),
        ("teachers.0.input.channels=2", "teachers.0.input.channels"),
        ("teachers.0.input.size=0", "teachers.0.input.size"),
        ("teachers.0.input.std=[0.0]", "teachers.0.input.std.0"),
        ("teachers.0.input.mean=[0.1, 0.2]", "teachers.0.input"),
        ("evaluations.mine.source=csv:x", "evaluations.mine.source"),
        ("serving.start_timeout=0", "serving.start_timeout"),
    ],
)
def test_value_out_of_range_is_refused_by_its_key(
    tmp_path: Path, assignment: str, key: str
) -> None:
    assert refusal(tmp_path, assignment).key == key


def test_a_mistyped_label_is_refused_in_a_short_line_by_the_nearest_of_a_thousand() -> None:
    tree = valid()
    tree["teachers"][0]["labels"] = [*(f"kind {index}" for index in range(999)), "crane"]
    tree["target"]["labels"] = ["krane"]
    error = _only_refusal(tree)
    assert error.remedy.startswith("some of crane, kind 0, ")
    assert len(str(error)) < 300


@pytest.mark.parametrize("name", ["train", "training", "half", "values", "to", "T_destination"])
def test_a_teacher_is_not_called_as_something_that_torchs_modules_have(
    tmp_path: Path, name: str
) -> None:
    error = refusal(tmp_path, f"teachers.1.name={name}")
    assert (error.key, error.exit_code) == ("teachers.1.name", 2)
    assert error.what == f"{name!r} is taken by torch for every network"
    assert loaded(tmp_path, f"teachers.1.name={name}_1").teachers[1].name == f"{name}_1"


@pytest.mark.parametrize(
    "key",
    [
        "training.timeout",
        "training.start_timeout",
        "training.worker_cpus",
        "serving.cpus",
        "serving.gpus",
        "serving.start_timeout",
        "teachers.0.input.mean.0",
        "teachers.0.input.std.0",
        "generator.width",
    ],
)
@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_no_number_may_be_infinite_or_none(tmp_path: Path, key: str, value: str) -> None:
    inner = "teachers.0.input.mean=[0.5]", "teachers.0.input.std=[0.5]"
    assert refusal(tmp_path, *inner, f"{key}={value}").key == key


@pytest.mark.parametrize(
    ("assignment", "key", "said"),
    [
        ("teachers.0.labels=[a, b, a]", "teachers.0.labels", "'a' stands twice"),
        ("teachers.0.blocks=[x, x]", "teachers.0.blocks", "'x' stands twice"),
        ("teachers.1.name=one", "teachers", "'one' stands twice"),
        ("target.labels=[a, a]", "target.labels", "'a' stands twice"),
        ("target.labels=[a, q]", "target.labels", "no teacher knows 'q'"),
        ("target.branch={three: 1}", "target.branch", "'three'"),
        ("target={branch: 1, max_parameters: 9}", "target.branch", "target.max_parameters lets"),
        ("losses.distill={three: 1}", "losses.distill", "'three'"),
        ("training.images=noise", "training.images", "with the recipe joint"),
        ("training.recipe=distill", "training.images", "is missing"),
        ("target.start=somewhere", "target.start", "to the recipe joint"),
        ("training.batch_size=10", "training.batch_size", "10"),
        ("training.workers=5", "training.batch_size", "12"),
        ("evaluations.mine.teachers=[three]", "evaluations.mine.teachers", "'three'"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    tmp_path: Path, assignment: str, key: str, said: str
) -> None:
    error = refusal(tmp_path, assignment)
    assert error.key == key
    assert said in error.what


@pytest.mark.parametrize(
    ("assignment", "key", "wanted"),
    [
        ("training.precision=fp16", "training.precision", ["'auto'", "'fp32'", "'bf16'"]),
        ("target.labels=[]", "target.labels", ["'all'", "at least 1 item"]),
        ("target.branch={one: 0}", "target.branch.one", ["greater than or equal to 1"]),
        ("target.branch=first", "target.branch", ["'last'", "'best'"]),
    ],
)
def test_where_several_kinds_of_value_are_right_all_are_named(
    tmp_path: Path, assignment: str, key: str, wanted: list[str]
) -> None:
    error = refusal(tmp_path, assignment)
    assert error.key == key
    assert all(one in error.remedy for one in wanted)
    assert "literal[" not in str(error)


@pytest.mark.parametrize(
    ("assignment", "key"),
    [
        ("training.steps", "--set"),
        ("=3", "--set"),
        ("teachers.7.name=x", "teachers.7"),
        ("teachers.first.name=x", "teachers.first"),
        ("teachers.-1.name=x", "teachers.-1"),
        ("teachers.0.labels.9=x", "teachers.0.labels.9"),
        ("training.steps.more=1", "training.steps"),
        ("training.steps=[1", "training.steps"),
        ("training.steps={", "training.steps"),
    ],
)
def test_set_that_cannot_be_applied_is_refused(tmp_path: Path, assignment: str, key: str) -> None:
    assert refusal(tmp_path, assignment).key == key


@pytest.mark.parametrize(
    ("key", "uri"),
    [
        ("training.checkpoint.storage", "s3://me:secret@bucket/runs"),
        ("training.archive", "s3://me:secret@bucket/images"),
        ("evaluations.mine.source", "parquet:s3://me:secret@bucket/test.parquet"),
        ("teachers.0.weights", "s3://me:secret@bucket/one.pt"),
        ("teachers.0.weights", "s3://me:with/secret@bucket/one.pt"),
    ],
)
def test_a_password_is_refused_and_not_repeated(tmp_path: Path, key: str, uri: str) -> None:
    error = refusal(tmp_path, f"{key}={uri}")
    assert error.key == key and "secret" not in str(error)


@pytest.mark.parametrize(
    ("key", "uri", "named"),
    [
        ("training.checkpoint.storage", "abfs://c@a.net/x?client_secret=hush", "client_secret"),
        ("training.archive", "abfs://c@a/x?enable_tls=true&sig=hush", "sig"),
        ("training.archive", "abfs://c@a/x?%63lient_secret=hush", "client_secret"),
        ("teachers.0.weights", "gs://bucket/one.pt?access_token=hush", "access_token"),
        ("evaluations.mine.source", "parquet:s3://bucket/x?X-Amz-Signature=hush", "X-Amz-Sign"),
    ],
)
def test_what_a_query_may_not_say_is_named_and_not_repeated(
    tmp_path: Path, key: str, uri: str, named: str
) -> None:
    error = refusal(tmp_path, f"{key}={uri}")
    assert error.key == key and named in str(error) and "hush" not in str(error)


def test_a_query_may_say_where_and_how_a_store_is_reached(tmp_path: Path) -> None:
    uri = "s3://bucket/runs?region=here&scheme=http&endpoint_override=127.0.0.1:9000"
    assert loaded(tmp_path, f"training.archive={uri}").training.archive == uri


def test_a_late_teacher_is_named_before_a_worker_that_waits_for_it(tmp_path: Path) -> None:
    assert refusal(tmp_path, "training.timeout=300", "training.workers=2").key == "training.timeout"
    loaded(tmp_path, "training.timeout=300", "training.workers=2", "serving.timeout=200")
    loaded(tmp_path, "training.timeout=300", "training.workers=1")  # it waits for nobody


def test_a_batch_must_be_shared_by_any_number_of_workers_that_there_may_be(
    tmp_path: Path,
) -> None:
    assert list(loaded(tmp_path, "training.workers={min: 1, max: 3}").training.worker_range) == [
        1,
        2,
        3,
    ]
    error = refusal(tmp_path, "training.workers={min: 1, max: 4}")
    assert error.key == "training.batch_size"
    assert error.remedy == "a multiple of 24, for 1 or 2 or 3 or 4 workers"


@pytest.mark.parametrize("wrong", ["{min: 3, max: 2}", "{min: 0, max: 2}", "{min: 1}", "many"])
def test_workers_are_a_number_or_a_range(tmp_path: Path, wrong: str) -> None:
    assert refusal(tmp_path, f"training.workers={wrong}").key.startswith("training.workers")


def test_a_tree_that_holds_itself_is_refused() -> None:
    tree = valid()
    tree["run"]["again"] = tree
    with pytest.raises(InputError):
        parse(tree)


LISTS = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
LISTS += [f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]" for n in range(1, 12)]
MERGED = ["a0: &a0 {x: 1}"]
MERGED += [f"a{n}: &a{n} {{<<: [{', '.join(9 * [f'*a{n - 1}'])}]}}" for n in range(1, 12)]


@pytest.mark.parametrize("lines", [LISTS, MERGED])
def test_aliases_that_stand_for_billions_are_refused(tmp_path: Path, lines: list[str]) -> None:
    place = tmp_path / "run.yaml"
    place.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=r"stand for more than 1,000,000 values"):
        load(place)


def test_a_file_that_holds_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("run: &a {name: x, again: *a}", encoding="utf-8")
    with pytest.raises(InputError, match="it holds itself"):
        load(tmp_path / "run.yaml")


def test_what_is_named_again_many_times_is_looked_at_once() -> None:
    tree, inner = valid(), list[object]()
    for _ in range(60):
        inner = [inner, inner]
    tree["teachers"][0]["arguments"] = 3
    tree["strange"] = inner
    with pytest.raises(InputError):
        parse(tree)


def test_aliases_may_be_used(tmp_path: Path) -> None:
    tree = valid()
    tree["teachers"][1]["input"] = tree["teachers"][0]["input"]
    place = written(tmp_path, tree)
    assert "&id001" in place.read_text() and len(load(place).teachers) == 2


@pytest.mark.parametrize("key", ["run", "teachers"])
def test_missing_section_is_refused_by_its_name(tmp_path: Path, key: str) -> None:
    tree = valid()
    del tree[key]
    with pytest.raises(InputError) as caught:
        load(written(tmp_path, tree))
    assert (caught.value.key, caught.value.what) == (key, "is missing")


def test_missing_value_inside_a_teacher_is_refused_by_its_place() -> None:
    tree = valid()
    del tree["teachers"][1]["task"]
    with pytest.raises(InputError) as caught:
        parse(tree)
    assert caught.value.key == "teachers.1.task"


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--config: .*run\.yaml does not exist"):
        load(tmp_path / "run.yaml")


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--config: .* cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "5", "- a\n- b\n", "just words"])
def test_file_without_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError, match=r"--config: .* holds no mapping"):
        load(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    "content",
    [
        b"run: {name: x\nteachers: []\n",
        b"run: [\n",
        b"a: b: c\n",
        b"\ta: 1\n",
        b"when: 2020-13-45\n",
        b"x: !!python/object/apply:os.system ['true']\n",
        b"[" * 1500,
    ],
)
def test_broken_yaml_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"--config: .* is not YAML"):
        load(tmp_path / "run.yaml")


def test_broken_yaml_is_refused_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("run:\n  name: x\n  seed: [\n")
    with pytest.raises(InputError, match="line 4"):
        load(tmp_path / "run.yaml")


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        load(tmp_path / "run.yaml")


# laws

WRONG: dict[str, list[object]] = {
    "run.name": [None, 3, "", "a b", "-x", "a" * 61, "a\nb", ["x"]],
    "run.seed": [-1, 2**31, "0", 1.0, True, None],
    "teachers": [[], {}, None, 5, "one", [None], [[]]],
    "teachers.0": [None, 5, [], {}],
    "teachers.0.name": ["two", "a/b", "train", None, 0],
    "teachers.0.source": ["", "builtin:", "hf:", ":f", "a.b:", 5, None],
    "teachers.0.weights": [5, [], {}, True],
    "teachers.0.arguments": [None, [], "x", {1: 2}],
    "teachers.0.task": [None, "multi", 1],
    "teachers.0.labels": [[], None, "ab", ["a", "a"], [None], [""], [[]], [True]],
    "teachers.0.blocks": [[], None, "b", ["b", "b"], [3]],
    "teachers.0.input": [None, {}, [], {"channels": 1}, {"size": 16}],
    "teachers.0.input.channels": [0, 2, "1", None],
    "teachers.0.input.size": [3, 5000, 16.5, "16", None, math.nan],
    "target": [None, 5, [], "all"],
    "target.labels": [[], ["q"], ["a", "a"], None, "every", {}],
    "target.branch": [0, -1, "1", 1.5, "first", None, {"one": 0}, {"one": "last"}, {"three": 1}],
    "target.max_parameters": [0, -1, "1000", 1.5],
    "target.backbone": [None, 5],
    "generator.latent": [0, -5, 1.5, "100", None],
    "generator.width": [0, -1.0, math.inf, math.nan, "1", 17],
    "losses": [None, [], 5, {"grup": 1.0}, {5: 1.0}, {None: 1.0}, {(1, 2): 1.0}],
    "losses.group": [-0.1, math.nan, math.inf, "0.3", None, []],
    "losses.distill": [-0.1, math.nan, "1", None, [], {"one": -1.0}, {"three": 1.0}, {"one": "x"}],
    "losses.logits": [-0.1, {"one": 1.0}],
    "losses.link": [-0.1, "1", None],
    "training.steps": [0, -1, "5", 5.5, None, True],
    "training.batch_size": [1, 0, 13, None, "12"],
    "training.workers": [0, 5, -2, "2"],
    "training.zero_stage": [0, 4, "1", None],
    "training.precision": ["fp16", 32, None],
    "training.recipe": ["fancy", None],
    "training.images": [5, "", "noise", "digits", "csv:x", "idx:"],
    "training.archive": [5, []],
    "training.block_steps": [0, "5", None],
    "training.branch_steps": [-1, "5", None],
    "training.candidates": [0, "4", None],
    "training.fresh_every": [0, 1.5, None, 5],
    "training.remember_every": [0, 1.5, None, 5],
    "serving.replicas": [0, None, "1"],
    "serving.strategy": ["PACK", None],
    "serving.cpus": [0, -1.0, "1", math.nan],
    "evaluations": [None, [], "digits", {"a b": {"source": "digits"}}, {5: {"source": "digits"}}],
    "evaluations.mine": [None, {}, "digits", {"source": "digits", "splits": "test"}],
    "evaluations.mine.source": ["", "csv:x", None, "parquet:"],
    "evaluations.mine.teachers": [["nobody"], [], "one", None],
    "evaluations.mine.split": ["validation", None],
    "evaluations.mine.labels": [5, [None], "abc"],
}


def _place(tree: Any, key: str) -> tuple[Any, str | int]:
    *path, last = [int(part) if part.isdecimal() else part for part in key.split(".")]
    for part in path:
        tree = tree[part]
    return tree, last


def _only_refusal(tree: object) -> InputError:
    with pytest.raises(InputError) as caught:
        parse(tree)
    return caught.value


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_one_wrong_value_gives_one_line_about_its_place(key: str, value: object) -> None:
    tree = valid()
    place, last = _place(tree, key)
    place[last] = value
    error = _only_refusal(tree)
    assert len(str(error).splitlines()) == 1
    assert error.key.split(".")[0] == key.split(".")[0]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_junk_in_any_place_gives_one_line_or_a_run(data: st.DataObject) -> None:
    junk = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=5,
    )
    tree = valid()
    place, last = _place(tree, data.draw(st.sampled_from(sorted(WRONG))))
    place[last] = data.draw(junk)
    try:
        outcome: object = parse(tree)
    except InputError as error:
        outcome = error
        assert len(str(error).splitlines()) == 1
    assert isinstance(outcome, RunConfig | InputError)


@settings(max_examples=100, deadline=None)
@given(
    key=st.lists(st.sampled_from(["training", "teachers", "0", "-1", "²", "labels", "x", ""])),
    value=st.text(max_size=8) | st.sampled_from(["[", "{a: ", "*x", "&x", "!!set", "2020-13-45"]),
)
def test_junk_assigned_to_any_key_gives_one_line_or_a_run(
    tmp_path_factory: pytest.TempPathFactory, key: list[str], value: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "assigned.yaml"
    path.write_text(yaml.safe_dump(valid()), encoding="utf-8")
    try:
        outcome: object = load(path, [f"{'.'.join(key)}={value}"])
    except InputError as error:
        outcome = error
        assert len(str(error).splitlines()) == 1
    assert isinstance(outcome, RunConfig | InputError)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), name=st.text(min_size=1, max_size=12))
def test_a_key_too_many_in_any_section_is_the_key_that_is_named(
    data: st.DataObject, name: str
) -> None:
    sections = ["", "run", "teachers.0", "teachers.1.input", "target", "training", "serving"]
    section = data.draw(st.sampled_from(sections))
    tree = valid()
    place = tree
    if section:
        outer, last = _place(tree, section)
        place = outer[last]
    whole = parse(valid()).model_dump()
    if section:
        outer, last = _place(whole, section)
        whole = outer[last]
    if name not in whole:
        place[name] = 1
        error = _only_refusal(tree)
        assert error.key == (f"{section}.{name}" if section else name)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    weights=st.dictionaries(
        st.sampled_from(["one_hot", "group", "batch_norm", "distill"]),
        st.floats(0, 1e6, allow_nan=False),
    ),
    labels=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, unique=True),
    workers=st.integers(1, 4),
    images=st.integers(1, 25),
)
def test_every_valid_run_survives_being_written_and_read(
    seed: int, weights: dict[str, float], labels: list[str], workers: int, images: int
) -> None:
    tree = copy.deepcopy(valid())
    tree["run"]["seed"] = seed
    tree["losses"] = weights
    tree["target"] = {"labels": labels}
    tree["training"] = {"workers": workers, "batch_size": 2 * images * workers}
    config = parse(tree)
    assert parse(yaml.safe_load(dump(config))) == config


# what would go wrong only when the run has begun


def test_nothing_is_kept_of_a_run_that_synthesizes_nothing() -> None:
    training = {"recipe": "distill", "images": "noise", "archive": "somewhere", "batch_size": 12}
    assert _only_refusal(valid() | {"training": training}).key == "training.archive"


@pytest.mark.parametrize("recipe", ["joint", "paper"])
def test_images_are_refused_where_they_are_synthesized(recipe: str) -> None:
    training = {"recipe": recipe, "images": "noise", "batch_size": 12}
    assert _only_refusal(valid() | {"training": training}).key == "training.images"


@pytest.mark.parametrize("more", [{"recipe": "paper"}, {"branch_steps": 5}])
@pytest.mark.parametrize("target", [{"branch": "best"}, {"max_parameters": 9000}])
def test_depths_can_be_chosen_where_filters_are_trained(
    more: dict[str, Any], target: dict[str, Any]
) -> None:
    tree = valid() | {"target": target, "training": {"batch_size": 12} | more}
    assert isinstance(parse(tree), RunConfig)


def test_a_batch_whose_workers_would_split_a_pair_is_refused() -> None:
    tree = valid() | {"training": {"batch_size": 6, "workers": 2}}
    assert _only_refusal(tree).key == "training.batch_size"


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("run: {name: a}\nrun: {name: b}\n")
    with pytest.raises(InputError, match="'run' stands twice"):
        load(path)


def test_a_rate_may_be_written_without_a_point(tmp_path: Path) -> None:
    assert load(PRESETS / "digits.yaml", ["training.dual_rate=4e-3"]).training.dual_rate == 0.004


# homes


def at_home(tasks: tuple[str, str] = ("single_label", "single_label"), **training: Any) -> Any:
    """Two teachers of different labels."""
    tree = valid() | {"training": {"batch_size": 8} | training}
    for spec, task in zip(tree["teachers"], tasks, strict=True):
        spec["task"] = task
    return tree


@pytest.mark.parametrize(
    ("tasks", "homes"),
    [
        (("multi_label", "multi_label"), False),
        (("single_label", "multi_label"), True),
        (("single_label", "single_label"), True),
    ],
)
def test_images_have_homes_where_a_single_label_teacher_knows_other_labels(
    tasks: tuple[str, str], homes: bool
) -> None:
    assert parse(at_home(tasks)).has_homes == homes


@pytest.mark.parametrize("target", [{"branch": "best"}, {"max_parameters": 1000}])
def test_depths_that_are_chosen_need_steps(target: dict[str, Any]) -> None:
    training = {"batch_size": 12, "branch_steps": 0}
    error = _only_refusal(valid() | {"target": target, "training": training})
    assert error.key == "training.branch_steps" and "is 0" in error.what


@pytest.mark.parametrize(
    ("given", "steps", "branch_steps"),
    [
        ({}, 400, 200),
        ({"steps": 30}, 30, 15),
        ({"branch_steps": 0}, 400, 0),
        ({"recipe": "paper"}, 400, 0),
        ({"recipe": "distill", "images": "noise"}, 5000, 0),
    ],
)
def test_steps_that_are_not_given_are_the_recipes(
    given: dict[str, Any], steps: int, branch_steps: int
) -> None:
    own = parse(valid() | {"training": given}).training
    assert (own.steps, own.branch_steps) == (steps, branch_steps)


@pytest.mark.parametrize(("workers", "size"), [(1, 128), (3, 126), (100, 200)])
def test_a_batch_size_that_is_not_given_has_equal_parts(workers: int, size: int) -> None:
    assert parse(valid() | {"training": {"workers": workers}}).training.batch_size == size


@pytest.mark.parametrize(
    ("assignments", "calls"),
    [
        ([], 3),
        (["training.micro_batch=6"], 3),
        (["training.micro_batch=4"], 6),
        (["training.micro_batch=1", "training.workers={min: 1, max: 2}"], 36),
    ],
)
def test_a_question_may_be_out_in_as_many_calls_as_a_workers_batch_has_parts(
    tmp_path: Path, assignments: list[str], calls: int
) -> None:
    found = loaded(tmp_path, "serving.in_flight=3", *assignments)
    assert found.served.in_flight == calls
    assert found.serving.window == 3


def test_every_replica_may_have_as_many_questions(tmp_path: Path) -> None:
    assert loaded(tmp_path, "serving.in_flight=3", "serving.replicas=2").serving.window == 6


def test_single_label_teachers_of_the_same_labels_share_all_images() -> None:
    tree = at_home()
    tree["teachers"][1]["labels"] = ["b", "a"]
    assert not parse(tree).has_homes


def test_a_teacher_that_is_not_heard_makes_no_homes() -> None:
    tree = at_home() | {"target": {"labels": ["a"]}}
    assert not parse(tree).has_homes


@pytest.mark.parametrize("batch_size", [2, 6, 10])
def test_a_batch_that_is_not_equal_parts_of_pairs_for_every_home_is_refused(
    batch_size: int,
) -> None:
    error = _only_refusal(at_home(batch_size=batch_size))
    assert (error.key, error.remedy) == ("training.batch_size", _multiple(4, 1))


def test_every_worker_has_equal_parts_for_every_home() -> None:
    error = _only_refusal(at_home(batch_size=12, workers=2))
    assert (error.key, error.remedy) == ("training.batch_size", _multiple(8, 2))


@pytest.mark.parametrize("key", ["fresh_every", "remember_every"])
def test_a_stride_that_would_leave_out_a_home_is_refused(key: str) -> None:
    assert _only_refusal(at_home(**{key: 4})).key == f"training.{key}"


def test_without_homes_strides_may_be_larger() -> None:
    tasks = ("multi_label", "multi_label")
    assert parse(at_home(tasks, fresh_every=4)).training.fresh_every == 4


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_is_a_run_of_its_own_name(name: str) -> None:
    assert load(PRESETS / f"{name}.yaml").run.name == name


@pytest.mark.parametrize(
    "change",
    [
        {"target": {"start": "somewhere/target_net"}},
        {"teachers": [spec | {"weights": None} for spec in valid()["teachers"]]},
    ],
    ids=["a target that is there", "no teachers"],
)
def test_filters_at_other_depths_need_teachers_and_a_new_target(change: dict[str, Any]) -> None:
    training = {"recipe": "distill", "images": "archive:/images", "branch_steps": 2}
    tree = valid() | change | {"training": training}
    assert _only_refusal(tree).key == "training.branch_steps"
    assert parse(tree | {"training": training | {"branch_steps": 0}})


def test_some_teachers_without_weights_beside_others_are_refused() -> None:
    tree = valid()
    tree["teachers"][1]["weights"] = None
    refusal = _only_refusal(tree)
    assert refusal.key == "teachers.1.weights"
    assert refusal.remedy.startswith("either all teachers or none without weights")


# teachers that nobody needs


@pytest.mark.parametrize("idle", [None, "somewhere.pt"])
def test_whether_a_run_has_teachers_is_for_those_that_are_heard_to_say(idle: str | None) -> None:
    tree = valid() | {"target": {"labels": ["a"]}}
    tree["training"] = {"recipe": "distill", "images": "archive:/images"}
    one, two = tree["teachers"]
    assert parse(
        tree | {"teachers": [one | {"weights": None}, two | {"weights": idle}]}
    ).lacks_weights
    assert not parse(tree | {"teachers": [one, two | {"weights": None}]}).is_teacherless


def test_a_run_goes_without_teachers_that_know_no_wanted_label() -> None:
    config = parse(valid() | {"target": {"labels": ["a"]}}).without_unheard()
    assert [spec.name for spec in config.teachers] == ["one"]


def test_a_teacher_that_knows_one_wanted_label_stays() -> None:
    config = parse(valid() | {"target": {"labels": ["b"]}}).without_unheard()
    assert [spec.name for spec in config.teachers] == ["one", "two"]


def test_data_of_teachers_that_are_left_out_are_left_out() -> None:
    digits = {"source": "digits"}
    sets = {"every": digits, "some": digits | {"teachers": ["one", "two"]}}
    sets["none"] = digits | {"teachers": ["two"]}
    tree = valid() | {"target": {"labels": ["a"]}, "evaluations": sets}
    kept = parse(tree).without_unheard().evaluations
    assert {name: spec.teachers for name, spec in kept.items()} == {"every": "all", "some": ["one"]}


@pytest.mark.parametrize("change", [{"branch": {"one": 1, "two": 2}}, {}])
@pytest.mark.parametrize("losses", [{"distill": {"one": 0.5, "two": 2.0}}, {}])
def test_a_run_without_them_is_valid_whatever_names_them(
    change: dict[str, Any], losses: dict[str, Any]
) -> None:
    tree = valid() | {"target": {"labels": ["a"]} | change, "losses": losses}
    config = parse(tree).without_unheard()
    assert parse(yaml.safe_load(dump(config))) == config


def _multiple(unit: int, workers: int) -> str:
    return f"a multiple of {unit}, for {workers} workers and 2 teachers with images of their own"
