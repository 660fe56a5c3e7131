"""A plain training loop: an embedding with sparse gradients, a schedule of the rate, a checkpoint, and on from there.

python examples/torch_loop.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from adagrad.torch import Adagrad

ITEMS, BASKET = 1_000, 8


class Tagger(nn.Module):
    """A score for a basket of items: the sum of their embeddings, through a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.EmbeddingBag(ITEMS, 16, mode="sum", sparse=True)
        nn.init.normal_(self.items.weight, std=0.1)
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, baskets: torch.Tensor) -> torch.Tensor:
        """Scores of shape (batch,) for items of shape (batch, BASKET)."""
        return self.head(self.items(baskets)).squeeze(1)


def made() -> tuple[Tagger, Adagrad, torch.optim.lr_scheduler.LRScheduler]:
    """A new model with all that trains it."""
    torch.manual_seed(0)
    model = Tagger()
    optimizer = Adagrad(model.parameters(), lr=0.1, initial_accumulator_value=0.001, clipnorm=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)
    return model, optimizer, scheduler


def train(model, optimizer, scheduler, steps: range) -> float:
    """Take the steps numbered ``steps``; returns the loss of the last one."""
    for step in steps:
        batch = torch.Generator().manual_seed(step)
        baskets = torch.randint(0, ITEMS, (256, BASKET), generator=batch)
        labels = (baskets % 2).float().mean(1).gt(0.5).float()  # whether most of the items are odd
        loss = nn.functional.binary_cross_entropy_with_logits(model(baskets), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return loss.item()


def main() -> None:
    """Train to the end; then once more, stopped half way and resumed from a file."""
    whole = made()
    print(f"loss of the first step  {train(*whole, range(1)):.4f}")
    print(f"loss of the last step   {train(*whole, range(1, 200)):.4f}")

    with TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.pt"
        stopped = made()
        train(*stopped, range(100))
        torch.save([part.state_dict() for part in stopped], checkpoint)

        resumed = made()
        for part, state in zip(resumed, torch.load(checkpoint, weights_only=True), strict=True):
            part.load_state_dict(state)
    print(f"stopped and resumed     {train(*resumed, range(100, 200)):.4f}")

    pairs = zip(whole[0].parameters(), resumed[0].parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    print("every weight is the same, bit for bit")


if __name__ == "__main__":
    main()
