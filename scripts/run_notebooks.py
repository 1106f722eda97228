"""Run notebooks and keep their outputs: `python scripts/run_notebooks.py nbs/04_nuclei.ipynb ...`.

Notebooks are written back in place; with `--to FOLDER` the executed copies and their pictures go there and the sources stay
as they are. Cells flagged as nbdev does (`slow`, `cuda`, `notest`, `eval: false`) are left out, unless the flag is named in
`--flags`.
"""
import argparse
import os
import re
import sys
import time
from base64 import b64decode
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FLAGS = {"slow", "cuda", "notest"}
PICTURES = {"image/png": ".png", "image/jpeg": ".jpg"}
os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:torch.jit._script")  # of a dependency, nothing a reader can act on
os.environ.pop("MPLBACKEND", None)  # pictures belong into the notebook


def skipped(cell, flags: set[str]) -> bool:
    "True for a code cell that nbdev_test would not run with these flags."
    directives = re.findall(r"^#\s*\|\s*(.+?)\s*$", cell.source, re.M)
    return "nbdev_export(" in cell.source or any(d in FLAGS - flags or re.fullmatch(r"eval:\s*false", d) for d in directives)


def execute(nb, folder: Path, flags: set[str]) -> None:
    "Execute a notebook in place from its own folder."
    tagged = [c for c in nb.cells if c.cell_type == "code" and skipped(c, flags)]
    for cell in tagged: cell.metadata["tags"] = ["skip-execution"]
    settings = dict(timeout=None, kernel_name="python3", store_widget_state=False, extra_arguments=["--log-level=40"])  # errors only
    try: NotebookClient(nb, resources={"metadata": {"path": str(folder)}}, **settings).execute()
    finally:
        for cell in tagged: del cell.metadata["tags"]
        for cell in nb.cells:
            if cell.cell_type == "code": cell.execution_count = None
            cell.metadata.pop("execution", None)


def refresh(path: Path, flags: set[str]) -> None:
    "Run a notebook and write it back with its outputs, or leave the file untouched if a cell fails."
    nb = nbformat.read(path, as_version=4)
    execute(nb, path.parent, flags)
    nbformat.write(nb, path)


def pictures(nb) -> list[tuple[str, bytes]]:  # file names, numbered and named after the heading above, and their contents
    "Take the pictures out of a notebook."
    found, heading = [], "start"
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            titles = re.findall(r"^#+\s+(.+)$", cell.source, re.M)
            if titles: heading = re.sub(r"[^a-z0-9]+", "-", titles[-1].lower()).strip("-")
        for output in cell.get("outputs", []):
            for kind, suffix in PICTURES.items():
                if kind not in output.get("data", {}): continue
                found.append((f"{len(found) + 1:02d}-{heading}{suffix}", b64decode(output["data"][kind])))
    return found


def run_to(path: Path, flags: set[str], folder: Path) -> None:
    "Run a notebook and write the executed copy and its pictures to a folder, also when a cell fails."
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["STAND_OUT"] = str(folder)
    for old in folder.glob("[0-9][0-9]-*"):
        if old.suffix in PICTURES.values(): old.unlink()
    nb = nbformat.read(path, as_version=4)
    for cell in nb.cells:
        if cell.cell_type == "code": cell.outputs = []  # nothing that an earlier run left can pass for new
    try: execute(nb, path.parent, flags)
    finally:
        nbformat.write(nb, folder / path.name)
        for name, content in pictures(nb): (folder / name).write_bytes(content)
    print(f"wrote {folder / path.name} and {len(pictures(nb))} pictures")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--flags", default="", help="flagged cells to run too, for instance 'slow cuda'")
    parser.add_argument("--to", type=Path, help="folder for the executed copies and their pictures, leaving the sources untouched")
    args = parser.parse_args()
    for path in args.notebooks:
        if not path.is_file(): sys.exit(f"no such notebook: {path}")
        print("running", path, flush=True)
        started, flags = time.time(), set(args.flags.split())
        try: run_to(path.resolve(), flags, args.to.resolve()) if args.to else refresh(path.resolve(), flags)
        except CellExecutionError as error:
            told = f"{error.ename}: {error.evalue}" if error.ename == "StandError" else str(error)  # which says by itself what to do
            sys.exit(re.sub(r"\x1b\[[0-9;]*m", "", f"{path}: {told}"))
        print(f"done in {time.time() - started:.0f} s", flush=True)
