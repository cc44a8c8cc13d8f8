"""The runs behind the tables about the method, and the tables that are made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dfka_dist.benchmarks import quality, selection
from dfka_dist.benchmarks.rows import is_done
from dfka_dist.config import PRESETS, EvaluationSpec, RunConfig
from dfka_dist.errors import InputError
from dfka_dist.loading import dump, load

FASHION = PRESETS / "fashion.yaml"
RECIPES = {
    "paper": "paper",
    "paper without link": "paper",
    "noise images": "distill",
    "real images": "distill",
}
"""Of the rows that are not joint."""
MAKERS = pytest.mark.parametrize("made", [quality, selection], ids=["quality", "selection"])


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load(FASHION, [])


@MAKERS
def test_every_run_of_a_table_is_a_configuration(made: ModuleType, config: RunConfig) -> None:
    for row in made.rows(config, 100, Path("/somewhere")):
        recipe = load(FASHION, row.changes).training.recipe
        assert recipe == RECIPES.get(row.name, "joint")


@MAKERS
def test_a_table_does_not_depend_on_the_recipe_of_its_configuration(made: ModuleType) -> None:
    other = load(PRESETS / "paper.yaml", ["target.branch=best"])
    for row in made.rows(other, 100, Path("/somewhere")):
        run = load(PRESETS / "paper.yaml", ["target.branch=best", *row.changes])
        assert run.training.recipe == RECIPES.get(row.name, "joint")
        assert run.target.branch == "last"


@MAKERS
def test_every_run_of_a_table_has_its_own_folder(made: ModuleType, config: RunConfig) -> None:
    folders = [row.folder for row in made.rows(config, 100, Path("/somewhere"))]
    assert len(set(folders)) == len(folders)


def test_recipes_beside_joint_let_the_target_make_as_many_steps(config: RunConfig) -> None:
    rows = {
        row.name: load(FASHION, row.changes).training for row in quality.rows(config, 80, Path())
    }
    joint, bare = rows["joint"], rows["without rehearsal"]
    steps = joint.steps * joint.dual_steps + joint.rehearsal_steps
    assert bare.steps == joint.steps + joint.rehearsal_steps // quality.REHEARSALS
    assert rows["noise images"].steps == rows["real images"].steps == steps
    assert 2 * 4 * rows["paper"].block_steps == pytest.approx(steps, abs=8)


def test_the_row_paper_has_the_losses_and_images_of_the_preset_paper(config: RunConfig) -> None:
    rows = {each.name: each.changes for each in quality.rows(config, 80, Path())}
    row, preset = load(FASHION, rows["paper"]), load(PRESETS / "paper.yaml", [])
    assert row.losses == preset.losses
    for part in ("recipe", "sampled_labels", "jitter"):
        assert getattr(row.training, part) == getattr(preset.training, part)


@pytest.mark.parametrize(("weight", "row"), [(0.0, "with group"), (0.3, "without group")])
def test_the_group_term_is_there_in_one_row_and_not_in_another(weight: float, row: str) -> None:
    config = load(FASHION, [f"losses.group={weight}"])
    rows = {each.name: each.changes for each in quality.rows(config, 80, Path())}
    own = {name: load(FASHION, [f"losses.group={weight}", *rows[name]]) for name in ("joint", row)}
    assert [bool(each.losses.group) for each in own.values()] == [weight > 0, weight == 0]


def test_images_that_are_scored_on_are_nobodys_training(config: RunConfig) -> None:
    source = EvaluationSpec(source="parquet:test.parquet", labels=config.labels)
    undivided = config.model_copy(update={"evaluations": {"own": source}})
    assert "real images" not in {row.name for row in quality.rows(undivided, 20, Path())}


def test_at_least_two_runs_are_collapsed_on_purpose() -> None:
    assert sum(name.startswith("collapsed") for name in selection.SPOILED) >= 2
    assert len(selection.SPOILED) == 10


def result(seed: int, accuracy: float) -> dict[str, Any]:
    """What the table takes from a result.json."""

    def brief(name: str, less: float) -> dict[str, Any]:
        scores = {"accuracy": accuracy - less, "mAP": accuracy - less}
        return {
            "name": name,
            "agreement": 0.9 - less,
            "parameters": 7,
            "target": scores,
            "retention": scores,
        }

    return {
        "seed": seed,
        "chosen": "fine-tuned",
        "candidates": [brief("rehearsal 2", 0.1), brief("fine-tuned", 0.0)],
        "depths": [brief("depth 1", 0.2) | {"branch_points": {"one": 1}}],
        "dual_losses": {"one": {"1": 0.1, "2": 0.2}},
        "target": {"branch_points": {"one": 2}},
        "evaluation": {"dataset": "fashion"},
        "phases": [
            {"name": "joint", "steps": 2, "seconds": 1.5},
            *({"name": n, "steps": 2, "seconds": 9.0} for n in ("filters", "branches", "chosen")),
            {"name": "fine_tune", "steps": 2, "seconds": 9.0},
        ],
        "peak_bytes": 2**30,
    }


@pytest.fixture
def kept(config: RunConfig, tmp_path: Path) -> Path:
    """A folder in which every row of the quality table was run before."""
    source = tmp_path / "config.yaml"
    source.write_text(dump(config), encoding="utf-8")
    for row in quality.rows(config, 80, tmp_path):
        folder = tmp_path / row.folder
        folder.mkdir()
        identity = [sha256(source.read_bytes()).hexdigest(), *row.changes, f"run.seed={row.seed}"]
        own = {"identity": identity, "result": result(row.seed, 0.8 + row.seed / 10)}
        (folder / "row.json").write_text(json.dumps(own), encoding="utf-8")
    return tmp_path


@pytest.fixture
def table(config: RunConfig, kept: Path) -> dict[str, Any]:
    said: list[str] = []
    made = quality.table(config, kept / "config.yaml", 80, kept, said.append)
    assert all(line.endswith("done before") for line in said)
    return made


def test_rows_that_are_done_are_not_run_again(table: dict[str, Any]) -> None:
    assert {"joint", "with group", "paper", "real images"} <= set(table["rows"])


def test_what_follows_the_training_of_depth_b_is_not_counted(table: dict[str, Any]) -> None:
    assert {row["seconds"] for row in table["rows"].values()} == {1.5}


def test_a_row_is_the_mean_of_its_seeds(table: dict[str, Any]) -> None:
    assert table["rows"]["joint"]["accuracy"] == pytest.approx(0.9)
    assert table["rows"]["with group"]["accuracy"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("row", "less"),
    [
        ("joint without fine-tune", 0.1),
        ("joint regrouped at argmin", 0.2),
    ],
)
def test_rows_that_differ_after_training_share_the_run(
    table: dict[str, Any], row: str, less: float
) -> None:
    assert table["rows"][row]["accuracy"] == pytest.approx(0.9 - less)


def test_a_table_has_a_line_for_each_row(table: dict[str, Any]) -> None:
    lines = quality.text(table).splitlines()
    assert sum(line.startswith("| ") for line in lines) == 1 + len(table["rows"])


def draws(draw: Callable[[Any, Path], None], made: Any, path: Path) -> bytes:
    draw(made, path)
    return path.read_bytes()[:4]


def test_tables_are_drawn(table: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"agreement": a, "accuracy": a, "mAP": a} for a in (0.1, 0.5)]
    rho = {"accuracy": 1.0, "mAP": 1.0}
    chosen = {
        "checkpoints": rows,
        "runs": rows,
        "spearman": {"checkpoints": rho, "runs": rho},
    }
    assert draws(quality.draw, table, tmp_path / "a.png") == b"\x89PNG"
    assert draws(selection.draw, chosen, tmp_path / "b.png") == b"\x89PNG"


@MAKERS
def test_a_configuration_without_data_has_no_table(made: ModuleType, tmp_path: Path) -> None:
    bare = load(FASHION, ["evaluations={}"])
    with pytest.raises(InputError, match="evaluations"):
        made.rows(bare, 80, tmp_path)


def test_a_row_is_done_as_long_as_it_is_the_same(config: RunConfig, kept: Path) -> None:
    source = kept / "config.yaml"
    assert all(is_done(row, source, kept) for row in quality.rows(config, 80, kept))
    others = [row for row in quality.rows(config, 96, kept) if row.name == "joint"]
    assert not any(is_done(row, source, kept) for row in others)
    source.write_text(dump(config).replace("seed: 0", "seed: 1"), encoding="utf-8")
    assert not any(is_done(row, source, kept) for row in quality.rows(config, 80, kept))
