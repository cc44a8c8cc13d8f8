"""What a teacher tells about itself."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dfka_dist.config import InputSpec, TeacherSpec
from dfka_dist.teachers.interface import TeacherDescription

BLOCKS = st.integers(1, 60)


def description(blocks: int) -> TeacherDescription:
    """Of a teacher of so many blocks."""
    spec = TeacherSpec(
        name="one",
        source="builtin:convnet",
        task="multi_label",
        labels=["a"],
        blocks=[f"block{depth}" for depth in range(1, blocks + 1)],
        input=InputSpec(channels=1, size=16),
    )
    return TeacherDescription(
        spec=spec,
        shapes=((1, 1, 1),) * (blocks + 1),
        embedding=None,
        layers=(),
        running_var=torch.zeros(0),
        parameters=0,
        tail_parameters=(0,) * (blocks + 1),
        stage_bytes=(0,) * (blocks + 1),
        graph_bytes=(0,) * (blocks + 1),
        sums_bytes=(0,) * (blocks + 1),
        sha256="",
    )


@given(blocks=BLOCKS, of=BLOCKS)
def test_images_match_images_and_the_last_block_the_last(blocks: int, of: int) -> None:
    teacher = description(blocks)
    assert (teacher.matching(0, of), teacher.matching(of, of)) == (0, blocks)


@given(blocks=BLOCKS, of=BLOCKS)
def test_what_lies_deeper_is_matched_no_less_deep(blocks: int, of: int) -> None:
    found = [description(blocks).matching(depth, of) for depth in range(of + 1)]
    assert found == sorted(found)
    assert 1 <= min(found[1:]) <= max(found) <= blocks


@given(blocks=BLOCKS)
def test_in_a_network_of_as_many_blocks_every_depth_matches_itself(blocks: int) -> None:
    found = [description(blocks).matching(depth, blocks) for depth in range(blocks + 1)]
    assert found == list(range(blocks + 1))
