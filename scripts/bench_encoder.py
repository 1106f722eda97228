"""Time and memory of encoding nuclei: `python scripts/bench_encoder.py --data DIR`.

Encodes section C4 of Andersson et al. (2021), Zenodo 3957257 (92 megapixels, JPEG), with each encoder, and a slide of 400 megapixels made of mirrored
copies of its middle with the default one, each in a process of its own. Prints seconds, nuclei a second and peak memory (everything, Python and
torch included; "GPU" is what torch held there). Decoding a JPEG, one core's work, is timed apart. On a CPU, crops are timed on every 20th nucleus; on a
GPU a first piece warms it up, untimed. Nuclei are found once and kept in a temporary folder. `--json` prints a line for each for other programs.
"""
import argparse
import json
import pickle
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from bench_nuclei import write_large

import stand
from stand.bodies import best_device

ENCODERS = {  # how `load_encoder` is called, and every how many-th nucleus is encoded
    "default": ({}, 1),
    "default, raw": (dict(raw=True), 1),
    "one scale, 0.5 µm/px": (dict(mpp=0.5), 1),
    "finer, 0.25 to 2 µm/px": (dict(mpp=(0.25, 0.5, 1, 2)), 1),
    "Lite2": (dict(encoder="efficientnet_lite2"), 1),
    "crops of 28 and 112 µm": (dict(crops=True), 20),
}


def prepared(path: Path, folder: Path) -> Path:
    "Find the nuclei of a slide and keep them in a file."
    nuclei = stand.segment_nuclei(stand.Section(slide=stand.open_slide(path, mpp=0.686)), progress=False).nuclei
    with open(kept := folder / f"{path.stem}.pickle", "wb") as file: pickle.dump(nuclei, file)  # our own, read by this script only
    return kept


def measured(path: Path, nuclei: Path, name: str, device: str) -> dict:
    "Encode a slide in this process."
    how, every = ENCODERS[name]
    with open(nuclei, "rb") as file: nuclei = pickle.load(file)
    slide = stand.open_slide(path, mpp=0.686)
    section = stand.Section(slide=slide, nuclei=nuclei.iloc[:: every if device == "cpu" else 1])
    encoder = stand.encoder.load_encoder(**how, device=device)
    begin = time.perf_counter()
    slide.read(0, 0, 8, 8)
    decoding = time.perf_counter() - begin
    if device != "cpu": stand.encode_nuclei(stand.Section(slide=slide, nuclei=nuclei[:2000]), encoder, device=device, progress=False)
    begin = time.perf_counter()
    encoded = stand.encode_nuclei(section, encoder, cache=False, device=device, progress=False)
    return dict(encoder=name, slide=path.stem, nuclei=len(section.nuclei), features=encoded.features.shape[1], decoding=decoding,
                seconds=time.perf_counter() - begin, gigabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                gpu_gigabytes=torch.cuda.max_memory_allocated() / 2**30 if device.startswith("cuda") else 0.0)


def alone(job: Callable, *args):
    "Do a job in a process of its own, since the peak of a process' memory is handed down to its children."
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool: return pool.submit(job, *args).result()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with her2st/C4.jpg")
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=list(ENCODERS))
    parser.add_argument("--large", action="store_true", help="the slide of 400 megapixels as well; finding its nuclei takes minutes")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each")
    parser.add_argument("--device", default=best_device(), help="the fastest one here by default")
    args = parser.parse_args()
    small = args.data / "her2st" / "C4.jpg"
    with tempfile.TemporaryDirectory() as folder:
        found = alone(prepared, small, Path(folder))
        jobs = [(small, found, name) for name in args.encoders]
        if args.large:
            alone(write_large, small, large := Path(folder) / "large.tif")
            jobs.append((large, alone(prepared, large, Path(folder)), "default"))
        for job in jobs:
            r = alone(measured, *job, args.device)
            print(json.dumps(r) if args.json else f"{r['slide']:6s} {r['encoder']:24s} {r['nuclei']:9,} nuclei x {r['features']:4d}, {r['seconds']:6.1f} s, "
                  f"{r['nuclei'] / r['seconds']:5.0f} nuclei/s (decoding {r['decoding']:.1f} s apart), {r['gigabytes']:.2f} GB, GPU {r['gpu_gigabytes']:.2f} GB", flush=True)


if __name__ == "__main__": main()
