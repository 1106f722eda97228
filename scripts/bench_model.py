"""Time and memory of the model: `python scripts/bench_model.py --data DIR`.

Trains on sections C3, C4 and C5 of Andersson et al. (2021), Zenodo 3957257, with 5,000 genes and the default ensemble, their nuclei found and encoded beforehand; predicts
300,000 made-up nuclei with 18,000 genes by an untrained model of that size, written to an h5ad file as factors; and deconvolves 300,000 made-up nuclei and 5,000 spots with 2,000 genes. Each is
measured in a process of its own: seconds, and peak memory of everything, Python and torch included. Without `--data` nothing is trained. `--json` prints a line for each for other programs.
"""
import argparse
import json
import pickle
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from bench_encoder import alone
from scipy.sparse import random as sparse_random

import stand
from stand.model import StandModel
from stand.trained import ModelInfo, TrainedModel


def prepare(data: Path, kept: Path) -> None:
    "Find and encode the nuclei of three sections, and keep them in a file without their slides."
    sections = []
    for name in ("C3", "C4", "C5"):
        files = [data / "her2st" / f"{name}{ending}" for ending in (".tsv.gz", "_selection.tsv", ".jpg")]
        section = stand.encode_nuclei(stand.segment_nuclei(stand.read_st(*files, spot_diameter_um=100, spot_pitch_um=200), progress=False), progress=False)
        sections.append(replace(section, slide=None))
    with open(kept, "wb") as file: pickle.dump(sections, file)  # our own, read by this script only


def memory() -> float: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GB


def trained(kept: Path) -> dict:
    "Train in this process."
    with open(kept, "rb") as file: sections = pickle.load(file)
    begin = time.perf_counter()
    dls = stand.STDataLoaders.from_sections(sections, seed=0)
    learn = stand.stand_learner(dls)
    ready = time.perf_counter()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(30, 3e-3)
    return dict(job="train", spots=len(dls.train_spots), nuclei=len(dls.bags.features), genes=len(dls.genes), members=len(learn.model.members),
                setup=ready - begin, seconds=time.perf_counter() - begin, gigabytes=memory())


def made_up(n_nuclei: int, n_genes: int, n_features: int = 136) -> tuple[TrainedModel, stand.Section]:
    "An untrained model of three members, and nuclei strewn over 1 cm² without a slide."
    rng = np.random.default_rng(0)
    points = shapely.points(rng.uniform(0, 2e4, (n_nuclei, 2)))
    nuclei = gpd.GeoDataFrame(dict(area_um2=rng.uniform(20, 90, n_nuclei)), geometry=shapely.buffer(points, 8, quad_segs=4), index=[f"n{i}" for i in range(n_nuclei)])
    section = stand.Section(nuclei=nuclei, features=rng.normal(size=(n_nuclei, n_features)).astype(np.float32), encoder="made up", mpp=0.5, name="made up")
    settings = dict(n_features=n_features, n_genes=n_genes, n_sections=1, n_leading=1000)
    return TrainedModel([StandModel(**settings) for _ in range(3)], ModelInfo([f"G{i}" for i in range(n_genes)], ["made up"], "made up", 50.0, settings)), section


def predicted(folder: Path, n_nuclei: int = 300_000, n_genes: int = 18_000) -> dict:
    "Predict and write in this process."
    model, section = made_up(n_nuclei, n_genes)
    begin = time.perf_counter()
    cells = stand.predict_nuclei(model, section, genes=["G0", "G1", "G2"])
    written = stand.write_cells(cells, folder / "cells.h5ad")
    return dict(job="predict and write", nuclei=n_nuclei, genes=n_genes, members=3, file_gigabytes=written.stat().st_size / 2**30,
                seconds=time.perf_counter() - begin, gigabytes=memory())


def deconvolved(n_nuclei: int = 300_000, n_genes: int = 2000, n_spots: int = 5000) -> dict:
    "Deconvolve in this process; three in ten counts of the spots (55 µm wide, 140 µm apart) are not 0."
    model, section = made_up(n_nuclei, n_genes)
    rng, side = np.random.default_rng(1), int(np.ceil(n_spots**0.5))
    counts = sparse_random(n_spots, n_genes, 0.3, format="csr", random_state=rng, data_rvs=lambda n: 1.0 + rng.poisson(2, n)).astype(np.float32)
    centre = (np.stack(np.divmod(np.arange(n_spots), side), 1) + 0.5) * 2e4 / side
    spots = AnnData(counts, obs=pd.DataFrame(index=[f"s{i}" for i in range(n_spots)]), var=pd.DataFrame(index=model.info.genes), obsm=dict(spatial=centre))
    section, before, begin = replace(section, spots=spots, spot_diameter_um=55), memory(), time.perf_counter()
    cells = stand.deconvolve(model, section, genes=model.info.genes)
    kept = cells.layers["counts"]
    return dict(job="deconvolve", nuclei=n_nuclei, genes=n_genes, spots=n_spots, members=3, seconds=time.perf_counter() - begin, gigabytes=memory(), gigabytes_before=before,
                x_gigabytes=cells.X.nbytes / 2**30, counts_gigabytes=(kept.data.nbytes + kept.indices.nbytes) / 2**30, added_over_x=(memory() - before) * 2**30 / cells.X.nbytes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with her2st/C3.jpg and so on")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(predicted, Path(folder)), (deconvolved,)]
        if args.data:
            alone(prepare, args.data, kept := Path(folder) / "sections.pickle")
            jobs.insert(0, (trained, kept))
        for job in jobs:
            r = alone(*job)
            print(json.dumps(r) if args.json else ", ".join(f"{k} {v:,.2f}" if isinstance(v, float) else f"{k} {v:,}" if isinstance(v, int) else v for k, v in r.items()), flush=True)


if __name__ == "__main__": main()
