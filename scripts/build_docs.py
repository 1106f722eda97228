"""Build the documentation: `python scripts/build_docs.py` writes `_docs/html`, from what is in the repository and without a network.

Pages are `docs/*.md`, the tutorial and the notebooks with the outputs that they keep (nothing is executed), a reference that is read off
the modules (`reference.py`), the changelog and CONTRIBUTING.md. They are gathered in `_docs/source`, laid out as in the repository so that
links work in both places, and Sphinx makes the site; a warning of Sphinx is an error.
"""
import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import reference
from build_readme import shown

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "_docs"
SOURCE, HTML = OUT / "source", OUT / "html"
COPIED = ["figures", "LICENSE", "docs/_static", "docs/conf.py"]
# Order of the pages in docs/; what is not named here goes to the end of the how-to pages, so that a new page is found without an entry.
HOW_TO = ["own-data", "own-nuclei", "encoders", "many-sections", "unseen-slides", "gpu-cluster", "qupath", "napari"]
IDEAS = ["model", "evidence", "glossary", "errors"]


def linker(modules: dict[str, reference.Module], names: dict[str, str]):  # names: as they may be written -> full name
    "Make a function that links names in backticks to the reference, and names of modules to their notebooks, outside of code."

    def link(match: re.Match, folder: str) -> str:
        "Link one name."
        text = match[2]
        called = re.fullmatch(r"(?:stand\.)?([\w.]+?)(\(.*\))?", text)
        if called and (full := names.get(text.partition("(")[0]) or (called[2] and names.get(called[1]))) and not re.search("[<>`]", text):
            return f"{{py:obj}}`{text} <{full}>`"
        if text in modules and folder == "nbs": return f"[`{text}`]({Path(modules[text].notebook).name})"
        return match[0]

    def linked(text: str, folder: str = "") -> str:
        parts = re.split(r"(^#.*?$|^```+(?!`*\{py:).+?^```+$|\[[^\]]*\]\([^)]*\)|\$\$.*?\$\$)", text, flags=re.M | re.S) if folder != "api" else [text]
        return "".join(p if i % 2 else re.sub(r"(?<![`{}\w])(`)([\w.]+(?:\([^`]*\))?)`(?!`)", lambda m: link(m, folder), p) for i, p in enumerate(parts))

    return linked


def known_names(modules: dict[str, reference.Module]) -> dict[str, str]:
    "How names may be written in prose: `stand.run`, `stand.evaluate.compare`, `segment_nuclei`, `compare()`; short ones only with brackets or dots."
    entries = [e for m in modules.values() for e in m.entries]
    count = lambda name: sum(e.name == name for e in entries)
    names = {e.full: e.full for e in entries} | {f"stand.{e.module}.{e.name}": e.full for e in entries}
    names |= {e.name: e.full for e in entries if count(e.name) == 1 and ("_" in e.name.strip("_") or re.search("[a-z][A-Z]", e.name))}
    return names


def stored(notebook: str, cell: str) -> str:
    "What a cell of a notebook has printed or shown as a table, as it is stored; notes to the reader of the notebook left out."
    found = next((c for c in nbformat.read(ROOT / notebook, as_version=4).cells if c.id == cell), None)
    if found is None: raise SystemExit(f"{notebook} has no cell {cell}, whose output a page of docs/ wants")
    blocks = []
    for o in found.outputs:
        data = o.get("data", {})
        if "text/markdown" in data:
            blocks.append(data["text/markdown"])
            continue
        kind, text = ("{raw} html", data["text/html"]) if "text/html" in data else ("text", str(o.get("text") or data.get("text/plain", "")))
        lines = [line for line in text.splitlines() if not re.search("spots have no nuclei|^$", line)]
        if lines: blocks.append("\n".join([f"```{kind}", *lines, "```"]))
    if not blocks: raise SystemExit(f"{notebook}: cell {cell} has no stored output of text")
    return "\n\n".join(blocks)


def pathology() -> str:
    "The table of foundation models, read off the recipes."
    tree = ast.parse((ROOT / "stand" / "pathology.py").read_text(encoding="utf-8"))
    value = lambda name: next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == name)
    licence, rows = ast.literal_eval(value("_NC_ND")), []
    for recipe in value("PATHOLOGY").keywords:
        call, given = recipe.value, {k.arg: k.value for k in recipe.value.keywords if k.arg}
        terms = call.args[2] if len(call.args) > 2 else given["licence"]
        page = ast.literal_eval(call.args[0]).removeprefix("hf-hub:")
        rows.append(f"| `{recipe.arg}` | [{page}](https://huggingface.co/{page}) | {licence if isinstance(terms, ast.Name) else ast.literal_eval(terms)} |")
    return "\n".join(["| name | weights | licence |", "|---|---|---|", *rows])


def filled(text: str) -> str:
    "Put in what comments such as `<!-- output: notebook cell -->` want from elsewhere, and take out those of `check_docs.py`."
    text = re.sub(r"^<!-- output: (\S+) (\S+) -->$", lambda m: stored(m[1], m[2]), text, flags=re.M)
    text = text.replace("<!-- table: pathology -->", pathology())
    return re.sub(r"^<!-- (set-up|or)\b.*?-->\n", "", text, flags=re.M | re.S)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def copy_notebook(path: Path, linked) -> None:
    "Copy a notebook as readers see it: without hidden cells and directives, with names linked to the reference."
    nb, target = shown(nbformat.read(path, as_version=4)), SOURCE / path.relative_to(ROOT)
    for c in nb.cells:
        if c.cell_type != "markdown": continue
        # Jupyter takes displayed formulas within a paragraph, MyST wants them apart
        c.source = re.sub(r"\s*\$\$(.+?)\$\$[ \t]*\n?", r"\n\n$$\n\1\n$$\n\n", c.source, flags=re.S)
        c.source = linked(c.source.replace("](../docs/index.md)", "](../index.md)"), target.parent.name)  # it moves up, see `gather`
    target.parent.mkdir(parents=True, exist_ok=True)
    nb.metadata["language_info"] = {"name": "python"}
    nbformat.write(nb, target)


def toctree(caption: str, pages: list[str]) -> str: return "\n".join(["```{toctree}", f":caption: {caption}", ":hidden:", *pages, "```", ""])


def contents() -> str:
    "The tables of contents, for the end of the front page."
    there = sorted(p.stem for p in (ROOT / "docs").glob("*.md") if p.stem != "index")
    how_to = [p for p in HOW_TO if p in there] + [p for p in there if p not in HOW_TO + IDEAS]
    return "\n".join([
        toctree("Begin", ["Overview <nbs/index>", "Tutorial <STAnD-tutorial>"]), toctree("How to", [f"docs/{p}" for p in how_to]),
        toctree("Understand", [f"docs/{p}" for p in IDEAS if p in there]), toctree("Look up", ["api/index", "nbs/notebooks"]),
        toctree("Project", ["CHANGELOG", "CONTRIBUTING"])])  # fmt: skip


def notebooks_page() -> str:
    "The list of the notebooks."
    pages = sorted(p.stem for p in (ROOT / "nbs").glob("[0-9]*.ipynb"))
    intro = "The source of the package, in the order of reading: each tells one idea, defines it, tries it out and tests it. `stand/` is exported from them."
    return "\n".join(["# Notebooks", "", intro, "", "```{toctree}", ":maxdepth: 1", *pages, "```", ""])


def gather() -> None:
    "Lay out the sources of the site as the repository is laid out."
    shutil.rmtree(SOURCE, ignore_errors=True)
    modules = reference.modules()
    linked = linker(modules, known_names(modules))
    for name in COPIED:
        target = SOURCE / name.removeprefix("docs/")
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    notebooks = sorted((ROOT / "nbs").glob("*.ipynb"))
    for path in [*notebooks, ROOT / "STAnD-tutorial.ipynb"]: copy_notebook(path, linked)
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]:
        text = linked(filled(path.read_text(encoding="utf-8")))
        if path.stem == "index":  # moves up by a folder
            text = re.sub(r"\]\((?!\.\./|https?:)", "](docs/", text).replace("](../", "](")
            write(SOURCE / "index.md", text + "\n" + contents())
        else: write(SOURCE / path.relative_to(ROOT), text)
    write(SOURCE / "nbs" / "notebooks.md", notebooks_page())
    write(SOURCE / "api" / "index.md", linked(reference.overview(modules), "api"))
    for name, module in modules.items(): write(SOURCE / "api" / f"{name}.md", linked(reference.page(module), "api"))


def build() -> int:
    "Let Sphinx make the site; returns its exit status."
    shutil.rmtree(HTML, ignore_errors=True)
    options = ["-b", "html", "-W", "--keep-going", "-q", "-j", "2", "-d", str(OUT / "doctrees")]
    return subprocess.run([sys.executable, "-m", "sphinx", *options, str(SOURCE), str(HTML)], env=os.environ | dict(STAND_ROOT=str(ROOT))).returncode


if __name__ == "__main__":
    gather()
    if status := build(): sys.exit(status)
    print(f"wrote {HTML.relative_to(ROOT)}: {len(list(HTML.rglob('*.html')))} pages; open {HTML.relative_to(ROOT)}/index.html")
