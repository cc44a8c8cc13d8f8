"""The files a person looks at, made from a made-up run."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dfka_dist.report import MetricsLog, save_samples, write_model_card, write_report

SCORE = {"mAP": 0.9, "accuracy": 0.8}
RESULT: dict[str, Any] = {
    "name": "pets",
    "version": "0.1.0",
    "seed": 7,
    "recipe": "joint",
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
}
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


def with_evaluation(value: Any) -> dict[str, Any]:
    return {**copy.deepcopy(RESULT), "evaluation": value}


def without_pooled_figures() -> dict[str, Any]:
    return with_evaluation({**RESULT["evaluation"], **dict.fromkeys(POOLED)})


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
        time.sleep(1.1)  # event files are read in the order of the second in their names
        log.write(record(20, one_hot=1.0))
    assert [r["global_step"] for r in log.records] == [10, 20]
    assert scalars(tmp_path, "joint/one_hot") == [(10, 0.5), (20, 1.0)]


def test_a_line_that_a_killed_run_left_half_written_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record(10)) + '\n{"phase": "jo')
    assert MetricsLog(tmp_path).records == [record(10)]


# the sample sheet


def sheet(folder: Path, images: torch.Tensor, labels: list[str]) -> np.ndarray[Any, Any]:
    save_samples(images, labels, folder / "samples.png")
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


def test_a_thousand_labels_still_make_a_sheet_that_opens(tmp_path: Path) -> None:
    drawn = sheet(tmp_path, torch.rand(1000, 1, 8, 8), [f"class {n}" for n in range(1000)])
    assert len(drawn) < 8000


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
    assert "There were no test data" in report(tmp_path, with_evaluation(None))


def test_report_without_test_data_leads_with_agreement(tmp_path: Path) -> None:
    assert "93.1 %" in report(tmp_path, with_evaluation(None)).split("<section>")[0]


def test_report_says_that_no_data_set_covers_all_labels(tmp_path: Path) -> None:
    assert "No single data set covers all labels" in report(tmp_path, without_pooled_figures())


def test_report_shows_a_label_beside_its_teacher(tmp_path: Path) -> None:
    row = report(tmp_path).split("Scores per label")[1].split("<td>tabby</td>")[1].split("</tr>")[0]
    assert [x in row for x in ("94.4 %", "97.7 %", "\N{MINUS SIGN}3.3")] == [True] * 3


def test_report_shows_each_teacher(tmp_path: Path) -> None:
    assert "Scores per teacher" in report(tmp_path)


def test_report_shows_coverage(tmp_path: Path) -> None:
    row = report(tmp_path).split("Without data")[1].split("<td>tabby</td>")[1].split("</tr>")[0]
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


# the model card


def test_model_card_says_how_to_load(tmp_path: Path) -> None:
    assert "net = TargetNet.from_pretrained(folder)" in card(tmp_path)


def test_model_card_gives_the_scores(tmp_path: Path) -> None:
    assert "| top-1 accuracy | 87.6 % | 91.2 % | 96.1 % |" in card(tmp_path)


def test_model_card_says_that_there_are_no_scores(tmp_path: Path) -> None:
    assert "There are none" in card(tmp_path, with_evaluation(None))


def test_model_card_says_that_no_data_set_covers_all_labels(tmp_path: Path) -> None:
    assert "No single data set covers all labels" in card(tmp_path, without_pooled_figures())


def test_model_card_names_teachers(tmp_path: Path) -> None:
    assert "| cats | multi label |" in card(tmp_path)


def test_model_card_says_what_it_was_trained_on(tmp_path: Path) -> None:
    assert "trained on synthesized images only" in card(tmp_path)


def test_model_card_keeps_a_table_whole_whatever_a_label_holds(tmp_path: Path) -> None:
    odd = copy.deepcopy(RESULT)
    odd["teachers"][0]["labels"] = ["a|b\nc"]
    assert r"| a\|b c |" in card(tmp_path, odd)


def test_a_model_card_says_which_code_its_network_needs(tmp_path: Path) -> None:
    loading = 'from_pretrained(folder, allow_code=["my_package.networks"])'
    assert loading in card(tmp_path, code=["my_package.networks"])
    assert "from_pretrained(folder)" in card(tmp_path)
