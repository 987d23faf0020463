"""Train a small CNN on scikit-learn's digits (1797 real handwritten digits, 8x8) and export it to ONNX.

Writes digits.onnx (input: float32 [1, 1, 8, 8] in 0..1; logits: float32 [1, 10]) and digits_test.npz, the held-out
images (`input`: float32 [360, 1, 8, 8]) with their `labels` (int64 [360]), so that what is deployed is verified on real
digits.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

SEED = 0
EPOCHS = 60
BATCH = 64
LEARNING_RATE = 3e-3


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a CNN on the digits data set and export it to ONNX.")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder to write to (default: this one)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"passes over the training images ({EPOCHS})")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(SEED)
    train_x, test_x, train_y, test_y = digits()
    model = network()
    train(model, train_x, train_y, arguments.epochs)
    with torch.inference_mode():
        accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters} parameters, test accuracy {accuracy:.2%} on {len(test_y)} held-out digits")

    np.savez(arguments.out / "digits_test.npz", input=test_x.numpy(), labels=test_y.numpy())
    export(model, arguments.out / "digits.onnx")


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (float32 [N, 1, 8, 8] in 0..1), training and test labels (int64 [N])."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    split = train_test_split(images, labels.astype(np.int64), test_size=0.2, random_state=SEED, stratify=labels)
    return tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in split)


def network() -> nn.Sequential:
    """Three convolutions and a linear layer: logits [N, 10] of images [N, 1, 8, 8]."""
    return nn.Sequential(
        *convolution(1, 16),
        *convolution(16, 32),
        nn.MaxPool2d(2),
        *convolution(32, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Fit `model` in place and leave it in evaluation mode."""
    steps = epochs * -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write `model` with a batch of one; everything in one file, for the weights are small."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch's own exporter
        torch.onnx.export(
            model,
            (torch.zeros(1, 1, 8, 8),),
            path,
            input_names=["input"],
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )


if __name__ == "__main__":
    main()
