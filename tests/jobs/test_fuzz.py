"""Whatever is broken in one place: exit code 2 or 3, one line, no traceback, no file."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from running import Ended, run
from safetensors.torch import load_file

from dfka_dist import resuming
from dfka_dist.archive import ArchivedTeacher, ArchiveWriter, Contents
from dfka_dist.errors import RunFailed
from dfka_dist.loading import dump, load
from dfka_dist.models.sources import read_all_weights
from dfka_dist.training.checkpoint import Writing
from dfka_dist.training.lists import Told
from dfka_dist.training.shelf import FolderShelf

Call = Callable[..., Ended]
Path_ = tuple[str | int, ...]
"""Keys from the root of a configuration to a value."""

OPEN = {"arguments", "deepspeed", "node_labels", "evaluations", "space", "trial"}
"""Mappings whose keys are the user's."""
WRONG: list[Any] = [
    {"unexpected": [None]},
    [[]],
    "\x00 no such thing \u2028",
    -7,
    float("nan"),
    1e300,
    10**400,
]


def values(tree: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """All values of a configuration that are no mappings or lists of them."""
    if isinstance(tree, dict) and (not path or path[-1] not in OPEN):
        for key, value in tree.items():
            yield from values(value, (*path, key))
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        for index, value in enumerate(tree):
            yield from values(value, (*path, index))
    else:
        yield path, tree


def at(tree: Any, path: Path_) -> Any:
    """The value that lies there."""
    for key in path:
        tree = tree[key]
    return tree


def is_certainly_wrong(old: Any, new: Any) -> bool:
    """No value of one type may be of the other, and no number of this size is wanted anywhere."""
    if isinstance(old, bool) or old is None:
        return isinstance(new, dict | list)
    if isinstance(old, int | float):
        return True
    if isinstance(old, str):
        return not isinstance(new, str)
    return isinstance(new, str | int | float)


@pytest.fixture(scope="module")
def whole(write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tiny run with every key that there is, and a search."""
    search = {"space": {"losses.l2": {"linear": [0.0, 1.0]}}, "trials": 3}
    place = write(tmp_path_factory.mktemp("whole"), search=search)
    tree: dict[str, Any] = yaml.safe_load(dump(load(place)))
    return tree


@pytest.fixture(scope="module")
def breaks(whole: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Configurations with one wrong value, or one key that nobody knows."""
    places = list(values(whole))
    wrong = [(path, new) for path, old in places for new in WRONG if is_certainly_wrong(old, new)]
    sections = {path[:-1] for path, _ in places}

    def replaced(pair: tuple[Path_, Any]) -> dict[str, Any]:
        tree = copy.deepcopy(whole)
        at(tree, pair[0][:-1])[pair[0][-1]] = pair[1]
        return tree

    def enlarged(pair: tuple[Path_, str]) -> dict[str, Any]:
        tree = copy.deepcopy(whole)
        at(tree, pair[0])[f"x{pair[1]}"] = 1
        return tree

    known = [path for path in sections if isinstance(at(whole, path), dict)]
    return st.one_of(
        st.sampled_from(wrong).map(replaced),
        st.tuples(st.sampled_from(sorted(known, key=str)), st.text(max_size=8)).map(enlarged),
    )


JOBS = {
    "amalgamate": (120, ["amalgamate"]),
    "tune": (60, ["tune"]),
    "evaluate": (40, ["evaluate", "--target-net", "nowhere"]),
    "pretrain": (20, ["pretrain"]),
    "benchmark": (20, ["benchmark", "quality"]),
}
"""How many of more than 200 configurations each is given, and how it is called."""


@pytest.mark.parametrize(("examples", "words"), JOBS.values(), ids=JOBS.keys())
def test_a_configuration_that_is_broken_in_one_place_is_refused_in_one_line(
    call: Call,
    breaks: st.SearchStrategy[dict[str, Any]],
    tmp_path: Path,
    examples: int,
    words: list[str],
) -> None:
    output, file = tmp_path / "output", tmp_path / "run.yaml"

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(tree=breaks)
    def refused(tree: dict[str, Any]) -> None:
        file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
        ended = call(*words, "--config", file, "--output", output, "--dry-run")
        assert ended.refusal.startswith("error: ") and "nowhere" not in ended.err
        assert "Traceback" not in ended.err
        assert not output.exists()

    refused()


@pytest.mark.exhaustive
def test_a_program_refuses_a_broken_configuration_as_its_main_does(
    breaks: st.SearchStrategy[dict[str, Any]], tmp_path: Path
) -> None:
    output, file = tmp_path / "output", tmp_path / "run.yaml"

    @settings(max_examples=10, deadline=None, database=None, phases=[Phase.generate])
    @given(tree=breaks)
    def refused(tree: dict[str, Any]) -> None:
        file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
        assert run("amalgamate", "--config", file, "--output", output).refusal.startswith("error: ")
        assert not output.exists()

    refused()


def harmed(whole: bytes, index: int) -> bytes:
    """One of ten ways to break a file: cut, or with bytes that are others or too many."""
    place = len(whole) * index // 10
    return [
        whole[:place],
        whole[: place // 100],
        bytes(64 + index) + whole[64 + index :],
        b"\xff" * 9 + whole,
        whole[: len(whole) // 2] + whole[: len(whole) // 2 - 8],
    ][index % 5]


@pytest.mark.parametrize("index", range(10))
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_weights_that_are_broken_are_refused_in_one_line(
    call: Call,
    tiny: dict[str, Any],
    write: Callable[..., Path],
    tmp_path: Path,
    ending: str,
    index: int,
) -> None:
    low, high = tiny["teachers"]
    good = tmp_path / f"good.{ending}"
    if ending == "pt":
        torch.save(load_file(low["weights"]), good)
    else:
        good.write_bytes(Path(low["weights"]).read_bytes())
    bad = tmp_path / f"bad.{ending}"
    bad.write_bytes(harmed(good.read_bytes(), index))
    config = write(tmp_path, teachers=[low | {"weights": str(bad)}, high])
    ended = call("amalgamate", "--config", config, "--output", tmp_path / "output", "--dry-run")
    line = ended.refusal
    assert line.startswith("error: teachers.") and not (tmp_path / "output").exists()


# checkpoints

STEPS = (5, 10)
SECRET = "not-to-be-read"


@pytest.fixture(scope="module")
def resumable(write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration, and two checkpoints of its run in `checkpoints/tiny`."""
    place = tmp_path_factory.mktemp("resumable")
    (place / "outside").write_text(SECRET)
    config = load(write(place))
    own = resuming.identity(config, read_all_weights(config.teachers), {"images": {}, "start": {}})
    shelf, told = FolderShelf(str(place / "checkpoints" / "tiny"), 9, own), dict[str, Told]()
    for step in STEPS:
        desk = place / f"desk-{step}"
        writing = Writing(desk / "now", desk / "lasting", rank=0, size=1, told=told)
        (writing.under("thing") / "shard.pt").write_bytes(bytes(range(256)))
        writing.outlasting(f"part-{step}", lambda: {"x": torch.ones(9)})
        writing.close({"diary": {"step": step}, "identity": own})
        shelf.add(writing, step)
        shutil.rmtree(desk)
    return place


def text(name: str, said: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(said)


def relisted(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Of the only list, after which it is a list all the same."""

    def harm(folder: Path) -> None:
        listed = json.loads((folder / "files-0.json").read_text())
        change(listed)
        (folder / "files-0.json").write_text(json.dumps(listed))

    return harm


def told_of(secret: str) -> dict[str, Any]:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return {"bytes": len(secret), "sha256": digest}


def flipped(name: str) -> Callable[[Path], object]:
    def harm(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return harm


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def linked(folder: Path) -> None:
    (folder / "thing" / "shard.pt").unlink()
    (folder / "thing" / "shard.pt").symlink_to(folder.parents[2] / "outside")


def outside(name: str) -> Callable[[Path], object]:
    return relisted(lambda listed: listed["files"].update({name: told_of(SECRET)}))


BROKEN_CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "a file is cut": cut("thing/shard.pt"),
    "a byte is another": flipped("thing/shard.pt"),
    "a file is missing": lambda folder: (folder / "thing" / "shard.pt").unlink(),
    "what lasts is missing": lambda f: (f.parent / "lasting" / "part-10.safetensors").unlink(),
    "what lasts is cut": cut("../lasting/part-10.safetensors"),
    "the run is no JSON": text("run.json", "{"),
    "the run is a list": text("run.json", "[]"),
    "the run has no identity": text("run.json", '{"workers": 1}'),
    "the run is endless": text("run.json", "[" * 100_000),
    "nobody wrote it": text("run.json", '{"workers": 0}'),
    "too many wrote it": text("run.json", '{"workers": 1000000000000}'),
    "a list is no JSON": text("files-0.json", "nonsense"),
    "a list is no mapping": text("files-0.json", "[1, 2]"),
    "a list is no text": lambda folder: (folder / "files-0.json").write_bytes(b"\xff\xfe\x00"),
    "a list is missing": lambda folder: (folder / "files-0.json").unlink(),
    "a size is a word": relisted(lambda listed: listed["files"]["run.json"].update(bytes="x")),
    "a name climbs out": outside("../../../outside"),
    "a name is absolute": outside("/etc/hostname"),
    "a name has a zero byte": outside("thing/\0"),
    "a file leads out": linked,
    "a file is on no list": text("thing/more.pt", "code"),
}


@pytest.mark.parametrize("harm", BROKEN_CHECKPOINTS.values(), ids=BROKEN_CHECKPOINTS.keys())
def test_a_checkpoint_that_is_broken_is_passed_over_with_a_warning_and_left_as_it_is(
    call: Call,
    resumable: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[Path], object],
) -> None:
    """By the job before anything is started, and by what takes it down."""
    place = tmp_path / "copy"
    shutil.copytree(resumable, place)
    storage = place / "checkpoints" / "tiny"
    harm(storage / f"checkpoint-{STEPS[-1]:09}")
    before = sorted(place.rglob("*"))
    given = ["--set", f"training.checkpoint.storage={place / 'checkpoints'}", "--dry-run"]
    ended = call(
        "amalgamate", "--config", place / "run.yaml", "--output", tmp_path / "o", *given, "--resume"
    )
    assert (ended.code, ended.err) == (0, "")
    shelf = FolderShelf(str(storage), 9)
    newest = shelf.newest()
    shelf.close()
    assert newest is not None and newest.run["diary"]["step"] == STEPS[0]
    (said,) = [line.getMessage() for line in caplog.records if line.levelno >= logging.WARNING]
    assert said.startswith("passing over a checkpoint: checkpoint-000000010: ")
    assert "\n" not in said and SECRET not in said
    assert sorted(place.rglob("*")) == before and not (tmp_path / "o").exists()


NEVER_WHOLE = ("a list is missing", "too many wrote it")
"""As a kill leaves it while the first checkpoint is made."""
SPOILED = [key for key in BROKEN_CHECKPOINTS if key not in NEVER_WHOLE]


@pytest.mark.parametrize("key", SPOILED)
def test_checkpoints_that_are_all_broken_are_no_reason_to_begin_anew(
    resumable: Path, tmp_path: Path, key: str
) -> None:
    place = tmp_path / "copy"
    shutil.copytree(resumable, place)
    storage = place / "checkpoints" / "tiny"
    shutil.rmtree(storage / f"checkpoint-{STEPS[0]:09}")
    BROKEN_CHECKPOINTS[key](storage / f"checkpoint-{STEPS[-1]:09}")
    shelf, before = FolderShelf(str(storage), 9), sorted(place.rglob("*"))
    with pytest.raises(RunFailed, match=r"no checkpoint in .* is whole: .*--overwrite"):
        shelf.newest()
    shelf.close()
    assert sorted(place.rglob("*")) == before


# archives


@pytest.fixture(scope="module")
def shard(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The only one of an archive of the tiny run's teachers."""
    place = tmp_path_factory.mktemp("archive")
    teachers = [
        ArchivedTeacher(
            name=t["name"],
            task=t["task"],
            labels=t["labels"],
            sha256=hashlib.sha256(Path(t["weights"]).read_bytes()).hexdigest(),
        )
        for t in tiny["teachers"]
    ]
    labels = [label for teacher in teachers for label in teacher.labels]
    about = Contents(run="tiny", teachers=teachers, labels=labels, shape=(1, 16, 16))
    with ArchiveWriter(str(place), about) as writer:
        writer.add(
            step=0,
            first_column=0,
            images=torch.rand(32, 1, 16, 16),
            asked_for=torch.zeros(32, len(labels)),
            homes=torch.full((32,), -1),
            logits={teacher.name: torch.rand(32, 2) for teacher in teachers},
        )
    (path,) = place.iterdir()
    return path


Look = Callable[[Path], Ended]


@pytest.fixture
def look(call: Call, write: Callable[..., Path], tiny: dict[str, Any], tmp_path: Path) -> Look:
    """Have the job look at an archive, and leave everything as it is."""

    def look(place: Path) -> Ended:
        own = {"recipe": "distill", "images": f"archive:{place}", "rehearsal_steps": 0}
        config = write(tmp_path, training=tiny["training"] | own)
        before = sorted(tmp_path.rglob("*"))
        ended = call("amalgamate", "--config", config, "--output", tmp_path / "o", "--dry-run")
        assert sorted(tmp_path.rglob("*")) == before
        return ended

    return look


def test_an_archive_that_is_whole_is_taken(look: Look, shard: Path) -> None:
    ended = look(shard.parent)
    assert (ended.code, ended.err) == (0, "")


def said(metadata: dict[str, str] | None) -> Callable[[bytes], bytes]:
    """The same columns, of which something else is said."""

    def harm(data: bytes) -> bytes:
        table = parquet.read_table(pyarrow.BufferReader(data))
        sink = pyarrow.BufferOutputStream()
        parquet.write_table(table.replace_schema_metadata(metadata), sink)
        whole: bytes = sink.getvalue().to_pybytes()
        return whole

    return harm


BROKEN_SHARDS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "its first bytes": lambda data: data[:8],
    "half": lambda data: data[: len(data) // 2],
    "without its last byte": lambda data: data[:-1],
    "with bytes behind": lambda data: data + b"more",
    "text": lambda data: b"step,image\n1,2\n",
    "twice its first half": lambda data: data[: len(data) // 2] * 2,
    "its footer is longer than it": lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1",
    "its footer is nothing": lambda data: data[:-200] + bytes(192) + data[-8:],
    "its footer has no length": lambda data: data[:-8] + bytes(4) + b"PAR1",
    "it says nothing": said(None),
    "it is of another format": said({"dfka_dist": '{"format": 7}'}),
    "what it says is no JSON": said({"dfka_dist": "{"}),
}


@pytest.mark.parametrize("harm", BROKEN_SHARDS.values(), ids=BROKEN_SHARDS.keys())
def test_an_archive_that_is_broken_is_refused_in_one_line(
    look: Look, shard: Path, tmp_path: Path, harm: Callable[[bytes], bytes]
) -> None:
    place = tmp_path / "archive"
    place.mkdir()
    (place / shard.name).write_bytes(harm(shard.read_bytes()))
    assert look(place).refusal.startswith(f"error: training.images: {place} ")


@pytest.mark.parametrize("index", range(10))
def test_a_byte_in_the_footer_that_is_another_is_refused_in_one_line_or_means_nothing(
    look: Look, shard: Path, tmp_path: Path, index: int
) -> None:
    place, data = tmp_path / "archive", bytearray(shard.read_bytes())
    place.mkdir()
    footer = int.from_bytes(data[-8:-4], "little")
    data[-8 - footer + (2 * index + 1) * footer // 20] ^= 0xFF
    (place / shard.name).write_bytes(data)
    ended = look(place)
    assert ended.code in (0, 2) and "Traceback" not in ended.err
    assert len(ended.err.splitlines()) == (1 if ended.code else 0)
