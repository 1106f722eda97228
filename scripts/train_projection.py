"""Make `stand/weights/lite0_views.safetensors` again: `python scripts/train_projection.py --data DIR`.

It is the linear map of the default encoder: `stand.pretrain` learns it from views of tissue (turned, mirrored, stained otherwise), without
labels and without counts. Learned on: HER2+ breast sections C3, C4, C5 (Andersson et al. 2021, Zenodo 3957257), one TCGA slide, and the example
picture of InstanSeg. Kept aside: C2, B4 and all of MoNuSeg. Two cores take some minutes.
"""
import argparse
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import stand
from stand.encoder import load_encoder
from stand.pretrain import common_share, encode_views, fit_projection

SOURCES = {  # file: µm per pixel, patches
    "her2st/C3.jpg": (0.686, 40), "her2st/C4.jpg": (0.686, 40), "her2st/C5.jpg": (0.686, 40),
    "wsi/*.svs": (0.95, 30), "instanseg/HE_example.tif": (0.5, 10),  # the SVS says no µm per pixel: judged by the size of its nuclei
}


def views_of(path: Path, mpp: float, n_patches: int, seed: int) -> np.ndarray:  # (8, n, n_features)
    "Find the nuclei of a slide and encode views of some."
    section = stand.segment_nuclei(stand.Section(slide=stand.open_slide(path, mpp=mpp), name=path.stem), progress=False)
    return encode_views(section, load_encoder(raw=True), n_patches, seed=seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with her2st/, wsi/ and instanseg/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "stand" / "weights" / "lite0_views.safetensors")
    args = parser.parse_args()
    views = np.concatenate([views_of(next(args.data.glob(name)), *how, args.seed) for name, how in SOURCES.items()], 1)
    projection = fit_projection(views)
    save_file({"mean": projection.mean, "matrix": projection.matrix.astype(np.float16)}, args.out)
    unseen = views_of(args.data / "her2st" / "B4.jpg", 0.688, 15, args.seed)
    standard = (unseen - unseen.mean((0, 1))) / (unseen.std((0, 1)) + 1e-6)
    args.out.chmod(0o644)
    print(f"{views.shape[1]} nuclei; on B4, which was kept aside, views have {common_share(standard):.3f} of the variance in common as they are, "
          f"{common_share(np.stack([projection(v) for v in unseen])):.3f} projected; {args.out.name}: {args.out.stat().st_size / 1e3:.0f} kB")
