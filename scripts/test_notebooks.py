"""Test the notebooks, each by nbdev_test in a process of its own: `python scripts/test_notebooks.py`.

These processes are forks of one that has imported what the package needs, which saves five seconds a notebook.

First the house is checked: every module has its notebook and every notebook its module, and none is missing. The last line
says how many checks and notebooks passed, failed and were skipped; any failure makes the exit status 1. With `--flags slow`
only notebooks that have such cells are run, with these cells; they need real data and are skipped where there is none. Nuclei and features
of these data are computed once for all notebooks (STAND_CACHE).
"""
import argparse
import ast
import configparser
import json
import multiprocessing
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
NBS, PACKAGE, TUTORIAL = ROOT / "nbs", ROOT / "stand", ROOT / "STAnD-tutorial.ipynb"
os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:torch.jit._script,ignore::SyntaxWarning:docrep.decorators")  # of dependencies


def code_cells(path: Path) -> list[str]:
    "Read the sources of a notebook's code cells."
    return ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def directives(source: str) -> list[str]:
    "List the nbdev directives at the top of a cell."
    lines = source.splitlines()
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")), len(lines))
    return [d.strip() for d in re.findall(r"^\s*#\s*\|(.*)$", "\n".join(lines[:first]), re.M)]


def default_exp(path: Path) -> str | None:
    "Find the module that a notebook is exported to."
    named = [d.split()[1] for source in code_cells(path) for d in directives(source) if d.startswith("default_exp ")]
    return named[0] if named else None


def public_modules() -> set[str]:
    "Read which modules the package promises, without importing it."
    assigned = [node for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body if isinstance(node, ast.Assign)]
    value = {node.targets[0].id: node.value for node in assigned if isinstance(node.targets[0], ast.Name)}
    return set(ast.literal_eval(value["_MODULES"])) | set(ast.literal_eval(value["_MODULE_OF"]).values())


def faults() -> Iterator[str]:
    "Say what is wrong with the house."
    for path in (NBS / "index.ipynb", TUTORIAL):
        if not path.is_file(): yield f"{path.relative_to(ROOT)} is missing"
    notebook_of = {}
    for path in sorted(NBS.glob("[0-9]*.ipynb")):
        module = default_exp(path)
        if module is None: yield f"nbs/{path.name} has no default_exp"
        elif module in notebook_of: yield f"nbs/{path.name} and nbs/{notebook_of[module]} both export to stand.{module}"
        else: notebook_of[module] = path.name
    modules = {path.stem: path for path in PACKAGE.glob("*.py") if not path.name.startswith("_")}
    for module, path in modules.items():
        source = re.search(r"File to edit: \.\./nbs/(\S+?)\.\s*$", path.read_text(encoding="utf-8"), re.M)
        if source is None: yield f"stand/{path.name} was not exported from a notebook"
        elif not (NBS / source[1]).is_file(): yield f"nbs/{source[1]}, the source of stand/{path.name}, is missing"
        elif notebook_of.get(module) != source[1]: yield f"stand/{path.name} says it comes from nbs/{source[1]}, which exports to something else"
    for module in sorted(notebook_of.keys() - modules.keys()): yield f"nbs/{notebook_of[module]} was never exported to stand/{module}.py"
    for module in sorted(public_modules() - modules.keys()): yield f"stand/__init__.py names stand.{module}, which does not exist"


FORKS = multiprocessing.get_context("forkserver")
IMPORTED = "nbdev.test", "torch", "fastai.callback.all", "scanpy", "squidpy", "geopandas", "skimage.segmentation", "sklearn.ensemble", "timm"


def run_nbdev_test(path: Path, flags: str, log: Path) -> None:
    "What the process of a notebook does."
    with open(os.devnull) as nothing, open(log, "w") as printed:
        for file, number in ((nothing, 0), (printed, 1), (printed, 2)): os.dup2(file.fileno(), number)
    os.chdir(ROOT)
    from nbdev.test import nbdev_test

    nbdev_test(path=str(path), n_workers=0, flags=flags)


def tested(path: Path, flags: str, timeout: float) -> tuple[bool, str, float]:  # passed, what it printed, seconds
    "Run nbdev_test on one notebook."
    started = time.time()
    with TemporaryDirectory() as folder:
        process = FORKS.Process(target=run_nbdev_test, args=(path, flags, log := Path(folder) / "log"))
        process.start()
        process.join(timeout)
        if late := process.is_alive(): process.kill()
        process.join()
        printed = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    if late: printed += f"\nstopped after {timeout:.0f} s"
    passed = process.exitcode == 0 and "Success." in printed  # a path that matches nothing exits with 0 too, without this word
    return passed, printed or f"ended with {process.exitcode}", time.time() - started


def left_out(path: Path, flags: list[str]) -> str:
    "Say how many cells of a notebook nbdev_test does not run."
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    skipping = set(settings["DEFAULT"]["tst_flags"].split()) - set(flags)
    found = Counter(d for source in code_cells(path) for d in directives(source) if d in skipping or re.fullmatch(r"eval:\s*false", d))
    return "".join(f", {n} {d} cells left out" for d, n in sorted(found.items()))


def no_data(path: Path, flags: list[str]) -> str:  # empty if the data are here
    "Say which folders of real data the flagged cells of a notebook need and do not find."
    named = os.environ.get("STAND_DATA")
    folders = [Path(named)] if named else [parent / "shared" / "data" for parent in (ROOT, *ROOT.parents)]
    data = next((folder for folder in folders if folder.is_dir()), None)
    if data is None: return "no data (no shared/data beside a parent of this folder, and no STAND_DATA)"
    known = "her2st", "monuseg", "instanseg", "scrna", "visium_mouse_cytassist", "xenium_ncbi858", "wsi"
    sources = [s for s in code_cells(path) if set(directives(s)) & set(flags)]
    missing = [name for name in known if any(f'"{name}"' in s for s in sources) and not (data / name).is_dir()]
    return f"no data ({', '.join(missing)} not in the data folder)" if missing else ""


def main(notebooks: list[Path], flags: list[str], jobs: int, timeout: float) -> bool:
    "Run checks and notebooks, print the results, and return whether all is well."
    count = Counter(passed=0, failed=0, skipped=0)
    if not notebooks:
        for fault in (found := list(faults())): print(f"FAILED   {fault}")
        if not found: print("passed   every notebook has its module, every module its notebook", flush=True)
        count["failed" if found else "passed"] += len(found) or 1
        notebooks = sorted(NBS.glob("*.ipynb"))
        if flags: notebooks = [p for p in (*notebooks, TUTORIAL) if p.is_file() and any(set(directives(s)) & set(flags) for s in code_cells(p))]
    wanted = []
    for path in notebooks:
        if not path.is_file(): reason, verdict = "no such notebook", "failed"
        elif flags and (reason := no_data(path, flags)): verdict = "skipped"
        else:
            wanted.append(path)
            continue
        count[verdict] += 1
        print(f"{verdict if verdict == 'skipped' else 'FAILED':8} {path.name}: {reason}")
    with TemporaryDirectory() as cache, ThreadPoolExecutor(jobs) as pool:
        if flags: os.environ.setdefault("STAND_CACHE", cache)
        FORKS.set_forkserver_preload(list(IMPORTED))  # started with the first notebook, with the environment as it is then
        for path, (passed, printed, seconds) in zip(wanted, pool.map(lambda p: tested(p, " ".join(flags), timeout), wanted)):
            count["passed" if passed else "failed"] += 1
            print(f"{'passed' if passed else 'FAILED':8} {path.name}: {seconds:.0f} s{left_out(path, flags)}", flush=True)
            if not passed: print("    " + "\n    ".join(printed.strip().splitlines()[-60:]), flush=True)
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped", flush=True)
    return count["failed"] == 0 and count["passed"] + count["skipped"] > 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=lambda p: Path(p).resolve(), help="by default all in nbs/, after a check of the house")
    parser.add_argument("--flags", default="", help="flagged cells to run too, for instance 'slow'")
    parser.add_argument("--jobs", type=int, default=1, help="notebooks at a time")
    parser.add_argument("--timeout", type=float, default=900, help="seconds a notebook may take")
    args = parser.parse_args()
    sys.exit(not main(args.notebooks, args.flags.split(), args.jobs, args.timeout))
