"""Lightning's Trainer: no logger, no progress bar, no checkpoints, a test each epoch.

python benchmarks/peers/lightning_trainer.py --batch 100 --epochs 12
"""

import lightning
import torch
from network import start
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from workload import LR, TOLERANCE, Record, Workload, parse, train_and_test

Batch = list[torch.Tensor]


class Module(lightning.LightningModule):
    """The network, its loss and its metrics."""

    def __init__(self, workload: Workload, record: Record) -> None:
        super().__init__()
        self.network, self.record = start(workload), record
        self.momentum = workload.momentum

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD, or with momentum."""
        return torch.optim.SGD(self.parameters(), lr=LR, momentum=self.momentum)

    def on_train_start(self) -> None:
        """Before the first epoch."""
        self.record.start()

    def training_step(self, batch: Batch) -> torch.Tensor:
        """The loss of one batch."""
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.network(inputs), targets)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch) -> None:
        """Loss and accuracy of one batch."""
        inputs, targets = batch
        error = self.network(inputs) - targets
        self.log("test_loss", error.square().mean())
        self.log("test_accuracy", (error.abs() < TOLERANCE).float().mean())


class Recorder(lightning.Callback):
    """Fills the record: an epoch is over when its test is and its metrics are there."""

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Module) -> None:
        """After an epoch's test."""
        names = ("train_loss", "test_loss", "test_accuracy")
        module.record.end_epoch(**{name: trainer.callback_metrics[name].item() for name in names})


def main() -> None:
    """Train, test and print the record."""
    workload = parse(__doc__)
    train_set, test_set = (
        TensorDataset(*map(torch.from_numpy, arrays)) for arrays in train_and_test(workload)
    )
    record = Record()
    lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=workload.epochs,
        callbacks=[Recorder()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    ).fit(
        Module(workload, record),
        DataLoader(train_set, batch_size=workload.batch, shuffle=True),
        DataLoader(test_set, batch_size=workload.batch),
    )
    record.print()


if __name__ == "__main__":
    main()
