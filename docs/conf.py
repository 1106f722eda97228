"How Sphinx makes the pages. `scripts/build_docs.py` gathers what they are made of and calls it."
from configparser import ConfigParser
from os import environ
from pathlib import Path
from re import sub

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

config = ConfigParser(delimiters=["="])
config.read(Path(environ["STAND_ROOT"]) / "settings.ini", encoding="utf-8")
about = config["DEFAULT"]

project, author, copyright, version = about["title"], about["author"], about["copyright"], about["version"]
release = version
extensions = ["myst_nb"]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the outputs that the notebooks keep are what is shown
nb_merge_streams = True
exclude_patterns = ["conf.py"]
suppress_warnings = ["mystnb.unknown_mime_type"]  # widgets: their plain text is shown

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["stand.css"]
html_show_sourcelink = html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"


def _mathml(display: str):
    def visit(self, node):
        "Write a formula as MathML, which browsers draw by themselves: no script, no network."
        spaced = sub(r"\\(log|exp)(?=\s*(?:\w|\\(?:[A-Z]|math|t?frac|pi)))", r"\\\1\\,", node.astext().strip())  # browsers put no space after a name
        self.body.append(convert(spaced, display=display))
        raise SkipNode

    return visit, None


def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=_mathml("inline"), block_renderers=_mathml("block"))
