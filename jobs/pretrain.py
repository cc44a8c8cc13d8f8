"""python jobs/pretrain.py --config jobs/presets/digits.yaml --output DIR

Make the teachers of a configuration: every teacher is trained on all training images of the first
data set that is for it, with its own label columns. For demonstrations and tests: real ones come
from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import save
from torch import Tensor, nn

from dfka_dist import commandline
from dfka_dist.config import EvaluationSpec, RunConfig, TeacherSpec
from dfka_dist.data import LabelledImages, load_evaluation
from dfka_dist.errors import InputError, some
from dfka_dist.evaluation import evaluate
from dfka_dist.losses import cross_entropy, probabilities
from dfka_dist.models.preprocessing import Preprocessing
from dfka_dist.models.sources import build


def main(argv: Sequence[str] | None = None) -> None:
    """Train, score and write every teacher."""
    parser = commandline.parser(__doc__ or "")
    parser.add_argument(
        "--epochs",
        type=commandline.positive,
        default=30,
        help="passes over the training images (default: 30)",
    )
    arguments = parser.parse_args(argv)
    config = commandline.configuration(arguments)
    folder = commandline.output_folder(arguments, config, ["manifest.json"])
    data = {s.name: _data(config, s, f"teachers.{i}") for i, s in enumerate(config.teachers)}
    if arguments.dry_run:
        for name, (train, _) in data.items():
            print(f"would train {name} on {len(train)} images of {train.name} into {folder}")
        return
    commandline.emptied(folder, ["manifest.json"])
    command = "python jobs/pretrain.py " + " ".join(shlex.quote(a) for a in (argv or sys.argv[1:]))
    manifest = {
        "command": command,
        "teachers": [
            _make(s, config, *data[s.name], folder, arguments.epochs) for s in config.teachers
        ],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _data(
    config: RunConfig, teacher: TeacherSpec, key: str
) -> tuple[LabelledImages, LabelledImages]:
    """The images to train a teacher on, and those to score it on.

    Args:
        key: where the teacher stands in the configuration, for errors.

    Raises:
        InputError: there are none, they cannot be read, or they lack a label of the teacher's.
    """
    for name, spec in config.evaluations.items():
        if spec.teachers == "all" or teacher.name in spec.teachers:
            train, test = (
                load_evaluation(
                    name,
                    EvaluationSpec.model_validate(spec.model_dump() | {"split": split}),
                    teacher.labels,
                )
                for split in ("train", "test")
            )
            missing = [label for label in teacher.labels if label not in train.labels]
            if missing:
                what = f"the data {name} have no {some(map(repr, missing))}"
                raise InputError(f"{key}.labels", what, f"some of {some(train.labels, missing[0])}")
            return train, test
    raise InputError("evaluations", f"has no data set for {teacher.name}", "one to train it on")


def _make(
    spec: TeacherSpec,
    config: RunConfig,
    train: LabelledImages,
    test: LabelledImages,
    folder: Path,
    epochs: int,
) -> dict[str, Any]:
    torch.manual_seed(config.run.seed)
    network = build(spec, spec.name)
    preprocessing = Preprocessing(spec.input)
    images, truth = (torch.cat(parts) for parts in zip(*train.batches(1000), strict=True))
    _train(network, preprocessing(images), _columns(truth, train, spec), spec, epochs)

    def predict(batch: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return {spec.name: probabilities(network(preprocessing(batch)), spec.task)}

    own = {spec.name: spec.labels}
    scores = evaluate([(test, [spec.name])], own, own, spec.labels, predict, predict)
    content = save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    (folder / f"{spec.name}.safetensors").write_bytes(content)
    return {
        "name": spec.name,
        "labels": spec.labels,
        "sha256": hashlib.sha256(content).hexdigest(),
        "test": scores and scores["per_teacher"][spec.name]["teacher"],
    }


def _columns(truth: Tensor, data: LabelledImages, spec: TeacherSpec) -> Tensor:
    return truth[:, [data.labels.index(label) for label in spec.labels]].float()


def _train(
    network: nn.Module,
    images: Tensor,
    truth: Tensor,
    spec: TeacherSpec,
    epochs: int,
    size: int = 64,
) -> None:
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, weight_decay=1e-4)
    steps = epochs * (len(images) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in track(range(epochs), description=spec.name):
        for rows in torch.split(torch.randperm(len(images)), size)[: len(images) // size]:
            loss = cross_entropy(network(_moved(images[rows])), truth[rows], spec.task)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    network.eval()


def _moved(images: Tensor) -> Tensor:
    """The same pictures, up to two pixels away."""
    shifts = torch.randint(-2, 3, (2,)).tolist()
    return images.roll(shifts, dims=(2, 3))


if __name__ == "__main__":
    sys.exit(commandline.guarded(main)())
