"""Hugging Face's Trainer with our optimizer: hand it in, and let the Trainer schedule, save and resume it.

python examples/huggingface_trainer.py
"""

from tempfile import TemporaryDirectory

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from adagrad.torch import Adagrad

WORDS, LENGTH = 50, 8
CONFIG = BertConfig(
    vocab_size=WORDS,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=LENGTH,
)


def sentences(count: int) -> list[dict[str, torch.Tensor]]:
    """Random words; the label says whether the first one is in the first half of the vocabulary."""
    ids = torch.randint(0, WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": (row[0] < WORDS // 2).long()} for row in ids]


def trainer(folder: str) -> Trainer:
    """A Trainer for a new model, small enough to train on the spot."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(CONFIG)
    # Large matrices decay, biases and the weights of LayerNorm do not.
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.001},
        {"params": [p for p in model.parameters() if p.dim() < 2]},
    ]
    optimizer = Adagrad(groups, lr=0.1)
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=40,
        save_steps=20,
        logging_steps=10,
        per_device_train_batch_size=32,
        lr_scheduler_type="cosine",
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
    )
    # No scheduler of our own: the Trainer makes the one of its arguments for our optimizer.
    return Trainer(model, arguments, train_dataset=sentences(1280), optimizers=(optimizer, None))


def main() -> None:
    """Train; then take up the checkpoint of half way with a new model and a new optimizer."""
    with TemporaryDirectory() as folder:
        whole = trainer(folder)
        whole.train()
        losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
        print(f"loss of the first steps {losses[0]}, of the last {losses[-1]}")

        resumed = trainer(folder)
        resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-20")
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    print("resumed from checkpoint-20: every weight is the same, bit for bit")


if __name__ == "__main__":
    main()
