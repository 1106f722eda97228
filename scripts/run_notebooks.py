"""Run notebooks in place and keep their outputs: `python scripts/run_notebooks.py nbs/04_nuclei.ipynb ...`.

Cells flagged as nbdev does (`slow`, `cuda`, `notest`, `eval: false`) are left as they are, unless the flag is named in `--flags`.
"""
import argparse
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FLAGS = {"slow", "cuda", "notest"}
os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:torch.jit._script")  # of a dependency, nothing a reader can act on


def skipped(cell, flags: set[str]) -> bool:
    "True for a code cell that nbdev_test would not run with these flags."
    directives = re.findall(r"^#\s*\|\s*(.+?)\s*$", cell.source, re.M)
    return "nbdev_export(" in cell.source or any(d in FLAGS - flags or re.fullmatch(r"eval:\s*false", d) for d in directives)


def run(path: Path, flags: set[str]) -> None:
    "Execute the notebook from its own folder and write it back with its outputs, or leave the file untouched if a cell fails."
    nb = nbformat.read(path, as_version=4)
    tagged = [c for c in nb.cells if c.cell_type == "code" and skipped(c, flags)]
    for cell in tagged: cell.metadata["tags"] = ["skip-execution"]
    NotebookClient(nb, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in tagged: del cell.metadata["tags"]
    for cell in nb.cells:
        if cell.cell_type == "code": cell.execution_count = None
        cell.metadata.pop("execution", None)
    nbformat.write(nb, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--flags", default="", help="flagged cells to run too, for instance 'slow cuda'")
    args = parser.parse_args()
    for path in args.notebooks:
        print("running", path, flush=True)
        try: run(path.resolve(), set(args.flags.split()))
        except CellExecutionError as error: sys.exit(f"{path}: {error}")
