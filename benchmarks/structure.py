"""How the code is laid out: modules per folder, import circles, lines, untyped mappings.

    python benchmarks/structure.py          # the figures
    python benchmarks/structure.py --check  # exit code 1 if a limit is broken; part of `make lint`

Imports inside functions and those for type checkers count: a circle that is hidden there is one.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
#: Source roots, each with the packages in it.
ROOTS = ("", "policies", "envs", "robots", "data", "eval", "run")
MODULES_PER_FOLDER, TESTS_PER_FOLDER, COLUMNS = 16, 20, 110
_UNTYPED = re.compile(r"\b(?:dict|Mapping|MutableMapping)\[str, Any\]")


@dataclass
class Structure:
    """What was found.

    Attributes:
        modules: dotted name -> file, of the product.
        folders: folder -> number of modules in it, ``__init__`` not counted.
        imports: module -> first-party modules that it imports.
        lines: of the product.
        untyped: number of ``dict[str, Any]`` and ``Mapping[str, Any]`` in the product.
        long_lines: ``file:line`` of each line over 110 columns, tests and scripts included.
    """

    modules: dict[str, Path] = field(default_factory=dict)
    folders: Counter[Path] = field(default_factory=Counter)
    imports: dict[str, set[str]] = field(default_factory=dict)
    lines: int = 0
    untyped: int = 0
    long_lines: list[str] = field(default_factory=list)

    def module_circle(self) -> list[str]:
        """Modules that import each other in a circle; empty if none do."""
        return _circle(self.imports)

    def package_circle(self) -> list[str]:
        """The same for folders side by side; a package and the folders inside it belong together."""
        edges: dict[str, set[str]] = {}
        for module, imported in self.imports.items():
            folder = self.modules[module].parent
            others = {self.modules[m].parent for m in imported} - {folder}
            apart = {o for o in others if o not in folder.parents and folder not in o.parents}
            edges.setdefault(str(folder), set()).update(map(str, apart))
        return _circle(edges)

    def broken(self) -> Iterator[str]:
        """One sentence for each limit that is broken."""
        if circle := self.module_circle():
            yield f"import circle: {' -> '.join(circle)}"
        if circle := self.package_circle():
            yield f"import circle between folders: {' -> '.join(circle)}"
        for folder, count in sorted(self.folders.items()):
            limit = TESTS_PER_FOLDER if folder.parts[0] == "tests" else MODULES_PER_FOLDER
            if count > limit:
                yield f"{folder} has {count} modules, at most {limit} are allowed"
        for place in self.long_lines:
            yield f"{place} is longer than {COLUMNS} columns"


def look(repo: Path = REPO) -> Structure:
    """Read the tree; nothing is imported."""
    found = Structure()
    for root in ROOTS:
        for package in sorted((repo / root).glob("*/__init__.py")):
            if "tests" in package.parts or root == "" and package.parent.name != "multismolvla":
                continue
            for file in sorted(package.parent.rglob("*.py")):
                name = ".".join(file.relative_to(repo / root).with_suffix("").parts)
                found.modules[name.removesuffix(".__init__")] = file.relative_to(repo)
    scripts = [f.relative_to(repo) for d in ("tests", "benchmarks", "docs") for f in (repo / d).rglob("*.py")]
    for file in (*found.modules.values(), *scripts):
        text = (repo / file).read_text(encoding="utf-8")
        if file.name != "__init__.py":
            found.folders[file.parent] += 1
        lines = text.splitlines()
        found.long_lines += [f"{file}:{i}" for i, line in enumerate(lines, 1) if len(line) > COLUMNS]
        if file not in scripts:
            found.lines += len(lines)
            found.untyped += len(_UNTYPED.findall(text))
    for name, file in found.modules.items():
        found.imports[name] = set(_imports((repo / file).read_text(encoding="utf-8"), found.modules)) - {name}
    return found


def _imports(text: str, modules: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in modules or node.module in modules:
                    yield inner if inner in modules else node.module


def _circle(edges: Mapping[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def main() -> int:
    """Command line entry; 1 with ``--check`` if a limit is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="say what is broken, and nothing else")
    check = parser.parse_args().check
    found = look()
    broken = list(found.broken())
    if not check:
        for folder, count in sorted(found.folders.items()):
            print(f"{count:4d} modules  {folder}")
        print(f"{len(found.modules)} modules, {found.lines} lines, {found.untyped} untyped mappings")
    for sentence in broken[:20]:
        print(sentence)
    if len(broken) > 20:
        print(f"... and {len(broken) - 20} more")
    return 1 if check and broken else 0


if __name__ == "__main__":
    sys.exit(main())
