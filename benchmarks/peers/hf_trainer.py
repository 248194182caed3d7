"""transformers' Trainer: plain SGD, no clipping, no saving, a test with accuracy each epoch.

python benchmarks/peers/hf_trainer.py --batch 100 --epochs 12
"""

import tempfile
from typing import Any

import numpy as np
import torch
from network import Network, start
from torch import nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from workload import LR, TOLERANCE, Record, Workload, parse, train_and_test


class Samples(Dataset):
    """The windows as the Trainer wants them: one dictionary a sample."""

    def __init__(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        self.inputs, self.targets = torch.from_numpy(inputs), torch.from_numpy(targets)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One sample."""
        return {"inputs": self.inputs[index], "labels": self.targets[index]}


class WithLoss(nn.Module):
    """The network as the Trainer wants it: the loss comes with the output."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Predict and compare."""
        output = self.network(inputs)
        return {"loss": nn.functional.mse_loss(output, labels), "logits": output}


class Recorder(TrainerCallback):
    """Fills the record: an epoch is over when its test is."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Before the first epoch."""
        self.record.start()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """The training loss, at the end of an epoch's steps."""
        self.train_loss = logs.get("loss", 0.0) if "loss" in logs else self.train_loss

    def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
        """After an epoch's test."""
        self.record.end_epoch(
            train_loss=self.train_loss,
            test_loss=metrics["eval_loss"],
            test_accuracy=metrics["eval_accuracy"],
        )


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of predictions within the tolerance."""
    error = np.abs(prediction.predictions - prediction.label_ids)
    return {"accuracy": float(np.mean(error < TOLERANCE))}


def arguments(workload: Workload, folder: str) -> TrainingArguments:
    """What the article's program does, in the Trainer's words."""
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=workload.epochs,
        per_device_train_batch_size=workload.batch,
        per_device_eval_batch_size=workload.batch,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_strategy="epoch",
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )


def main() -> None:
    """Train, test and print the record."""
    workload = parse(__doc__)
    train_set, test_set = (Samples(*arrays) for arrays in train_and_test(workload))
    model = WithLoss(start(workload))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=workload.momentum)
    record = Record()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model,
            arguments(workload, folder),
            train_dataset=train_set,
            eval_dataset=test_set,
            compute_metrics=accuracy,
            callbacks=[Recorder(record)],
            optimizers=(optimizer, None),
        ).train()
    record.print()


if __name__ == "__main__":
    main()
