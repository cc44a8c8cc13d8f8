"""In what workers compute."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from dfka_dist.training import computing

CPU = torch.device("cpu")


def multiplies(yes: bool) -> None:
    """Have this process think that its machine multiplies in bf16, or not."""
    torch.cpu._is_amx_tile_supported = lambda: False
    torch.cpu._is_avx512_bf16_supported = lambda: yes


@pytest.fixture
def _slow_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)


def meet(rank: int, folder: Path) -> None:
    """The second of two workers is on a machine that does not multiply in bf16."""
    meeting = f"file://{folder / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=2)
    multiplies(rank == 0)
    torch.set_num_threads(rank + 1)
    (folder / f"{rank}.txt").write_text(str(computing.agreed("auto", CPU)))
    while not (folder / f"{1 - rank}.txt").exists():  # it may be hearing this one still
        time.sleep(0.01)
    torch.distributed.destroy_process_group()


def test_workers_of_different_machines_agree_on_the_least(tmp_path: Path) -> None:
    multiprocessing.spawn(meet, (tmp_path,), nprocs=2)
    told = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert told == [str(computing.Computing("fp32", [1, 2]))] * 2


@pytest.mark.usefixtures("_slow_in_bf16")
@pytest.mark.parametrize(
    ("before", "expected", "said"),
    [
        (None, "fp32", ""),
        ({"precision": "fp32", "threads": [1]}, "fp32", ""),
        ({"precision": "bf16", "threads": [1]}, "bf16", "computing in bf16, as the run began"),
        ({"precision": "fp32", "threads": [2]}, "fp32", "will not be bit for bit"),
        ({"precision": "fp32", "threads": [2, 2]}, "fp32", ""),  # other numbers show by themselves
        ({"precision": ["nonsense"]}, "fp32", ""),
    ],
)
def test_a_run_goes_on_in_the_precision_in_which_it_began(
    before: dict[str, object] | None,
    expected: str,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert torch.get_num_threads() == 1
    assert computing.agreed("auto", CPU, before).precision == expected
    assert said in caplog.text if said else caplog.text == ""
