"""Read what the modules of `stand` offer, and write a reference page of each: parameters as the code's own comments tell them, and errors.

Nothing is imported: everything is taken from the sources, so that what is shown is what is written there.
"""
import ast
import re
import tokenize
from dataclasses import dataclass, field
from functools import cache, cached_property
from io import StringIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "stand"

# Parameters that mean the same everywhere, for inner functions that do not say it again. Names of the front page (`stand.run`, ...) always do.
COMMON = dict(
    section="the section", sections="the sections", model="a model", cells="a table of nuclei, of `predict_nuclei` or `deconvolve`", slide="the slide",
    seed="one seed gives one result", rng="where random numbers come from", progress="show a progress bar", device="where to compute",
    labels="label image, 0 is background", rgb="image, (height, width, 3) uint8", mpp="µm per pixel", train="spots to learn from, with their counts",
    test="spots to predict; without counts", lr="learning rate", epochs="passes over the training spots, at most", gene="a gene of the table",
    layers="what the viewer shows", shapes="outlines to draw", ax="axes to draw on", scene="what the panels show", tile="a place on the slide", cmap="name of a matplotlib colour map",
    name="for messages", members="of an ensemble",
)  # fmt: skip


@dataclass
class Param:
    "A parameter of a function, or a field of a class."

    name: str
    kind: str  # its annotation
    default: str
    what: str  # its docment


@dataclass
class Entry:
    "A public name: what it is, what it takes, what it gives, and what it complains of."

    module: str
    name: str
    kind: str  # "function", "class", "method" or "data"
    doc: str
    params: list[Param] = field(default_factory=list)
    returns: Param | None = None
    raises: list[str] = field(default_factory=list)
    methods: list["Entry"] = field(default_factory=list)
    value: str = ""

    @property
    def front(self) -> bool:  # on the front page: `stand.name`
        return front_names().get(self.name) == self.module

    @property
    def full(self) -> str: return f"stand.{self.name}" if self.front else f"stand.{self.module}.{self.name}"


@cache
def front_names() -> dict[str, str]:  # public name -> module
    "Read which names `import stand` offers, and where they live."
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    return next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "_MODULE_OF")


@cache
def remedies() -> dict[str, str]:  # field of a section -> what to call if it is missing
    "Read what `need` tells users to do."
    tree = ast.parse((PACKAGE / "core.py").read_text(encoding="utf-8"))
    table = next(n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "_REMEDY")
    return {k.arg: k.value.value for k in table.keywords}


class Module:
    "One module, read but not imported."

    def __init__(self, path: Path):
        self.name, self.source = path.stem, path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.source)
        tokens = tokenize.generate_tokens(StringIO(self.source).readline)
        self.comments = {t.start[0]: t.string.lstrip("#| ").strip() for t in tokens if t.type == tokenize.COMMENT}
        self.functions = {n.name: n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        notebook = re.search(r"File to edit: \.\./(nbs/\S+\.ipynb)\.", self.source)
        self.notebook = notebook[1] if notebook else None

    @cached_property
    def entries(self) -> list[Entry]:
        "Public names in the order in which they are defined; loggers and what is patched onto classes of others are no names of their own."
        listed = next((ast.literal_eval(n.value) for n in self.tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"), [])
        found = []
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef) and node.name in listed: found.append(self.function(node))
            elif isinstance(node, ast.ClassDef) and node.name in listed: found.append(self.klass(node))
            elif isinstance(node, ast.FunctionDef) and "patch" in map(ast.unparse, node.decorator_list): found.append(self.patched(node))
            elif isinstance(node, ast.Assign): found += [self.constant(node, t.id) for t in node.targets if isinstance(t, ast.Name) and t.id in listed]
        return [entry for entry in found if "getLogger" not in entry.value]

    def text(self, node: ast.AST | None) -> str: return "" if node is None else re.sub(r"\s+", " ", ast.get_source_segment(self.source, node) or "")

    def params(self, node: ast.FunctionDef) -> list[Param]:
        "Parameters with the comments at the ends of their lines."
        a, body = node.args, node.body[0].lineno
        positional = [*a.posonlyargs, *a.args]
        given = dict(zip([p.arg for p in positional[::-1]], a.defaults[::-1])) | {p.arg: d for p, d in zip(a.kwonlyargs, a.kw_defaults) if d}
        every = [("", p) for p in positional] + [("*", p) for p in [a.vararg] if p] + [("", p) for p in a.kwonlyargs] + [("**", p) for p in [a.kwarg] if p]
        every = [(stars, p) for stars, p in every if p.arg not in ("self", "cls")]
        line = lambda p: given[p.arg].end_lineno if p.arg in given else p.end_lineno
        alone = lambda p: sum(line(q) == line(p) for _, q in every) == 1 and node.lineno < line(p) < body
        return [Param(stars + p.arg, self.text(p.annotation), self.text(given.get(p.arg)), self.comments.get(line(p), "") if alone(p) else "") for stars, p in every]

    def fields(self, node: ast.ClassDef) -> list[Param]:
        "Fields of a dataclass or a named tuple."
        found = [n for n in node.body if isinstance(n, ast.AnnAssign) and not n.target.id.startswith("_")]
        return [Param(n.target.id, self.text(n.annotation), self.text(n.value), self.comments.get(n.end_lineno, "")) for n in found]

    def function(self, node: ast.FunctionDef, kind: str = "function") -> Entry:
        returns = Param("", self.text(node.returns), "", self.comments.get(node.returns.end_lineno, "")) if node.returns else None
        return Entry(self.name, node.name, kind, ast.get_docstring(node) or "", self.params(node), returns, self.raised(node))

    def klass(self, node: ast.ClassDef) -> Entry:
        methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
        shown = [self.function(n, "method") for name, n in methods.items() if not name.startswith("_") and name not in ("forward", "train") and ast.get_docstring(n)]
        start = methods.get("__init__")
        bases = [self.functions[b.id] for b in node.bases if isinstance(b, ast.Name) and b.id in self.functions and b.id.startswith("_")]
        params = self.params(start) if start else [f for n in [*bases, node] for f in self.fields(n)]
        raises = [m for name in ("__init__", "__post_init__", "__new__") if name in methods for m in self.raised(methods[name])]
        return Entry(self.name, node.name, "class", ast.get_docstring(node) or "", params, None, raises, shown)

    def patched(self, node: ast.FunctionDef) -> Entry:
        "A method that is put onto a class of another package, as fastcore's `patch` does."
        entry = self.function(node)
        entry.name = f"{ast.unparse(node.args.args[0].annotation)}.{node.name}"
        return entry

    def constant(self, node: ast.Assign, name: str) -> Entry:
        lines = [node.lineno - 1, node.lineno, node.end_lineno]
        return Entry(self.name, name, "data", next((c for n in lines if (c := self.comments.get(n)) and not c.startswith("%%")), ""), value=self.text(node.value))

    def raised(self, node: ast.AST, seen: frozenset = frozenset()) -> list[str]:
        "Messages of the errors that a definition raises, its helpers' included."
        found = []
        for n in ast.walk(node):
            if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call): found += self.message(n.exc)
            if not isinstance(n, ast.Call) or not isinstance(n.func, ast.Name): continue
            called = n.func.id
            if called == "need": found += [f"section … has no {a.value}: {remedies()[a.value]}" for a in n.args[1:] if isinstance(a, ast.Constant)]
            elif called == "gene_index" and self.name != "core": found.append("gene … is not known; did you mean …?")
            elif called == "existing_path" and self.name != "core": found.append("…: no such file or folder …")
            elif called == "written_whole" and self.name != "core": found.append("… exists already; pass overwrite=True to replace it")
            elif called.startswith("_") and called in self.functions and called not in seen: found += self.raised(self.functions[called], seen | {called})
        return list(dict.fromkeys(found))

    def message(self, call: ast.Call) -> list[str]:
        "The text of one error, with … for what differs."
        name = ast.unparse(call.func)
        if name == "unknown_name": return [f"{shown(call.args[0])} … is not known; did you mean …?"]
        if name != "StandError" or not call.args: return []
        return [] if (text := shown(call.args[0])).startswith("…;") or len(text) < 9 else [text]  # the rest of a message that begins elsewhere


    def messages(self) -> list[str]:
        "All that this module says to users, in errors and warnings, with … for what differs."
        calls = [n for n in ast.walk(self.tree) if isinstance(n, ast.Call) and n.args]
        texts = [n.args[0] for n in calls if ast.unparse(n.func) in ("StandError", "log.warning", "log.info") or "log.warning" in ast.unparse(n.func)]
        texts += [n.value for n in ast.walk(self.tree) if isinstance(n, ast.Assign) and isinstance(n.value, ast.JoinedStr | ast.Constant)]  # put together before
        said = [re.sub(r"%%", "%", re.sub(r"%(\.?\w+)?[dsrfg]", "…", shown(t))) if isinstance(t, ast.Constant) else shown(t) for t in texts]
        return said + [m for e in self.entries for m in e.raises]


def shown(node: ast.AST) -> str:
    "What a message says, with … for what differs."
    if isinstance(node, ast.Constant): return str(node.value)
    if isinstance(node, ast.JoinedStr): text = "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
    elif isinstance(node, ast.BinOp): text = shown(node.left) + shown(node.right)
    elif isinstance(node, ast.IfExp): text = shown(node.body)
    else: return "…"
    return re.sub(r"…(\s*…)+", "…", text)


def modules() -> dict[str, Module]:
    "All modules in the order of their notebooks."
    found = [Module(path) for path in PACKAGE.glob("*.py") if not path.stem.startswith("_")]
    return {m.name: m for m in sorted(found, key=lambda m: m.notebook or "")}


def meaning(param: Param) -> str: return param.what or COMMON.get(param.name.lstrip("*"), "")


def cell(text: str) -> str:
    "Make text safe in a cell of a Markdown table; what stands in backticks stays as it is."
    parts = re.split(r"(`[^`]*`)", text.replace("\n", " "))
    return "".join(p.replace("|", r"\|") if p.startswith("`") else re.sub(r"([\\*_<$|{}\[\]])", r"\\\1", p) for p in parts)


def code(text: str) -> str: return f"`{text}`" if text else ""


def table(params: list[Param]) -> list[str]:
    "The table of parameters."
    rows = [f"| {cell(code(p.name))} | {cell(code(p.kind))} | {cell(code(p.default))} | {cell(meaning(p))} |" for p in params]
    return ["| parameter | type | default | |", "|---|---|---|---|", *rows, ""] if rows else []


def described(entry: Entry, owner: str = "") -> str:
    "One name as Markdown, in the directives of Sphinx' Python domain."
    signature = ", ".join(f"{p.name}={p.default}" if p.default else p.name for p in entry.params)
    full = entry.name if owner else entry.full
    lines = [f"{{py:{entry.kind}}} {full}" + ("" if entry.kind == "data" else f"({signature})")]
    if entry.front: lines.append(f":canonical: stand.{entry.module}.{entry.name}")
    lines += ["", cell(entry.doc.split("\n\n")[0]), ""]
    lines += [f"{cell(rest)}\n" for rest in entry.doc.split("\n\n")[1:]]
    if 0 < len(entry.value) <= 120: lines += [f"Value: {cell(code(entry.value))}", ""]
    lines += table(entry.params)
    if entry.returns and entry.returns.kind != "None": lines += [f"**Returns** {code(entry.returns.kind)}" + (f": {cell(entry.returns.what)}" if entry.returns.what else ""), ""]
    if entry.raises: lines += ["**Raises** {py:obj}`stand.StandError`:", "", *(f"- {cell(m)}" for m in entry.raises), ""]
    lines += [described(m, entry.full) for m in entry.methods]
    fence = "`" * (3 if owner or not entry.methods else 4)
    return f"{fence}" + "\n".join(lines).rstrip() + f"\n{fence}\n"


def first_line(entry: Entry) -> str: return cell(entry.doc.split("\n")[0])


def page(module: Module) -> str:
    "The reference page of a module."
    rows = [f"| {{py:obj}}`{e.name} <{e.full}>` | {first_line(e)} |" for e in module.entries]
    lines = [f"# stand.{module.name}", "", cell(ast.get_docstring(module.tree) or ""), "",
             f"Why it is as it is, with examples and tests: notebook [{Path(module.notebook).stem}](../{module.notebook}).", "",
             "| name | |", "|---|---|", *rows, ""]  # fmt: skip
    return "\n".join(lines) + "\n" + "\n".join(described(e) for e in module.entries)


def overview(found: dict[str, Module]) -> str:
    "The front page of the reference: the names of `import stand`, then the modules."
    entries = {e.name: e for m in found.values() for e in m.entries if e.front}
    rows = [f"| {{py:obj}}`{name} <stand.{name}>` | {first_line(entries[name])} |" for name in front_names()]
    of_modules = [f"| [stand.{name}]({name}.md) | {cell(ast.get_docstring(m.tree) or '')} |" for name, m in found.items()]
    toc = ["```{toctree}", ":hidden:", *found, "```"]
    return "\n".join([
        "# Reference", "", "Everything that a user needs comes with `import stand`. Types and meanings of parameters are the comments in the code; lengths in µm end "
        "in `_um`, lengths in pixels in `_px`; points are (x, y) in pixels of the full-resolution image. What a user gives wrongly raises {py:obj}`stand.StandError`: "
        "the messages are listed with each name, with … for what differs.", "", "## import stand", "", "| name | |", "|---|---|", *rows, "",
        "## Modules", "", "Each comes from a notebook, which tells why it is as it is. The order is that of reading: a module uses only those above it.", "",
        "| module | |", "|---|---|", *of_modules, "", *toc, ""])  # fmt: skip
