"""How the code is laid out: modules per folder, import circles, lines, untyped mappings.

    python scripts/structure.py          # the figures
    python scripts/structure.py --check  # exit code 1 if a limit is broken; part of `make lint`

Imports inside functions and those for type checkers count: a circle that is hidden there is one.

What counts as a circle: modules that import each other, and folders that do without one lying in the other.
A package may import from its own subfolders and they from its modules; where both happen, it is listed and
no error. An untyped mapping is ``dict[str, Any]``, ``dict[str, object]`` or the same of a Mapping,
wherever it is written, and every further use of a name that stands for one.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
#: Source roots, each with the packages in it.
ROOTS = ("", "policies", "envs", "robots", "data", "eval", "run")
MODULES_PER_FOLDER, TESTS_PER_FOLDER, COLUMNS, UNTYPED_MAPPINGS = 16, 20, 110, 150
_MAPPINGS = ("dict", "Mapping", "MutableMapping")


@dataclass
class Structure:
    """What was found.

    Attributes:
        modules: dotted name -> file, of the product.
        folders: folder -> number of modules in it, ``__init__`` not counted.
        imports: module -> first-party modules that it imports.
        lines: of the product.
        untyped: file -> untyped mappings in it, of the product.
        long_lines: ``file:line`` of each line over 110 columns, tests and scripts included.
    """

    modules: dict[str, Path] = field(default_factory=dict)
    folders: Counter[Path] = field(default_factory=Counter)
    imports: dict[str, set[str]] = field(default_factory=dict)
    lines: int = 0
    untyped: Counter[Path] = field(default_factory=Counter)
    long_lines: list[str] = field(default_factory=list)

    def module_circle(self) -> list[str]:
        """Modules that import each other in a circle; empty if none do."""
        return _circle(self.imports)

    def package_circle(self) -> list[str]:
        """The same for folders side by side; a package and the folders inside it belong together."""
        edges: dict[str, set[str]] = {}
        for folder, others in self._folder_imports().items():
            edges[str(folder)] = {str(o) for o in others if not _nested(folder, o)}
        return _circle(edges)

    def nested_imports(self) -> list[tuple[Path, Path]]:
        """(package, folder inside it) that import from each other, which is allowed."""
        imports = self._folder_imports()
        pairs = ((folder, other) for folder, others in imports.items() for other in sorted(others))
        return [(f, o) for f, o in pairs if f in o.parents and f in imports.get(o, set())]

    def _folder_imports(self) -> dict[Path, set[Path]]:
        found: dict[Path, set[Path]] = {}
        for module, imported in self.imports.items():
            folder = self.modules[module].parent
            found.setdefault(folder, set()).update({self.modules[m].parent for m in imported} - {folder})
        return found

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
        if (count := self.untyped.total()) > UNTYPED_MAPPINGS:
            yield f"{count} untyped mappings, at most {UNTYPED_MAPPINGS} are allowed"
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
    trees = {m: ast.parse((repo / file).read_text(encoding="utf-8")) for m, file in found.modules.items()}
    found.imports = {m: set(_imports(tree, found.modules)) - {m} for m, tree in trees.items()}
    aliases = {m: set(_aliases(tree)) for m, tree in trees.items()}
    for module, tree in trees.items():
        names = aliases[module] | _imported_names(tree, aliases)
        found.untyped[found.modules[module]] += sum(_is_untyped(node, names) for node in ast.walk(tree))
    return found


def _nested(one: Path, other: Path) -> bool:
    return one in other.parents or other in one.parents


def _is_untyped(node: ast.AST, aliases: Collection[str] = ()) -> bool:
    """Whether an expression is an untyped mapping, or reads a name that stands for one."""
    if isinstance(node, ast.Name):
        return node.id in aliases and isinstance(node.ctx, ast.Load)
    if not (isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name)):
        return False
    if node.value.id not in _MAPPINGS or not isinstance(node.slice, ast.Tuple):
        return False
    key, value = (ast.unparse(part) for part in node.slice.elts)
    return key == "str" and value in ("Any", "object")


def _aliases(tree: ast.Module) -> Iterator[str]:
    """Names of a module that stand for a type with an untyped mapping in it."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.TypeAlias):
            names = [node.name.id]
        else:
            continue
        # a call or a literal is a value, not a type
        if isinstance(node.value, ast.Subscript | ast.BinOp) and any(map(_is_untyped, ast.walk(node.value))):
            yield from names


def _imported_names(tree: ast.Module, aliases: Mapping[str, set[str]]) -> set[str]:
    """Local names of the other modules' aliases that a module imports."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {
        name.asname or name.name
        for node in imports
        for name in node.names
        if name.name in aliases.get(node.module or "", ())
    }


def _imports(tree: ast.Module, modules: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(tree):
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
        for package, folder in found.nested_imports():
            print(f"{package} and its subfolder {folder.name} import from each other (allowed)")
        untyped = f"{found.untyped.total()} untyped mappings, names for them included"
        print(f"{len(found.modules)} modules, {found.lines} lines, {untyped}")
    for sentence in broken[:20]:
        print(sentence)
    if len(broken) > 20:
        print(f"... and {len(broken) - 20} more")
    return 1 if check and broken else 0


if __name__ == "__main__":
    sys.exit(main())
