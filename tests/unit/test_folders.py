"""Files appear whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from limits import no_file_longer_than

from dfka_dist.folders import whole, write_whole


def test_a_text_that_has_no_room_leaves_nothing(tmp_path: Path) -> None:
    with no_file_longer_than(4), pytest.raises(OSError, match="too large"):
        write_whole(tmp_path / "result.json", "more than four")
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_has_no_room_leaves_what_was_there(tmp_path: Path) -> None:
    place = tmp_path / "result.json"
    place.write_text("{}")
    with no_file_longer_than(4), pytest.raises(OSError, match="too large"):
        write_whole(place, "more than four")
    assert place.read_text() == "{}"


def test_a_folder_takes_the_place_of_another_when_it_is_complete(tmp_path: Path) -> None:
    place = tmp_path / "net"
    for name in ("first", "second"):
        with whole(place) as part:
            part.mkdir()
            (part / name).touch()
            assert not (place / name).exists()
    assert [p.name for p in tmp_path.rglob("*")] == ["net", "second"]


def test_all_that_a_folder_holds_is_on_the_disk_before_it_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, synced = tmp_path / "net", list[str]()

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        assert not place.exists()

    monkeypatch.setattr(os, "fsync", fsync)
    with whole(place) as part:
        (part / "inner").mkdir(parents=True)
        files = [part / "weights", part / "inner" / "config"]
        for file in files:
            file.write_text("x")
    assert {*map(str, files)} <= {*synced}


def test_what_was_left_of_a_folder_that_was_interrupted_does_not_stay(tmp_path: Path) -> None:
    (tmp_path / "net.part").mkdir()
    (tmp_path / "net.part" / "half").touch()
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "net") as part:
        assert not part.exists()
        part.mkdir()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_take_its_place_leaves_what_was_there(tmp_path: Path) -> None:
    place = tmp_path / "net"
    place.mkdir()
    (place / "first").touch()
    with pytest.raises(FileNotFoundError), whole(place):
        pass  # nothing is written
    assert [p.name for p in tmp_path.rglob("*")] == ["net", "first"]


def test_a_folder_that_a_kill_left_aside_is_brought_back(tmp_path: Path) -> None:
    place = tmp_path / "net"
    for name in ("net.before", "net.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    with pytest.raises(KeyboardInterrupt), whole(place):
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.rglob("*")] == ["net", "net.before"]
