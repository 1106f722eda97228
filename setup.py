"Package metadata comes from `settings.ini`, which nbdev reads too, so that nothing is written twice."
from configparser import ConfigParser
from pathlib import Path
from shlex import split

from setuptools import find_namespace_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
wanted = "lib_name version description keywords author author_email license status min_python audience language git_url".split()
missing = [key for key in wanted if key not in cfg]
if missing: raise SystemExit(f"settings.ini: missing {missing}")

statuses = ["1 - Planning", "2 - Pre-Alpha", "3 - Alpha", "4 - Beta", "5 - Production/Stable", "6 - Mature", "7 - Inactive"]
setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    classifiers=[
        f"Development Status :: {statuses[int(cfg['status']) - 1]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Bio-Informatics",
        "Framework :: Jupyter",
    ],
    packages=find_namespace_packages(include=[cfg["lib_name"], f"{cfg['lib_name']}.*"]),  # static and weights hold no Python
    include_package_data=True,
    python_requires=f">={cfg['min_python']}",
    install_requires=split(cfg["requirements"]),
    extras_require={name: cfg[f"{name}_requirements"].split() for name in ("dev", "docs")},
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
    zip_safe=False,
)
