"""Lightning with our optimizer: `configure_optimizers` makes it; precision, accumulation and checkpoints are the Trainer's.

python examples/lightning_module.py
"""

from tempfile import TemporaryDirectory

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adagrad import schedules
from adagrad.torch import Adagrad


class Regression(lightning.LightningModule):
    """A small network for y = sin(x_1) + x_2 * x_3; the rate is one of our schedules, kept with the optimizer's state."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 1))

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """The squared error of a batch."""
        x, y = batch
        return nn.functional.mse_loss(self.network(x).squeeze(1), y)

    def configure_optimizers(self) -> Adagrad:
        """Our optimizer, as any other."""
        return Adagrad(self.parameters(), lr=schedules.CosineDecay(0.1, decay_steps=200), use_ema=True, ema_momentum=0.9)


def batches() -> DataLoader:
    """1,600 points, 32 at a time, always in the same order."""
    x = torch.randn(1600, 3, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, 0].sin() + x[:, 1] * x[:, 2]), batch_size=32)


def trained(epochs: int, resume: str | None = None) -> lightning.Trainer:
    """Train a new model in bfloat16 mixed precision, from a checkpoint if there is one to resume."""
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        precision="bf16-mixed",
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Regression(), batches(), ckpt_path=resume)
    return trainer


def error(model: Regression) -> float:
    """The mean squared error over all points."""
    with torch.no_grad():
        return torch.stack([model.training_step(batch, 0) for batch in batches()]).mean().item()


def main() -> None:
    """Train four epochs; then two and, from a checkpoint, with a new model, two more."""
    whole = trained(epochs=4)
    with TemporaryDirectory() as folder:
        trained(epochs=2).save_checkpoint(f"{folder}/half.ckpt")
        resumed = trained(epochs=4, resume=f"{folder}/half.ckpt")
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    print("stopped and resumed: every weight is the same, bit for bit")

    (optimizer,) = whole.optimizers
    print(f"error before {error(Regression()):.4f}, after {error(whole.model):.4f}", end="")
    with optimizer.averaged():
        print(f", with the moving averages {error(whole.model):.4f}")


if __name__ == "__main__":
    main()
