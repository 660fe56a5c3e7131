"""Train with `torch.compile` over the model, the whole step or the optimizer's alone, and without; prints the results.

python tests/torch_compile_worker.py BACKEND WHAT FACE ...
"""

import json
import sys

import torch

from adagrad.torch import Adagrad

FACES = {
    "page": lambda parameters: Adagrad(parameters, lr=0.5, clipnorm=0.5, use_ema=True),
    "as_torch": lambda parameters: Adagrad.as_torch(parameters, lr=0.5),
}


def trained(what: str, face: str, backend: str) -> list[list[float]]:
    """Parameters after four steps, each with a rate of its own."""
    torch.manual_seed(0)
    module = torch.nn.Linear(6, 3)
    optimizer = FACES[face](module.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    forward = torch.compile(module, backend=backend) if what == "model" else module
    move = torch.compile(optimizer.step, backend=backend) if what == "optimizer.step" else optimizer.step

    def step(x: torch.Tensor) -> None:
        optimizer.zero_grad()
        forward(x).square().mean().backward()
        move()

    step = torch.compile(step, backend=backend) if what == "step" else step
    for call in range(4):
        step(torch.randn(16, 6, generator=torch.Generator().manual_seed(call)))
        scheduler.step()
    return [p.detach().flatten().tolist() for p in module.parameters()]


def main() -> None:
    """Run each triple of arguments."""
    given = sys.argv[1:]
    for backend, what, face in zip(given[::3], given[1::3], given[2::3], strict=True):
        torch._dynamo.reset()
        print("RESULT" + json.dumps([trained(what, face, backend), trained("nothing", face, backend)]))


if __name__ == "__main__":
    main()
