"""How time and memory grow: `python scripts/bench_scale.py --data DIR [--sides 2 4 8 16] [--glass] [--whole]`.

Makes slides of copies x copies mirrored pieces (2,560 px a side, tiled TIFF) of the middle of section C4 of Andersson et al. (2021), Zenodo 3957257, lays a hexagonal array of spots over each
(55 µm wide, 100 µm apart), and does every stage of the job, each in a process of its own: find nuclei, encode them, predict 18,000 genes as factors and write them, deconvolve 1,000 genes of
the spots and write that. With `--whole` it does them as `stand run` does, in one process and with its default genes. The model has three untrained members, and counts are drawn: what is measured is work, not biology. Prints for each stage and size megapixels, nuclei, spots, seconds
(of the clock, and of one processor) and peak memory (everything, Python and torch included), and the exponent of growth: the slope of log seconds over log nuclei (for finding nuclei, over log
pixels), between the first and the last size and between the last two, where what is spent once per job weighs least. Sides of 8 are a million nuclei: half an hour on two
cores. With `--glass` a slide is twice as wide and high as its tissue, 41,000 x 41,000 px.
"""
import argparse
import json
import pickle
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from bench_encoder import alone
from bench_nuclei import write_large
from scipy.sparse import random as sparse_random

import stand
from stand.datasets import hexagonal_grid
from stand.model import StandModel
from stand.trained import ModelInfo, TrainedModel

MPP, N_GENES, N_MEASURED = 0.686, 18_000, 1_000


def model_of(n_features: int, encoder: str) -> TrainedModel:
    "An untrained model of three members."
    settings = dict(n_features=n_features, n_genes=N_GENES, n_sections=1, n_leading=N_MEASURED)
    info = ModelInfo([f"G{i}" for i in range(N_GENES)], ["made up"], encoder, 50.0, settings)
    return TrainedModel([StandModel(**settings) for _ in range(3)], info)


def spots_on(side: int) -> AnnData:
    "Spots all over a square of `side` pixels; three in ten of their counts are not 0."
    grid = hexagonal_grid(side, MPP)
    draw = lambda n: 1.0 + np.random.default_rng(0).poisson(2, n)
    counts = sparse_random(len(grid), N_MEASURED, 0.3, format="csr", random_state=0, data_rvs=draw).astype(np.float32)
    return AnnData(counts, grid[[]], pd.DataFrame(index=[f"G{i}" for i in range(N_MEASURED)]), obsm=dict(spatial=grid[["x", "y"]].to_numpy()))


def done(stage: str, path: Path, folder: Path, side: int) -> dict:
    "Do one stage in this process, with what the stages before have left in the folder."
    slide = stand.open_slide(path, mpp=MPP)
    if stage == "nuclei": section = stand.Section(slide=slide, mpp=MPP, name="large")
    else:
        with open(folder / "section.pickle", "rb") as file: section = replace(pickle.load(file), slide=slide)  # our own, read by this script only
    if stage == "deconvolve": section = replace(section, spots=spots_on(side), spot_diameter_um=55)
    model = model_of(section.features.shape[1], section.encoder) if section.features is not None else None
    work = {"nuclei": lambda: stand.segment_nuclei(section, progress=False), "encode": lambda: stand.encode_nuclei(section, progress=False),
            "predict": lambda: stand.predict_nuclei(model, section, genes=["G0", "G1", "G2"]),
            "deconvolve": lambda: stand.deconvolve(model, section, genes=[f"G{i}" for i in range(100)])}[stage]
    begin, busy = time.perf_counter(), time.process_time()
    made = work()
    if isinstance(made, AnnData): stand.write_cells(made, folder / f"{stage}.h5ad", overwrite=True)
    seconds, busy, gigabytes = time.perf_counter() - begin, time.process_time() - busy, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if isinstance(made, stand.Section):
        with open(folder / "section.pickle", "wb") as file: pickle.dump(replace(made, slide=None), file)
    n_spots = section.spots.n_obs if section.spots is not None else 0
    return dict(stage=stage, megapixels=slide.width * slide.height / 1e6, nuclei=len(made.nuclei) if isinstance(made, stand.Section) else made.n_obs, spots=n_spots,
                seconds=seconds, busy=busy, gigabytes=gigabytes)


def whole(path: Path, folder: Path, side: int) -> dict:
    "Do all stages in this process, as `stand run` does."
    tiny = stand.encode_nuclei(stand.segment_nuclei(stand.datasets.simulated(seed=0, size_px=600), progress=False), progress=False)
    model, slide = model_of(tiny.features.shape[1], tiny.encoder), stand.open_slide(path, mpp=MPP)
    section = stand.Section(slide=slide, mpp=MPP, name="large", spots=spots_on(side), spot_diameter_um=55)
    begin, busy = time.perf_counter(), time.process_time()
    cells = stand.run(section, folder / "cells.h5ad", model, progress=False)
    return dict(stage="whole job", megapixels=slide.width * slide.height / 1e6, nuclei=cells.n_obs, spots=section.spots.n_obs, seconds=time.perf_counter() - begin,
                busy=time.process_time() - busy, gigabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def growth(rows: pd.DataFrame) -> pd.DataFrame:
    "Slopes of log seconds over log size, over all sizes and at their end."
    slopes = {}
    for stage, of in rows.groupby("stage", sort=False):
        size, seconds = np.log(of["megapixels" if stage == "nuclei" else "nuclei"].to_numpy()), np.log(of["busy"].to_numpy())
        slopes[stage] = {"over all": (seconds[-1] - seconds[0]) / (size[-1] - size[0]), "at the end": (seconds[-1] - seconds[-2]) / (size[-1] - size[-2])}
    return pd.DataFrame(slopes).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with her2st/C4.jpg")
    parser.add_argument("--sides", type=int, nargs="+", default=[2, 4, 8], help="pieces a side of each slide; growth is seen from two sizes on (default: %(default)s)")
    parser.add_argument("--glass", action="store_true", help="three quarters of a slide are glass")
    parser.add_argument("--whole", action="store_true", help="the whole job in one process, not its stages in processes of their own")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each stage")
    args = parser.parse_args()
    rows = []
    for side in sorted(set(args.sides)):
        with tempfile.TemporaryDirectory() as folder:
            alone(write_large, args.data / "her2st" / "C4.jpg", slide := Path(folder) / "slide.tif", side * (1 + args.glass), 2560, side)
            for stage in ("whole job",) if args.whole else ("nuclei", "encode", "predict", "deconvolve"):
                rows.append(r := alone(whole, slide, Path(folder), 2560 * side) if args.whole else alone(done, stage, slide, Path(folder), 2560 * side))
                print(json.dumps(r) if args.json else f"{r['stage']:10s} {r['megapixels']:7,.0f} megapixels {r['nuclei']:9,} nuclei {r['spots']:6,} spots "
                      f"{r['seconds']:7.1f} s ({r['busy']:.1f} of a processor) {r['gigabytes']:5.2f} GB", flush=True)
    if len(set(args.sides)) > 1: print("growth exponents:\n" + growth(pd.DataFrame(rows)).round(2).to_string())


if __name__ == "__main__": main()
