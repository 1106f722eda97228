"""Train the network of `stand.landscape` again: `python scripts/train_nuclei.py --instanseg instanseg.pt --data DIR`.

InstanSeg (brightfield_nuclei 0.1.1, Apache-2.0) labels tiles of real H&E slides, and the network learns to draw these labels
as a landscape, under heavy changes of stain, scale, focus and grain. Tiles of the built-in simulated tissue, with their own truth,
are mixed in. Taught on: HER2+ breast sections B4, C2, C4, C5 (Andersson et al. 2021, Zenodo 3957257), one TCGA slide, and
InstanSeg's own example picture. Kept aside: section C3 to choose settings, MoNuSeg to report. One core takes about an hour.
"""
import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.schedule import fit_one_cycle  # noqa: F401 (it gives Learner its method)
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.torch_core import set_seed
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

import stand
from stand.landscape import draw_landscape, normalised, slide_bounds

SIDE = 640  # of a tile, pixels of 0.5 µm
HED = F.normalize(torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]]))  # Ruifrok & Johnston 2001
SOURCES = {  # file: µm per pixel, tiles, weight in training
    "her2st/C4.jpg": (0.686, 24, 2), "her2st/B4.jpg": (0.688, 40, 3), "her2st/C2.jpg": (0.689, 16, 1), "her2st/C5.jpg": (0.686, 12, 1),
    "instanseg/HE_example.tif": (0.5, 10, 4), "wsi/*.svs": (0.95, 14, 3),  # the SVS says no µm per pixel: judged by the size of its nuclei
    "her2st/C3.jpg": (0.686, 12, 0),  # only to validate
}


def real_tiles(path: Path, mpp: float, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Read n random tiles of tissue and let InstanSeg label them: (n, s, s, 3), (n, s, s) and the slide's bounds (2, 3)."
    slide, rng = stand.open_slide(path, mpp=mpp), np.random.default_rng(0)
    mask, scale = slide.tissue_mask()
    y, x = np.nonzero(mask)
    side, limit = SIDE * 0.5 / mpp, np.array([slide.width, slide.height])
    at = np.column_stack([x, y])[rng.integers(len(x), size=n)] / scale - side / 2
    rgb = np.stack([slide.read_scaled(*corner, side, side, mpp / 0.5)[:SIDE, :SIDE] for corner in np.clip(at, 0, limit - side).astype(int)])
    labels = np.stack([stand.segment_image(tile, 0.5, method="instanseg") for tile in rgb])
    return rgb, labels, slide_bounds(rgb.reshape(-1, SIDE, 3), 0.5)


def simulated_tiles(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Grow n simulated tissues and cut a tile out of the middle of each."
    rgb, labels = [], []
    for seed in range(100, 100 + n):
        section, truth = stand.datasets.simulated(seed=seed, size_px=SIDE + 160, return_truth=True)
        rgb.append(section.slide.read(80, 80, SIDE, SIDE))
        labels.append(truth.uns["labels"][80:80 + SIDE, 80:80 + SIDE])
    return np.stack(rgb), np.stack(labels), slide_bounds(np.concatenate(rgb), 0.5)


def to_stains(rgb: Tensor) -> Tensor:
    "Optical density of scaled RGB (..., 3, h, w) in hematoxylin, eosin and the rest."
    return torch.einsum("...chw,cd->...dhw", -torch.log(rgb * 0.98 + 0.02), torch.linalg.inv(HED))


def blur(x: Tensor, sigma: float) -> Tensor:
    "Gaussian blur of (n, c, h, w)."
    w = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma) ** 2)
    w = (w / w.sum()).repeat(x.shape[1], 1, 1, 1)
    x = F.conv2d(F.pad(x, (0, 0, 3, 3), mode="replicate"), w.mT, groups=x.shape[1])
    return F.conv2d(F.pad(x, (3, 3, 0, 0), mode="replicate"), w, groups=x.shape[1])


def conv(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    "Convolve 3 x 3, normalise, rectify."
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


def blurred(x: Tensor) -> Tensor:
    "Blur by two box filters of 3 px, which are one of weights 1, 2, 3, 2, 1."
    weights = x.new_tensor([1, 2, 3, 2, 1]).div(9).expand(x.shape[1], 1, 1, 5)
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(x, weights, groups=x.shape[1]), weights.mT, groups=x.shape[1])


class Residual(nn.Module):
    "Two convolutions around which the input is led."

    def __init__(self, n: int):
        super().__init__()
        self.first, self.second = conv(n, n), conv(n, n)[:2]

    def forward(self, x: Tensor) -> Tensor: return F.relu(x + self.second(self.first(x)), inplace=True)


class LandscapeNet(nn.Module):
    "Map scaled RGB (n, 3, h, w), sides multiples of 16, to logits (n, 2, h, w) of nucleus and depth."

    def __init__(
        self,
        widths: tuple[int, ...] = (24, 48, 64, 96),  # channels at 1/2, 1/4, 1/8, 1/16 of the resolution
        depths: tuple[int, ...] = (0, 1, 2, 2),  # residual blocks at each
    ):
        super().__init__()
        steps = list(zip(widths, widths[1:], depths[1:]))
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), conv(12, widths[0]), *(Residual(widths[0]) for _ in range(depths[0])))
        self.down = nn.ModuleList(nn.Sequential(conv(a, b, 2), *(Residual(b) for _ in range(n))) for a, b, n in steps)
        self.side = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b, _ in steps)
        self.up = nn.ModuleList(conv(a, a) for a, *_ in steps)
        self.head = nn.Conv2d(widths[0], 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(blurred(x))]
        for down in self.down: maps.append(down(maps[-1]))
        x = maps.pop()
        for side, up in zip(reversed(self.side), reversed(self.up)):
            x = up(F.interpolate(side(x), scale_factor=2, mode="bilinear") + maps.pop())
        return F.pixel_shuffle(self.head(x), 2)


class Crops(torch.utils.data.Dataset):
    "Random crops of the tiles, turned, mirrored and scaled by 0.5 to 1.5: stain densities (3, s, s) and landscape (2, s, s)."

    def __init__(self, sources: list, n: int, side: int = 192):
        self.n, self.side, self.rng, self.x, self.y, weight = n, side, np.random.default_rng(0), [], [], []
        for (rgb, labels, bounds), share in sources:
            scaled = torch.from_numpy(normalised(rgb, bounds)).movedim(-1, 1).clamp(0, 1.2)
            self.x += [to_stains(tile).half() for tile in scaled]
            self.y += [torch.from_numpy(draw_landscape(tile)).half() for tile in labels]
            weight += [share / len(rgb)] * len(rgb)
        self.p = np.array(weight) / sum(weight)

    def __len__(self): return self.n

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        rng = self.rng  # one process draws them all, one after the other, so the same on every run
        k, zoom, angle = rng.choice(len(self.x), p=self.p), np.exp(rng.uniform(np.log(0.5), np.log(1.5))), rng.uniform(0, 2 * np.pi)
        half = self.side / 2 * zoom
        reach = min(half * 2**0.5, SIDE / 2 - 1)
        corner = (rng.uniform(reach, SIDE - reach, 2) - reach).astype(int)
        window = np.s_[:, corner[1]:corner[1] + 2 * int(reach), corner[0]:corner[0] + 2 * int(reach)]
        x, y = self.x[k][window][None].float(), self.y[k][window][None].float()
        if zoom > 1.15: x = blur(x, 0.5 * zoom)
        turn = torch.tensor([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]], dtype=torch.float32) * half / int(reach)
        if rng.random() < 0.5: turn[:, 0] *= -1
        grid = F.affine_grid(turn[None], (1, 1, self.side, self.side), align_corners=False)
        return (F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)[0],
                F.grid_sample(y, grid, padding_mode="zeros", align_corners=False)[0])


def repainted(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    "Hollow some nuclei out, dye the tissue anew, and photograph it with another camera."
    stains, target = batch
    n, side = len(stains), stains.shape[-1]
    uniform = lambda low, high, *shape: torch.rand(n, *shape) * (high - low) + low
    hollow = (torch.rand(n, 1, 1) < 0.5) * target[:, 0]  # vesicular nuclei: pale and grained inside
    core = ((target[:, 1] - 0.2) / 0.4).clamp(0, 1) * uniform(0, 0.8, 1, 1)
    grain = blur(torch.randn(n, 1, side, side), 0.8)[:, 0] * 2 * uniform(0, 0.25, 1, 1)
    stains[:, 0] = stains[:, 0] * (1 - hollow * (core + grain).clamp(-0.6, 0.9))
    dyes = F.normalize(HED + 0.12 * torch.randn(n, 3, 3), dim=2)
    density = torch.einsum("ndhw,ndc->nchw", stains * uniform(0.5, 1.5, 3, 1, 1) + 0.16 * torch.randn(n, 3, 1, 1), dyes)
    rgb = (torch.exp(-density) - 0.02) / 0.98 * uniform(0.8, 1.15, 3, 1, 1) + uniform(-0.12, 0.12, 1, 1, 1)
    rgb = rgb.clamp(-0.2, 1.3) + uniform(0, 0.06, 1, 1, 1) * (torch.rand(n, 1, 1, 1) < 0.4) * torch.randn_like(rgb)
    if torch.rand(()) < 0.5: rgb = blur(rgb, float(torch.rand(()) * 0.8 + 0.2))
    return rgb.contiguous(memory_format=torch.channels_last), target


def landscape_loss(logits: Tensor, target: Tensor) -> Tensor:
    "Cross-entropy of both maps, Dice of the nuclei, squared error of depth."
    drawn = logits.float().sigmoid()
    overlap = (2 * (drawn[:, 0] * target[:, 0]).sum((1, 2)) + 1) / ((drawn + target)[:, 0].sum((1, 2)) + 1)
    entropy = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").mean((0, 2, 3)).sum()
    return entropy + 0.5 * (1 - overlap.mean()) + 4 * (drawn[:, 1] - target[:, 1]).square().mean()


class BFloat16(Callback):
    "Run the network in bfloat16 where it loses nothing, twice as fast on processors that know it."

    def before_batch(self): self.cast = torch.autocast("cpu", torch.bfloat16); self.cast.__enter__()
    def after_pred(self): self.cast.__exit__(None, None, None)


def save_onnx(net: LandscapeNet, path: Path, tiles: np.ndarray) -> None:
    """Write the network with its sigmoid for ONNX Runtime, for images of any size in multiples of 16, in 8-bit integers.

    The range of each map is that on the tiles (n, h, w, 3) of `normalised`. The blur before and the head after stay float32, and weights have 7 bits:
    with 8, processors that know AVX2 but not VNNI can overflow (ONNX Runtime's guide to quantization).
    """
    side = {axis: torch.export.Dim(name, min=1, max=1 << 12) * 16 for axis, name in ((2, "rows"), (3, "columns"))}
    program = torch.onnx.export(nn.Sequential(net, nn.Sigmoid()).eval(), (torch.zeros(1, 3, 64, 96),), input_names=["rgb"], output_names=["drawn"],
                                dynamic_shapes=(side,), dynamo=True, verbose=False)
    for node in program.model.graph: node.metadata_props.clear()  # the exporter notes where on this machine each step was defined
    with TemporaryDirectory() as folder:
        plain, ready = Path(folder) / "plain.onnx", Path(folder) / "ready.onnx"
        program.save(plain, external_data=False)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        blur_rows, blur_columns, *_, head = [node.name for node in onnx.load(ready).graph.node if node.op_type == "Conv"]
        quantize_static(ready, path, Tiles(tiles), per_channel=True, reduce_range=True, activation_type=QuantType.QUInt8,
                        op_types_to_quantize=["Conv", "Add", "Resize"], nodes_to_exclude=[blur_rows, blur_columns, head])


class Tiles(CalibrationDataReader):
    "Hand tiles out one by one."

    def __init__(self, tiles: np.ndarray): self.rest = iter(tiles)

    def get_next(self) -> dict | None:
        tile = next(self.rest, None)
        return None if tile is None else {"rgb": np.ascontiguousarray(tile.transpose(2, 0, 1)[None])}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="folder with her2st/, instanseg/, wsi/")
    p.add_argument("--instanseg", required=True, help="TorchScript file of brightfield_nuclei")
    p.add_argument("--out", type=Path, default=Path(stand.__file__).parent / "weights" / "nuclei.onnx")
    p.add_argument("--epochs", type=int, default=16, help="of 4,000 crops, 250 steps")
    p.add_argument("--tiles", type=Path, help="keep the labelled tiles here, to try again without InstanSeg")
    args = p.parse_args()
    os.environ["STAND_INSTANSEG"] = args.instanseg
    torch.set_num_threads(1)  # on two shared cores, training steps of this size are slower with two threads
    set_seed(0, reproducible=True)
    sources = []
    for name, (mpp, n, share) in SOURCES.items():
        path = next(args.data.glob(name))
        kept = None if args.tiles is None else args.tiles / f"{path.stem}.npz"
        if kept is not None and kept.exists(): tiles = tuple(np.load(kept)[k] for k in ("rgb", "labels", "bounds"))
        else: tiles = real_tiles(path, mpp, n)
        if kept is not None and not kept.exists(): np.savez_compressed(kept, rgb=tiles[0], labels=tiles[1], bounds=tiles[2])
        print(f"{path.name}: {len(tiles[0])} tiles, {sum(int(t.max()) for t in tiles[1]):,} nuclei", flush=True)
        sources.append((tiles, share))
    sources.append((simulated_tiles(24), 1))
    train, valid = ([s for s in sources if s[1]], [(tiles, 1) for tiles, share in sources if not share])
    train, valid = (DataLoader(Crops(part, n), bs=16, after_batch=repainted, num_workers=0) for part, n in ((train, 4000), (valid, 160)))
    net = LandscapeNet().to(memory_format=torch.channels_last)
    learn = Learner(DataLoaders(train, valid), net, loss_func=landscape_loss, wd=1e-2, cbs=BFloat16())
    with learn.no_bar(): learn.fit_one_cycle(args.epochs, 3e-3)
    save_onnx(net, args.out, np.concatenate([normalised(rgb[:6], bounds) for (rgb, _, bounds), share in sources if share]))


if __name__ == "__main__": main()
