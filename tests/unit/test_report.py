"""The files a person looks at, made from a made-up run."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from limits import no_file_longer_than
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dfka_dist.errors import RunFailed
from dfka_dist.origin import NO_DATA, ONLY_HERE, PARTIAL_DATA
from dfka_dist.report import MetricsLog, save_samples, write_model_card, write_report

SCORE = {"mAP": 0.9, "accuracy": 0.8}
RESULT: dict[str, Any] = {
    "name": "pets",
    "version": "0.1.0",
    "seed": 7,
    "recipe": "joint",
    "images": "synthesized",
    "start": False,
    "steps": 30,
    "seconds": {"wall": 3700.0, "cpu": 5000.0},
    "phases": [
        {"name": "joint", "steps": 20, "seconds": 2000.0},
        {"name": "fine_tune", "steps": 10, "seconds": 1000.0},
    ],
    "teachers": [
        {
            "name": "cats",
            "task": "multi_label",
            "labels": ["tabby", "<b>lynx</b>"],
            "parameters": 100000,
            "sha256": "0123456789abcdef" * 4,
        }
    ],
    "target": {
        "parameters": 105000,
        "labels": ["tabby", "<b>lynx</b>"],
        "branch_points": {"cats": 4},
    },
    "data_free": {
        "agreement": 0.931,
        "coverage": {
            "tabby": {"share": 0.4, "spread": 0.75},
            "<b>lynx</b>": {"share": 0.2, "spread": 0.0},
        },
    },
    "evaluation": {
        "dataset": "shelter",
        "examples": 1234,
        "teachers": {"mAP": 0.95, "accuracy": 0.912},
        "target": {"mAP": 0.92, "accuracy": 0.876},
        "retention": {"mAP": 0.968, "accuracy": 0.961},
        "per_label": {
            "tabby": {"teacher": 0.977, "target": 0.944},
            "<b>lynx</b>": {"teacher": None, "target": None},
        },
        "per_teacher": {
            "cats": {
                "dataset": "shelter",
                "examples": 1234,
                "teacher": SCORE,
                "target": SCORE,
                "retention": {"mAP": 1.0, "accuracy": 1.0},
            }
        },
    },
    "unscored": None,
    "chosen": "fine-tuned",
    "candidates": [],
    "depths": [],
}
LABELS = RESULT["target"]["labels"]
POOLED = ("dataset", "examples", "teachers", "target", "retention", "per_label")


def record(global_step: int, phase: str = "joint", **losses: float) -> dict[str, Any]:
    return {
        "phase": phase,
        "step": global_step,
        "steps": 20,
        "global_step": global_step,
        "seconds": float(global_step),
        "losses": losses or {"one_hot": 1 / global_step},
        "images_per_second": 400.0,
        "waits": {"teachers": 0.25, "trainer": 0.125},
    }


def with_evaluation(value: Any, unscored: str | None) -> dict[str, Any]:
    return {**copy.deepcopy(RESULT), "evaluation": value, "unscored": unscored}


def without_data() -> dict[str, Any]:
    return with_evaluation(None, NO_DATA)


def without_pooled_figures() -> dict[str, Any]:
    return with_evaluation({**RESULT["evaluation"], **dict.fromkeys(POOLED)}, PARTIAL_DATA)


def learned_from(images: str, **more: Any) -> dict[str, Any]:
    return {**copy.deepcopy(RESULT), "recipe": "distill", "images": images, **more}


def teacherless() -> dict[str, Any]:
    """Learned from an archive, and scored alone."""
    made = learned_from("archive")
    made["teachers"][0]["sha256"] = ""
    scores = made["evaluation"]
    scores["teachers"] = scores["retention"] = None
    scores["per_label"] = {label: {"teacher": None, "target": 0.5} for label in LABELS}
    scores["per_teacher"]["cats"] |= {"teacher": None, "retention": None}
    return made


def with_depths() -> dict[str, Any]:
    """A result at depth 4, and two networks beside it that hold more and score higher."""
    made = copy.deepcopy(RESULT)
    made["candidates"] = [network("joint 20", 105000, 0.9), network("fine-tuned", 105000, 0.96)]
    made["depths"] = [
        network(f"depth {depth}", parameters, kept) | {"branch_points": {"cats": depth}}
        for depth, parameters, kept in ((1, 145000, 0.98), (2, 125000, 0.97))
    ]
    return made


def network(name: str, parameters: int, kept: float) -> dict[str, Any]:
    return {
        "name": name,
        "parameters": parameters,
        "agreement": 0.9,
        "target": SCORE,
        "retention": {"mAP": 1.0, "accuracy": kept},
        "per_teacher": {"cats": {"mAP": 1.0, "accuracy": 1.0}},
    }


def report(folder: Path, result: dict[str, Any] = RESULT, **more: Any) -> str:
    records = more.get("records", [record(10), record(20), record(30, "fine_tune", distill=0.5)])
    said = more.get("configuration", "run: {name: pets}")
    write_report(folder, result, records, said, by_label=more.get("by_label", True))
    return (folder / "report.html").read_text("utf-8")


def test_rows_of_samples_are_labels_only_where_labels_were_asked_for(tmp_path: Path) -> None:
    save_samples(torch.rand(4, 1, 8, 8), ["", ""], tmp_path / "samples.png")
    asked, not_asked = (report(tmp_path, by_label=own) for own in (True, False))
    assert "one row a label" in asked and "one row a label" not in not_asked
    assert "never asked for a label" in not_asked


def card(folder: Path, result: dict[str, Any] = RESULT, code: Sequence[str] = ()) -> str:
    write_model_card(folder, result, code)
    return (folder / "README.md").read_text("utf-8")


# the metrics log


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(e.step, round(e.value, 6)) for e in events.Scalars(tag)]


def test_records_are_one_json_line_each(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write(record(10))
        log.write(record(20))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record(10), record(20)]


def test_a_record_is_on_disk_before_the_log_is_closed(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write(record(10))
        assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1


def test_records_are_kept(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write(record(10))
    assert log.records == [record(10)]


def test_losses_go_to_tensorboard_by_phase_and_term(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write(record(10, one_hot=0.5))
        log.write(record(20, one_hot=0.25))
    assert scalars(tmp_path, "joint/one_hot") == [(10, 0.5), (20, 0.25)]


def test_waits_go_to_tensorboard(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write(record(10))
    assert scalars(tmp_path, "joint/waits_teachers") == [(10, 0.25)]


def test_a_resumed_run_keeps_the_records_before_its_checkpoint(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write(record(10))
        log.write(record(20, one_hot=9.0))
    with MetricsLog(tmp_path) as log:
        log.write(record(20, one_hot=1.0))
    assert [r["global_step"] for r in log.records] == [10, 20]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2


def test_a_resumed_run_replaces_what_tensorboard_showed_of_later_steps(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write(record(10, one_hot=0.5))
        log.write(record(20, one_hot=9.0))
    with MetricsLog(tmp_path) as log:
        log.write(record(20, one_hot=1.0))
    assert scalars(tmp_path, "joint/one_hot") == [(10, 0.5), (20, 1.0)]


def test_steps_that_are_done_again_replace_what_is_there(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for step, value in [(10, 0.5), (20, 9.0), (30, 9.0)]:
            log.write(record(step, one_hot=value))
        log.write(record(20, one_hot=1.0))
    assert [r["global_step"] for r in log.records] == [10, 20]
    assert scalars(tmp_path, "joint/one_hot") == [(10, 0.5), (20, 1.0)]


def test_a_line_that_a_killed_run_left_half_written_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record(10)) + '\n{"phase": "jo')
    assert MetricsLog(tmp_path).records == [record(10)]


def test_an_earlier_start_of_a_run_adds_nothing_to_the_records_of_a_later_one(
    tmp_path: Path,
) -> None:
    earlier = MetricsLog(tmp_path)
    earlier.write(record(10))
    earlier.write(record(20))
    with MetricsLog(tmp_path) as later:
        earlier.write(record(30))
        later.write(record(20))
        with pytest.raises(RunFailed, match="another start of this run writes to "):
            earlier.write(record(40))
        later.write(record(30))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["global_step"] for line in lines] == [10, 20, 30]


@pytest.mark.parametrize("room", [0, 60, 1000])
def test_records_that_find_no_room_are_written_with_a_later_one(tmp_path: Path, room: int) -> None:
    """Whichever file is full first."""
    told: list[str] = []
    with MetricsLog(tmp_path, told.append) as log:
        log.write(record(10, one_hot=0.5))
        largest = max(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        with no_file_longer_than(largest + room if room else 1):
            for step in range(20, 200, 10):
                log.write(record(step, one_hot=0.25))
        log.write(record(200, one_hot=0.25))
    steps = [*range(10, 210, 10)]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["global_step"] for line in lines] == steps
    assert [r["global_step"] for r in log.records] == steps
    assert [step for step, _ in scalars(tmp_path, "joint/one_hot")] == steps
    (said,) = told
    assert said == f"{tmp_path / 'metrics.jsonl'} waits until it can be written: File too large"


def test_records_outlast_event_files_that_cannot_be_begun(tmp_path: Path) -> None:
    """The folder's place is taken."""
    told: list[str] = []
    (tmp_path / "tensorboard").touch()
    with MetricsLog(tmp_path, told.append) as log:
        for step in (10, 20, 30):
            log.write(record(step))
        (tmp_path / "tensorboard").unlink()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["global_step"] for line in lines] == [10, 20, 30]
    assert len(told) == 1 and len(scalars(tmp_path, "joint/waits_teachers")) == 3


def test_what_found_no_room_is_written_at_the_end(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, [].append) as log:
        with no_file_longer_than(1):
            log.write(record(10))
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1


# the sample sheet


def sheet(
    folder: Path, images: torch.Tensor, labels: list[str], more: int = 0
) -> np.ndarray[Any, Any]:
    save_samples(images, labels, folder / "samples.png", more=more)
    return np.asarray(Image.open(folder / "samples.png").convert("RGB"))


def test_samples_are_drawn_in_rows(tmp_path: Path) -> None:
    red = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 8, 8)
    blue = torch.tensor([0, 0, 1.0])[:, None, None].expand(3, 8, 8)
    drawn = sheet(tmp_path, torch.stack([red, red, blue, blue]), ["red", "blue"])
    middle = [drawn[len(drawn) * quarter // 4, -20].tolist() for quarter in (1, 3)]
    assert middle == [[255, 0, 0], [0, 0, 255]]


def test_samples_are_not_smoothed(tmp_path: Path) -> None:
    checks = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float().expand(1, 1, 8, 8)
    drawn = sheet(tmp_path, checks, ["a"])
    assert set(np.unique(drawn[:, -56:])) == {0, 255}


def test_samples_of_large_images_are_made_smaller(tmp_path: Path) -> None:
    assert len(sheet(tmp_path, torch.rand(2, 3, 224, 224), ["a", "b"])) < 240


def test_a_hundred_of_a_thousand_labels_make_a_sheet_that_opens(tmp_path: Path) -> None:
    shown = [f"class {n}" for n in range(100)]
    drawn = sheet(tmp_path, torch.rand(100, 1, 8, 8), shown, more=900)
    assert len(drawn) < 8000


def test_a_sheet_has_room_for_a_line_about_labels_that_it_leaves_out(tmp_path: Path) -> None:
    all_of_them, some = (sheet(tmp_path, torch.rand(2, 1, 8, 8), ["a"], more) for more in (0, 9))
    assert len(some) > len(all_of_them)
    assert (some[len(all_of_them) :] < 128).any()


def test_a_label_with_dollar_signs_is_no_formula(tmp_path: Path) -> None:
    assert sheet(tmp_path, torch.rand(1, 1, 8, 8), [r"$\frac$"]).size


# the report


def test_report_needs_no_network(tmp_path: Path) -> None:
    save_samples(torch.rand(4, 1, 8, 8), ["a", "b"], tmp_path / "samples.png")
    assert re.findall(r"https?://|//cdn|@import|url\(", report(tmp_path)) == []


def test_report_holds_the_samples(tmp_path: Path) -> None:
    save_samples(torch.rand(4, 1, 8, 8), ["a", "b"], tmp_path / "samples.png")
    assert 'src="data:image/png;base64,iVBOR' in report(tmp_path)


def test_report_can_do_without_samples(tmp_path: Path) -> None:
    assert "<img" not in report(tmp_path)


@pytest.mark.parametrize("figure", ["87.6 %", "91.2 %", "96.1 %"])
def test_report_leads_with_accuracy_and_retention(tmp_path: Path, figure: str) -> None:
    assert figure in report(tmp_path).split("<section>")[0]


def test_report_falls_back_to_precision_where_there_is_no_accuracy(tmp_path: Path) -> None:
    several = copy.deepcopy(RESULT)
    for key in ("target", "teachers", "retention"):
        several["evaluation"][key]["accuracy"] = None
    assert "92.0 %" in report(tmp_path, several).split("<section>")[0]


def test_report_says_that_there_were_no_test_data(tmp_path: Path) -> None:
    assert "There were no test data" in report(tmp_path, without_data())


def test_report_without_test_data_leads_with_agreement(tmp_path: Path) -> None:
    assert "93.1 %" in report(tmp_path, without_data()).split("<section>")[0]


def test_report_says_that_no_data_set_covers_all_labels(tmp_path: Path) -> None:
    assert "No single data set covers all labels" in report(tmp_path, without_pooled_figures())


def test_report_shows_a_label_beside_its_teacher(tmp_path: Path) -> None:
    row = report(tmp_path).split("Scores per label")[1].split("<td>tabby</td>")[1].split("</tr>")[0]
    assert [x in row for x in ("94.4 %", "97.7 %", "\N{MINUS SIGN}3.3")] == [True] * 3


def test_report_shows_each_teacher(tmp_path: Path) -> None:
    assert "Scores per teacher" in report(tmp_path)


def test_report_shows_coverage(tmp_path: Path) -> None:
    row = (
        report(tmp_path).split("Without test data")[1].split("<td>tabby</td>")[1].split("</tr>")[0]
    )
    assert re.findall(r'class="n">([^<]*)<', row) == ["40.0 %", "0.75"]


def test_report_draws_every_loss_of_every_phase(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert re.findall(r'aria-label="(\w+) over the steps"', page) == ["one_hot", "distill"]


def test_report_draws_a_loss_over_the_whole_run(tmp_path: Path) -> None:
    records = [record(10, x=2.0), record(20, x=1.0), record(30, "fine_tune", x=0.0)]
    drawn = re.findall(r'points="([^"]*)"', report(tmp_path, records=records))
    assert drawn == ["0.00,0.00 50.00,50.00", "100.00,100.00"]


def test_report_of_a_long_run_stays_small(tmp_path: Path) -> None:
    records = [record(step) for step in range(1, 20001)]
    assert len(report(tmp_path, records=records)) < 40_000


def test_report_survives_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    records = [record(10, x=2.0), record(20, x=float("nan"))]
    assert "nan" not in re.findall(r'points="([^"]*)"', report(tmp_path, records=records))[0]


def test_report_can_do_without_records(tmp_path: Path) -> None:
    assert "left no records" in report(tmp_path, records=[])


def test_report_says_what_the_steps_waited_for(tmp_path: Path) -> None:
    assert "teachers 25.0 %, trainer 12.5 %" in report(tmp_path)


def test_report_accounts_for_all_of_the_time(tmp_path: Path) -> None:
    # 3700 s in all, 3000 s in the phases.
    row = report(tmp_path).split("start, scores and saving</td>")[1].split("</tr>")[0]
    assert "11:40" in row


def test_report_sets_the_target_beside_its_teachers(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert "1.05 times the largest teacher" in page.replace("&#39;", "'")


def test_report_shortens_the_checksum(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert "0123456789ab<" in page


@pytest.mark.parametrize("text", ["<b>lynx</b>", "<script>"])
def test_report_shows_foreign_text_as_text(tmp_path: Path, text: str) -> None:
    assert text not in report(tmp_path, configuration="a: <script>alert(1)</script>")


def test_report_is_the_same_each_time(tmp_path: Path) -> None:
    assert report(tmp_path) == report(tmp_path)


# the curve over depths


def rows_of(table: str) -> list[list[str]]:
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]


def test_every_depth_has_a_point_and_a_row_and_the_chosen_one_is_marked(tmp_path: Path) -> None:
    section = report(tmp_path, with_depths()).split("What keeping more of the teachers gains")[1]
    section = section.split("</section>")[0]
    points = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', section)
    assert points == [("0.00", "100.00", "3"), ("50.00", "50.00", "1.8"), ("100.00", "0.00", "1.8")]
    assert 'points="0.00,100.00 50.00,50.00 100.00,0.00 "' in section
    assert [row[:4] for row in rows_of(section)] == [
        ["<b>4, chosen</b>", "105,000", "1.05", "96.00 %"],
        ["2", "125,000", "1.25", "97.00 %"],
        ["1", "145,000", "1.45", "98.00 %"],
    ]


def test_without_other_depths_the_report_says_why(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert "training.branch_steps is 0" in page and "<circle" not in page


def test_what_the_result_was_chosen_from_is_a_row_each(tmp_path: Path) -> None:
    section = report(tmp_path, with_depths()).split("What the result was chosen from")[1]
    names = [row[0] for row in rows_of(section.split("</section>")[0])]
    assert names == ["joint 20", "<b>fine-tuned, chosen</b>"]


# where a target comes from

NEVER_REAL = "it never saw a real image of what it names"
NONE_OF_THEIRS = "none of its training data"
TOLD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "joint": (RESULT, ["trained only on synthesized images", NEVER_REAL, NONE_OF_THEIRS]),
    "noise": (learned_from("noise"), ["trained only on noise images", NONE_OF_THEIRS]),
    "archive": (
        learned_from("archive"),
        ["trained only on images that an earlier run had synthesized", NEVER_REAL, NONE_OF_THEIRS],
    ),
    "teacherless": (
        teacherless(),
        ["what 1 trained classifier had said of images", NEVER_REAL, NONE_OF_THEIRS],
    ),
    "folder": (
        learned_from("folder"),
        ["the images of a folder, without their labels", "trained only on the images of a folder"],
    ),
    "a saved target": (
        learned_from("archive", start=True),
        ["and a target that had learned before", "went on from a saved target"],
    ),
}
UNKNOWN = ("folder", "a saved target")
"""Whose images may have been real, or the teachers' own."""


@pytest.mark.parametrize("case", TOLD)
def test_a_model_card_says_what_its_network_learned_from_and_no_more(
    tmp_path: Path, case: str
) -> None:
    result, told = TOLD[case]
    made = card(tmp_path, result)
    assert [part for part in told if part not in made] == []
    if case in UNKNOWN:
        untold = (NEVER_REAL, "none of its", "data-free", "did not learn from")
        assert [part for part in untold if part in made] == []
    else:
        assert "data-free" in made and "which the run did not learn from" in made


@pytest.mark.parametrize("case", TOLD)
def test_a_report_promises_that_training_data_were_not_used_only_where_that_is_known(
    tmp_path: Path, case: str
) -> None:
    assert (NONE_OF_THEIRS in report(tmp_path, TOLD[case][0])) == (case not in UNKNOWN)


@pytest.mark.parametrize("images", ["noise", "digits", "parquet", "idx", "folder", "archive"])
def test_only_what_was_synthesized_is_called_so(tmp_path: Path, images: str) -> None:
    made = learned_from(images, evaluation=None, unscored=NO_DATA)
    page, text = report(tmp_path, made), card(tmp_path, made)
    assert "synthesized images" not in page + text
    assert "There are none: the target learned from" in page


def test_a_target_without_teachers_is_shown_alone(tmp_path: Path) -> None:
    page, text = report(tmp_path, teacherless()), card(tmp_path, teacherless())
    head, scores = page.split("<section>")[0], page.split("Scores per label")[1]
    assert "87.6 %" in head and "teachers side by side" not in head and "retention" not in head
    assert "The teachers were not there" in head
    assert "teacher</th>" not in scores.split("</section>")[0]
    assert "| top-1 accuracy | 87.6 % |\n" in text and "side by side" not in text
    assert "| cats | shelter | 1,234 | 80.0 % | \N{EN DASH} | 90.0 % | \N{EN DASH} |" in text


def test_agreement_is_not_to_be_compared_between_runs(tmp_path: Path) -> None:
    made = without_data()
    assert f"93.1 %. {ONLY_HERE}" in report(tmp_path, made)
    assert f"93.1 % of the cases. {ONLY_HERE}" in card(tmp_path, made)


# the model card


def test_model_card_says_how_to_load(tmp_path: Path) -> None:
    assert "net = TargetNet.from_pretrained(folder)" in card(tmp_path)


def test_model_card_gives_the_scores(tmp_path: Path) -> None:
    assert "| top-1 accuracy | 87.6 % | 91.2 % | 96.1 % |" in card(tmp_path)


def test_model_card_says_that_there_are_no_scores(tmp_path: Path) -> None:
    assert "There were no test data" in card(tmp_path, without_data())


def test_model_card_says_that_no_data_set_covers_all_labels(tmp_path: Path) -> None:
    assert "No single data set covers all labels" in card(tmp_path, without_pooled_figures())


def test_model_card_names_teachers(tmp_path: Path) -> None:
    assert "| cats | multi label |" in card(tmp_path)


def test_model_card_keeps_a_table_whole_whatever_a_label_holds(tmp_path: Path) -> None:
    odd = copy.deepcopy(RESULT)
    odd["teachers"][0]["labels"] = ["a|b\nc"]
    assert r"| a\|b c |" in card(tmp_path, odd)


def test_a_model_card_says_which_code_its_network_needs(tmp_path: Path) -> None:
    loading = 'from_pretrained(folder, allow_code=["my_package.networks"])'
    assert loading in card(tmp_path, code=["my_package.networks"])
    assert "from_pretrained(folder)" in card(tmp_path)
