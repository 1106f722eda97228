"""Kill the whole job at random moments: `python scripts/kill_test.py [--times 20] [--seed 0]`.

The job (nuclei, features, model, table, picture) is done once undisturbed, on a small built-in section. Then, again and again in a new folder, it is
started and killed with SIGKILL at a moment drawn evenly from the time it took, and started again, now undisturbed. Each time, whatever lies there after
the kill must be whole, and the resumed job must end with the very table, model and picture of the undisturbed one, and with nothing left over.
Every third one is killed twice, if the second run is still at work then. At last one is interrupted with SIGINT, as Ctrl-C does, and must end by itself, leave nothing unfinished and resume.

Prints what was there at each kill and `N/20`; the exit status is 1 unless all of them held.
"""
import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")  # the killed leave semaphores, which it removes
import anndata as ad
import numpy as np
import pandas as pd
from PIL import Image
from safetensors.numpy import load_file

import stand
from stand.job import run

SERVER = multiprocessing.get_context("forkserver")  # it has imported what the job needs, and used none of torch's threads, which a fork would not have


def job(out: Path, size_px: int, epochs: int) -> None:
    "Do the whole job."
    sys.stderr = open(os.devnull, "w")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts this in the background has it ignored
    run(stand.datasets.simulated(0, size_px=size_px), out, plot=["ERBB2"], epochs=epochs, progress=False)


def start(*args) -> multiprocessing.Process:
    "Start the job in a process of its own."
    process = SERVER.Process(target=job, args=args)
    process.start()
    return process


def killed(folder: Path, moment: float, settings: tuple) -> bool:  # False: it had ended before
    "Start the job and kill it after some seconds."
    process = start(folder / "cells.h5ad", *settings)
    process.join(moment)
    process.kill(), process.join()
    return process.exitcode == -signal.SIGKILL


def whole(folder: Path) -> list[str]:  # names of the results that are there
    "Open every result; a half-written one raises."
    there = [p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    for path in there:
        if path.suffix == ".h5ad": ad.read_h5ad(path)
        elif path.suffix == ".safetensors": load_file(path)
        elif path.suffix == ".parquet": pd.read_parquet(path)
        elif path.suffix == ".png": Image.open(path).load()
        elif path.name == "model": stand.load_model(path)
        elif path.suffix == ".json": assert path.stat().st_size > 2 and path.read_text().rstrip().endswith("}")
    return sorted(p.name for p in there if p.suffix in (".h5ad", ".png", ".parquet") or p.name in ("model", "features.safetensors", "training.safetensors"))


def same(one: Path, other: Path) -> list[str]:  # what differs
    "Compare the results of two jobs, bit for bit."
    a, b = (ad.read_h5ad(folder / "cells.h5ad") for folder in (one, other))
    differs = [] if np.array_equal(a.X, b.X) else ["X"]
    if not a.obs.equals(b.obs): differs.append("obs")
    differs += [name for name in ("X_image", "X_stand", "X_programs") if not np.array_equal(a.obsm[name], b.obsm[name])]
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    if a.keys() != b.keys() or not all(np.array_equal(a[k], b[k], equal_nan=True) for k in a): differs.append("model")
    a, b = (np.asarray(Image.open(folder / "ERBB2.png")) for folder in (one, other))
    return differs if np.array_equal(a, b) else [*differs, "picture"]


def left_over(folder: Path) -> list[str]:
    "Name unfinished files and folders."
    return sorted(p.name for p in folder.rglob("*") if "partial" in p.name or ".old" in p.name or p.suffix == ".parts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--times", type=int, default=20, help="kills (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    add("--size-px", type=int, default=600, help="side of the section (default: %(default)s)")
    add("--epochs", type=int, default=20, help="of training (default: %(default)s)")
    args = parser.parse_args()
    SERVER.set_forkserver_preload([f"stand.{name}" for name in "bags context deconvolution learner model nuclei plot resume job".split()])
    draw, settings, good = random.Random(args.seed), (args.size_px, args.epochs), 0
    with tempfile.TemporaryDirectory() as home:
        reference, began = Path(home) / "undisturbed", time.monotonic()
        start(reference / "cells.h5ad", *settings).join()
        took = time.monotonic() - began
        print(f"undisturbed: {took:.1f} s, {', '.join(whole(reference))}", flush=True)
        for i in range(args.times):
            folder, there = Path(home) / f"killed{i}", []
            while not there:
                moment, began = draw.uniform(0, took), time.monotonic()
                if killed(folder, moment, settings): there = [f"{moment:.1f} s ({', '.join(whole(folder)) or 'nothing'})"]
                else: took = min(took, time.monotonic() - began); shutil.rmtree(folder)  # the machine has become faster: draw again
            if i % 3 == 2 and killed(folder, moment := draw.uniform(0, took - moment), settings): there.append(f"{moment:.1f} s ({', '.join(whole(folder)) or 'nothing'})")
            process = start(folder / "cells.h5ad", *settings)
            process.join()
            wrong = [f"exit {process.exitcode}"] if process.exitcode else same(folder, reference) + left_over(folder)
            good += not wrong
            print(f"{i + 1:2} killed at {', and at '.join(there)}: {'same result' if not wrong else 'WRONG: ' + ', '.join(wrong)}", flush=True)
        folder = Path(home) / "interrupted"
        process = start(folder / "cells.h5ad", *settings)
        process.join(took / 3)
        if process.is_alive(): os.kill(process.pid, signal.SIGINT)
        began = time.monotonic()
        process.join(60)
        clean = process.exitcode not in (None, 0) and not [name for name in left_over(folder) if not name.endswith(".parts")]
        process.kill(), process.join()
        print(f"interrupted at {took / 3:.1f} s: ended after {time.monotonic() - began:.1f} s, {'nothing unfinished' if clean else 'WRONG: ' + ', '.join(left_over(folder))}")
        start(folder / "cells.h5ad", *settings).join()
        clean &= not same(folder, reference)
    print(f"{good}/{args.times} resumed to the same result")
    sys.exit(not (clean and good == args.times))


if __name__ == "__main__": main()
