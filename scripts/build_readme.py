"""Write README.md from nbs/index.ipynb: `python scripts/build_readme.py`.

Hidden cells and directives are dropped, the outputs stored in the notebook are kept (of cells with `echo: false`, these
alone), and its pictures are written to `figures/`. The same notebook always gives the same files.
"""
import re
from base64 import b64decode
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
ECHO = re.compile(r"^#\s*\|\s*echo:\s*false", re.M)
HIDDEN = re.compile(r"^#\s*\|\s*(hide|default_exp|include:\s*false)", re.M)


def shown(nb):
    "Drop hidden cells, directive lines and what is left on standard error."
    nb.cells = [c for c in nb.cells if not (c.cell_type == "code" and ("nbdev_export(" in c.source or HIDDEN.search(c.source)))]
    for cell in nb.cells:
        if cell.cell_type != "code": continue
        if ECHO.search(cell.source): cell.metadata["transient"] = {"remove_source": True}  # nbconvert's own word for it
        cell.source = re.sub(r"^#\s*\|.*\n?", "", cell.source, flags=re.M).strip("\n")
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    return nb


def with_pictures_in(nb, folder: Path):
    "Write the pictures among the outputs to a folder and link them."
    number = 0
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            kind = next((k for k in ("image/png", "image/jpeg") if k in output.get("data", {})), None)
            if kind is None: continue
            number += 1
            path = folder / f"readme-{number}{'.png' if kind == 'image/png' else '.jpg'}"
            path.write_bytes(b64decode(output["data"][kind]))
            output["data"] = {"text/markdown": f"![What the example shows]({folder.name}/{path.name})"}
    return nb


def readme(index: Path, figures: Path) -> str:
    "Convert the front page to Markdown that works from the root of the repository."
    for old in figures.glob("readme-*"): old.unlink()
    nb = with_pictures_in(shown(nbformat.read(index, as_version=4)), figures)
    nb.metadata["language_info"] = {"name": "python"}  # for the colours of code
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("](../", "](").replace('src="../', 'src="')
    text = "\n".join(line.rstrip() for line in text.splitlines())
    note = "<!-- Written by scripts/build_readme.py from nbs/index.ipynb: edit the notebook. -->\n\n"
    return note + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


if __name__ == "__main__":
    figures = ROOT / "figures"
    figures.mkdir(exist_ok=True)
    (ROOT / "README.md").write_text(readme(ROOT / "nbs" / "index.ipynb", figures), encoding="utf-8")
