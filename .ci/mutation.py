"""Change single places of the code, one after the other, and report which changes no test notices.

    .ci/with_core.sh release "$PWD/.ci/mutation.py" policy         40 mutants of a group of modules
    .ci/with_core.sh release "$PWD/.ci/mutation.py" --sample 200   200 of each group
    .ci/with_core.sh release "$PWD/.ci/mutation.py" --again policy the survivors, once more

cosmic-ray makes the mutants and keeps the results. `.ci/mutation.toml` names the groups, and the
tests that cover each module. Mutants are written to the copy of the packages that `with_core.sh`
makes: the checkout stays as it is. Results are in `build/mutation/GROUP.sqlite`, which `cr-report`
and `cr-html` read, too. A run that was ended goes on where it stopped; `--fresh` begins again.

The sample is random, and the same for the same seed and sources. Mutants of one place and one kind
are alike, so one of them is taken. Annotations, imports for type checking, `==` in place of `is` and
mutants that do not compile are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import subprocess
import sys
import time
import tomllib
import warnings
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import cosmic_ray.plugins
import parso
from cosmic_ray.ast import get_ast
from cosmic_ray.commands.init import _all_work_items
from cosmic_ray.mutating import MutationVisitor, mutate_and_test
from cosmic_ray.operators.operator import Operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import WorkerOutcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cosmic_ray.work_item import MutationSpec, WorkItem

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_suffix(".toml")
SESSIONS = ROOT / "build/mutation"

_SLOWER = 4
_GRACE_S = 30.0
"""A mutant hangs if its tests take longer than `_SLOWER` times those without a mutant, plus this."""


class RemoveStatement(Operator):
    """Leave out a call, or an assignment to an attribute or an item; cosmic-ray cannot."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """Yield where a statement can be left out."""
        if node.parent is None or node.parent.type != "simple_stmt":
            return
        call = node.type in {"atom_expr", "power"} and node.children[-1].type == "trailer"
        awaited = node.type == "atom_expr" and node.children[0].type == "keyword"
        target = node.type == "expr_stmt" and node.children[0].type in {"atom_expr", "power"}
        if call or awaited or (target and node.children[1].type != "annassign"):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Return `pass` in the place of a statement."""
        assert index == 0
        prefix = node.get_first_leaf().prefix
        return parso.python.tree.Keyword("pass", node.start_pos, prefix=prefix)

    @classmethod
    def examples(cls) -> tuple[()]:
        """Return no examples: they are for cosmic-ray's own tests."""
        return ()


class Provider:
    """The operators that are added to those of cosmic-ray, as a plug-in would add them."""

    operators: ClassVar = {"RemoveStatement": RemoveStatement}

    def __iter__(self) -> Iterator[str]:
        return iter(self.operators)

    def __getitem__(self, name: str) -> type[Operator]:
        return self.operators[name]


cosmic_ray.plugins.OPERATOR_PROVIDERS["batchzip"] = Provider()


class Group:
    """Modules that are measured together, and the tests of each."""

    def __init__(self, name: str, table: dict[str, list[str]]) -> None:
        self.name = name
        self.tests: dict[Path, tuple[str, ...]] = {}
        for pattern, stems in table.items():
            modules = [each for each in sorted(Path().glob(pattern)) if each.name != "__init__.py"]
            if not modules:
                raise SystemExit(f"{TABLE.name}: {pattern} of {name} is no module")
            for module in modules:
                self.tests.setdefault(module, tuple(find_tests(stems)))


def find_tests(stems: list[str]) -> Iterator[str]:
    """Yield the test files of the names that a table has, wherever they lie."""
    for stem in stems:
        found = sorted(Path("tests").rglob(f"{stem}.py"))
        if not found:
            raise SystemExit(f"{TABLE.name}: there is no test file {stem}.py")
        yield from map(str, found)


def mutants(modules: list[Path], seed: int) -> list[WorkItem]:
    """Return the mutants of modules in an order that depends on seed and sources alone."""
    places: dict[tuple[object, ...], tuple[str, WorkItem]] = {}
    sources = {module: module.read_text() for module in modules}
    for item in _all_work_items(modules, {}):
        (mutation,) = item.mutations
        if mutation.operator_name.endswith(("_Is_Eq", "_IsNot_NotEq")):
            continue  # no class that is compared by identity here has an __eq__
        if is_type(get_leaf(sources[mutation.module_path], mutation.start_pos)):
            continue
        family = mutation.operator_name.partition("_")[0]
        key = f"{seed} {mutation.module_path} {mutation.operator_name} {mutation.occurrence}"
        order = hashlib.sha256(key.encode()).hexdigest()
        place = (mutation.module_path, mutation.start_pos, family)
        if place not in places or order < places[place][0]:
            places[place] = (order, item)
    return [item for _, item in sorted(places.values(), key=lambda pair: pair[0])]


_TREES: dict[str, Any] = {}


def get_leaf(source: str, position: tuple[int, int]) -> Any:
    """Return the leaf of a source's tree that is at a position."""
    if source not in _TREES:
        _TREES[source] = get_ast(source)
    return _TREES[source].get_leaf_for_position(position, include_prefixes=True)


def is_type(leaf: Any) -> bool:
    """Return whether a leaf is of an annotation, or of a part for type checking only."""
    child, node = leaf, leaf.parent
    while node is not None:
        if node.type in {"annassign", "tfpdef"} and child is not node.children[0]:
            return node.type == "tfpdef" or child is node.children[1]
        if node.type == "funcdef" and child is node.annotation:
            return True
        if node.type == "if_stmt" and node.children[1].get_code().strip() == "TYPE_CHECKING":
            return True
        child, node = node, node.parent
    return False


def compiles(mutation: MutationSpec) -> bool:
    """Return whether a mutant is Python at all."""
    operator = cosmic_ray.plugins.get_operator(mutation.operator_name)(**mutation.operator_args)
    source = mutation.module_path.read_text()
    changed = MutationVisitor.mutate_code(source, operator, mutation.occurrence)
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(changed, "mutant", "exec")
    except SyntaxError:
        return False
    return bool(changed != source)


def begin(group: Group, database: WorkDB, seed: int, sample: int, only: str) -> None:
    """Fill up a session to as many mutants as are wanted of the modules that `only` fits."""
    items = mutants(list(group.tests), seed)
    have = {key(item) for item in database.work_items}
    if have - {key(item) for item in items}:
        raise SystemExit(
            f"modules of {group.name} have changed since its session began: use --fresh"
        )
    wanted = sample - sum(fnmatch(module, only) for module, *_ in have)
    chosen: list[WorkItem] = []
    for item in items:
        if len(chosen) >= wanted:
            break
        fits = fnmatch(key(item)[0], only) and key(item) not in have
        if fits and compiles(item.mutations[0]):
            chosen.append(item)
    database.add_work_items(chosen)


def key(item: WorkItem) -> tuple[str, str, int, tuple[int, int]]:
    """Return what tells mutants apart."""
    (mutation,) = item.mutations
    return (
        str(mutation.module_path),
        mutation.operator_name,
        mutation.occurrence,
        mutation.start_pos,
    )


def run(group: Group, database: WorkDB, patience_s: float, *, again: bool) -> None:
    """Try the mutants of a session that have no result and, if wanted, the survivors."""
    todo = sorted(database.pending_work_items, key=key)
    for item, result in database.completed_work_items if again else ():
        if not result.is_killed:
            todo.append(item)
    limits_s = {
        tests: measure(group, tests, patience_s)
        for tests in sorted({group.tests[item.mutations[0].module_path] for item in todo})
    }
    for number, item in enumerate(todo, 1):
        (mutation,) = item.mutations
        tests = group.tests[mutation.module_path]
        result = mutate_and_test([mutation], shlex.join(command(tests)), timeout=limits_s[tests])
        database.set_result(item.job_id, result)
        where = f"{mutation.module_path}:{mutation.start_pos[0]} {mutation.operator_name}"
        print(f"{group.name} {number}/{len(todo)} {result.test_outcome.value}: {where}", flush=True)


def command(tests: Sequence[str]) -> list[str]:
    """Return the command that runs test files, and ends with the first failure."""
    marks = "not slow"
    return [sys.executable, "-m", "pytest", "-qx", "-n0", "-m", marks, "--no-header", *tests]


def measure(group: Group, tests: Sequence[str], patience_s: float) -> float:
    """Run tests without a mutant. Return the seconds after which a mutant counts as killed.

    Raise SystemExit if they fail or take more than `patience_s`: every mutant would count as killed.
    """
    began = time.monotonic()
    try:
        subprocess.run(
            command(tests), timeout=patience_s, check=True, stdout=subprocess.PIPE, text=True
        )
    except subprocess.TimeoutExpired:
        raise SystemExit(f"more than {patience_s:.0f} s: {shlex.join(command(tests))}") from None
    except subprocess.CalledProcessError as error:
        print(error.stdout)
        raise SystemExit(f"this fails without a mutant: {shlex.join(command(tests))}") from None
    took_s = time.monotonic() - began
    print(f"{group.name}: {took_s:.0f} s for {' '.join(tests)}", flush=True)
    return _SLOWER * took_s + _GRACE_S


def report(names: list[str]) -> None:
    """Print the score of each group and module, and write the survivors beside the session."""
    print(f"\n{'':44} mutants  killed  survived  score")
    for name in names:
        path = SESSIONS / f"{name}.sqlite"
        if not path.exists():
            continue
        rows: dict[str, list[bool]] = {}
        with (
            use_db(path, WorkDB.Mode.open) as database,
            path.with_suffix(".diff").open("w") as diffs,
        ):
            for item, result in database.completed_work_items:
                if result.worker_outcome != WorkerOutcome.NORMAL:
                    continue
                module = str(item.mutations[0].module_path)
                rows.setdefault(module, []).append(result.is_killed)
                if not result.is_killed:
                    diffs.write(f"{result.diff}\n\n")
        print_row(name, [each for row in rows.values() for each in row])
        for module in sorted(rows):
            print_row(f"  {module}", rows[module])
    print(f"The survivors are in {SESSIONS.relative_to(ROOT)}/*.diff.")


def print_row(name: str, row: list[bool]) -> None:
    """Print a line of the table of scores."""
    killed = sum(row)
    score = f"{killed / len(row):.0%}" if row else "–"
    print(f"{name:44} {len(row):7}  {killed:6}  {len(row) - killed:8}  {score:>5}")


def main() -> None:
    """Run what the command line says."""
    table = tomllib.loads(TABLE.read_text())
    parser = argparse.ArgumentParser(
        prog="mutation.py", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "groups", nargs="*", metavar="GROUP", help=f"of {', '.join(table)}; default: all"
    )
    parser.add_argument(
        "--sample", type=int, default=40, help="mutants per group (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the sample (default: %(default)s)")
    parser.add_argument(
        "--patience-s",
        type=float,
        default=300,
        help="most that tests may take without a mutant (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        default="*",
        metavar="PATTERN",
        help="new mutants of these modules only, as '*/group.py'",
    )
    parser.add_argument("--again", action="store_true", help="try those that survived once more")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run found")
    parser.add_argument(
        "--report", action="store_true", help="print what was found, and run nothing"
    )
    chosen = parser.parse_args()
    if unknown := set(chosen.groups) - set(table):
        parser.error(
            f"no group of {TABLE.name}: {', '.join(sorted(unknown))}; there are {', '.join(table)}"
        )
    names = chosen.groups or list(table)
    SESSIONS.mkdir(parents=True, exist_ok=True)
    for name in [] if chosen.report else names:
        group = Group(name, table[name])
        path = SESSIONS / f"{name}.sqlite"
        if chosen.fresh:
            path.unlink(missing_ok=True)
        with use_db(path) as database:
            begin(group, database, chosen.seed, chosen.sample, chosen.only)
            run(group, database, chosen.patience_s, again=chosen.again)
    report(names)


if __name__ == "__main__":
    main()
