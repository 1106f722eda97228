"""Check the documentation: `python scripts/check_docs.py`, after `build_docs.py`.

Public names have a docstring and a meaning for every parameter, and stand in the reference; every example of README and `docs/*.md`, in Python or in a
shell, runs, page by page and in order, in an empty folder; links lead somewhere, pictures say what they show; errors that the documentation quotes are
errors of the package; words are spelled as words are. The last line counts.

An example that needs files is prepared by a comment `<!-- set-up ... -->` before it, which readers do not see. One that needs a licence, a network or
another package comes after `<!-- or: message | another -->`: each of its statements has to succeed or to raise the package's own error with one of these
texts. No example is skipped.
"""
import argparse
import ast
import os
import re
import shlex
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import reference

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_docs" / "html"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROSE = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
NOT_MISSPELT = "cafs,commun,docment,docments,siz"  # fibroblasts of a tumour, a journal, fastcore's comments on parameters, a field of Zeiss' and TIFF's headers
done = Counter()


def told(what: str, wrong: list[str]) -> None:
    "Count one check, and say what is wrong."
    done["failed" if wrong else "passed"] += 1
    print(f"{'FAILED ' if wrong else 'passed '} {what}", *(f"    {line}" for line in wrong[:40]), sep="\n", flush=True)


def undescribed(modules: dict[str, reference.Module]) -> list[str]:
    "Names without a docstring, and parameters without a meaning."
    entries = [(e, x) for m in modules.values() for e in m.entries for x in [e, *e.methods]]
    bare = [f"{e.full}{'.' + x.name if x is not e else ''}: no docstring" for e, x in entries if not x.doc]
    meaning = lambda e, p: p.what if e.front else reference.meaning(p)
    return bare + [f"{e.full}{'.' + x.name if x is not e else ''}: what is {p.name!r}?" for e, x in entries for p in x.params if not meaning(e, p)]


def not_in_reference(modules: dict[str, reference.Module]) -> list[str]:
    "Public names that the built site's index of names lacks."
    from sphinx.util.inventory import InventoryFile

    with open(HTML / "objects.inv", "rb") as file: kinds = InventoryFile.load(file, "", os.path.join)
    there = {name for kind, names in kinds.items() if kind.startswith("py:") for name in names} | {n.removeprefix("api/") for n in kinds["std:doc"]}
    tree = ast.parse((ROOT / "stand" / "__init__.py").read_text(encoding="utf-8"))
    front = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "_MODULES")
    wanted = {e.full for m in modules.values() for e in m.entries} | {f"stand.{name}" for name in reference.front_names()}
    return sorted(wanted - there) + sorted(front - there)


def parts(page: Path) -> list[tuple[str, int, str]]:  # kind ("python", "shell", "set-up", "or"), line of its first line, text
    "Take the examples out of a page, and what prepares or excuses them."
    text, found = page.read_text(encoding="utf-8"), []
    marks = r"^<!-- set-up\n(?P<setup>.*?)^-->|^<!-- or: (?P<or>.*?) -->"
    pattern = marks + r"|^```(?P<language>\w*)\n(?P<code>.*?)^```"
    for m in re.finditer(pattern, text, re.M | re.S):
        body = next(g for g in ("setup", "or", "code") if m[g] is not None)
        kind = {"setup": "set-up", "code": {"python": "python", "": "shell", "bash": "shell"}.get(m["language"], "other")}.get(body, body)
        found.append((kind, text.count("\n", 0, m.start(body)), m[body]))
    return found


def run_example(code: str, where: str, space: dict, excuse: str) -> None:
    "Run an example; with an `excuse` statement by statement, each of which may raise a `StandError` with one of its texts."
    if not excuse: return exec(compile(code, where, "exec"), space)
    from stand.core import StandError

    for statement in ast.parse(code, where).body:
        try: exec(compile(ast.Module([statement], []), where, "exec"), space)
        except StandError as error:
            if not any(text in str(error) for text in excuse.split(" | ")): raise


def run_shell(code: str) -> None:
    "Run an example in bash. `git clone` has this working tree; `make` and `pip install` say what they would do, as .ci/run does it anyway, or it is large."
    config = ConfigParser()
    config.read(ROOT / "settings.ini", encoding="utf-8")
    (settings := Path(".gitconfig").absolute()).write_text(f'[safe]\n  directory = *\n[url "file://{ROOT}"]\n  insteadOf = {config["DEFAULT"]["git_url"]}\n')
    bin = os.path.dirname(sys.executable)
    env = os.environ | dict(PATH=f"{bin}{os.pathsep}{os.environ['PATH']}", GIT_CONFIG_GLOBAL=str(settings), MAKEFLAGS="n", PIP_DRY_RUN="1", PIP_NO_DEPS="1")
    ran = subprocess.run(["bash", "-euo", "pipefail", "-c", code], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ran.returncode: raise RuntimeError(f"status {ran.returncode}\n{ran.stdout[-3000:]}")


def run_page(page: Path) -> int:
    "Run the examples of a page in this process and in the working directory; a line for each; returns 1 if one failed."
    space, excuse = {"__name__": "__main__"}, ""
    where = page.relative_to(ROOT)
    for kind, line, code in parts(page):
        if kind == "or": excuse = code
        if kind not in ("python", "shell", "set-up"): continue
        named = "stand" in space
        if kind == "set-up": exec("import stand", space)
        try:
            if kind == "shell": run_shell(code)
            else: run_example("\n" * line + code, str(where), space, excuse if kind == "python" else "")
        except Exception:
            print(f"failed  {where}:{line + 1}", traceback.format_exc(), sep="\n", flush=True)
            return 1  # what follows builds on it
        if kind == "set-up" and not named: del space["stand"]  # the page has to import it by itself
        if kind in ("python", "shell"):
            excuse = ""
            print(f"passed  {where}:{line + 1}", flush=True)
    return 0


def run_pages(jobs: int) -> None:
    "Run the examples of all pages, each page in a process of its own."
    env = {k: v for k, v in os.environ.items() if not k.startswith("STAND_")}
    env |= dict(MPLBACKEND="agg", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", PYTHONWARNINGS="ignore", PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "scripts")]))

    def run(page: Path) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, __file__, "--page", str(page)], env=env, capture_output=True, text=True, timeout=900)

    pages = [page for page in PAGES if any(kind in ("python", "shell") for kind, *_ in parts(page))]
    with ThreadPoolExecutor(jobs) as pool:
        for page, ran in zip(pages, pool.map(run, pages)):
            lines = [line for line in ran.stdout.splitlines() if line.startswith(("passed ", "failed "))]
            done.update(line.split()[0] for line in lines)
            print(*[line for line in lines if not line.startswith("passed ")], sep="\n", end="\n" * any(not x.startswith("passed ") for x in lines))
            n = sum(line.startswith("passed ") for line in lines)
            if n: print(f"passed  {n} examples of {page.relative_to(ROOT)}", flush=True)
            if ran.returncode: print(ran.stdout[-3000:], ran.stderr[-3000:], flush=True)
            if ran.returncode and not any(line.startswith("failed ") for line in lines): done["failed"] += 1


def odd_commands() -> list[str]:
    "Shell examples that name targets or options that are not there, also where they are not run."
    from stand.cli import _parser

    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    wrong = []
    for page in PROSE:
        for kind, line, text in parts(page):
            for words in (shlex.split(x, comments=True) for x in text.splitlines() if kind == "shell" and x.startswith(("make", "stand "))):
                if words[0] == "make": wrong += [f"{page.name}: no target {w!r}" for w in words[1:] if "=" not in w and w not in targets]
                else:
                    try: _parser().parse_args([re.sub(r"\$\w+", "0", w) for w in words[1:]])
                    except SystemExit: wrong.append(f"{page.name}: {shlex.join(words)}")
    return wrong


def dead_links() -> list[str]:
    "Links of the built pages to files or places that are not there."
    pages = {p.relative_to(HTML).as_posix(): p.read_text(encoding="utf-8") for p in HTML.rglob("*.html")}
    ids = {name: set(re.findall(r'\b(?:id|name)="([^"]+)"', text)) for name, text in pages.items()}
    wrong = []
    for name, text in pages.items():
        for target in set(re.findall(r'\b(?:href|src)="([^"]+)"', text)):
            if re.match(r"[a-z]+:|//", target) or name in ("search.html", "genindex.html", "py-modindex.html") and target.endswith("#"): continue
            file, _, place = unquote(target).partition("#")
            there = os.path.normpath(os.path.join(os.path.dirname(name), file)).replace(os.sep, "/") if file else name
            if not (HTML / there.split("?")[0]).exists(): wrong.append(f"{name}: {target}")
            elif place and there in ids and place not in ids[there]: wrong.append(f"{name}: {target}")
    return wrong


def dead_paths() -> list[str]:
    "Links of Markdown files and notebooks to files that the repository lacks, and pictures without a description."
    texts = {p: p.read_text(encoding="utf-8") for p in PROSE}
    for p in [*(ROOT / "nbs").glob("*.ipynb"), ROOT / "STAnD-tutorial.ipynb"]:
        texts[p] = "\n".join(c.source for c in nbformat.read(p, as_version=4).cells if c.cell_type == "markdown")
    wrong = []
    for path, text in texts.items():
        text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not re.match("[a-z]+:", target) and not (path.parent / target).exists(): wrong.append(f"{path.relative_to(ROOT)}: {target}")
        wrong += [f"{path.relative_to(ROOT)}: a picture without a description" for _ in re.findall(r"!\[\s*\]\(", text)]
    return wrong


def unknown_errors(modules: dict[str, reference.Module]) -> list[str]:
    "Messages that `docs/errors.md` quotes and the package does not have."
    messages = {m for module in modules.values() for m in module.messages()}
    squeeze = lambda text: re.sub(r"…[\s…]*", "…", text)
    known = "\n".join(map(squeeze, messages))
    quoted = re.findall(r"^### `(.*)`$", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), re.M)
    return [q for q in quoted if squeeze(q).strip("… ") not in known] + ([] if quoted else ["no errors are quoted"])


def misspelt() -> list[str]:
    "What codespell finds in prose, code and notebooks."
    with tempfile.TemporaryDirectory() as folder:
        for p in [*(ROOT / "nbs").glob("*.ipynb"), ROOT / "STAnD-tutorial.ipynb"]:
            text = "\n".join(c.source for c in nbformat.read(p, as_version=4).cells if c.cell_type == "markdown")
            (Path(folder) / f"{p.stem}.md").write_text(text, encoding="utf-8")
        files = [*PROSE, ROOT / "Makefile", *(ROOT / "scripts").glob("*.py"), *(ROOT / "stand").glob("*.py")]
        words = ["codespell", "--ignore-words-list", NOT_MISSPELT, folder, *map(str, files)]
        ran = subprocess.run([sys.executable, "-m", "codespell_lib", *words[1:]], capture_output=True, text=True)
        return [line.replace(folder, "nbs").replace(f"{ROOT}/", "") for line in ran.stdout.splitlines()] + ran.stderr.splitlines()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="pages whose examples run at a time (default: %(default)s)")
    parser.add_argument("--page", type=Path, help="run the examples of this page only, in this process")
    args = parser.parse_args()
    if args.page:
        page = args.page.resolve()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            status = run_page(page)
            os.chdir(ROOT)
        sys.exit(status)
    sys.path.insert(0, str(ROOT))  # this working tree, whatever is installed
    if not (HTML / "index.html").is_file(): sys.exit("no _docs/html: run scripts/build_docs.py first")
    modules = reference.modules()
    told("public names have a docstring, and parameters a meaning", undescribed(modules))
    told("public names are in the reference", not_in_reference(modules))
    told("links of the pages lead somewhere", dead_links())
    told("links in the repository lead somewhere, pictures are described", dead_paths())
    told("errors that are explained are errors of the package", unknown_errors(modules))
    told("shell examples name what there is", odd_commands())
    told("spelling", misspelt())
    run_pages(args.jobs)
    print(f"{done['passed']} passed, {done['failed']} failed, {done['skipped']} skipped")
    sys.exit(1 if done["failed"] else 0)
