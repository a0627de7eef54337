"""Change single places of the code, one after the other, and report which changes no test notices.

    .ci/with_core.sh release "$PWD/.ci/mutation.py" policy         40 mutants of each module of a group
    .ci/with_core.sh release "$PWD/.ci/mutation.py" --sample 1000  all mutants of all groups
    .ci/with_core.sh release "$PWD/.ci/mutation.py" --again policy the survivors, once more

cosmic-ray makes the mutants and keeps the results. `.ci/mutation.toml` names the groups and their
test files. These run once under coverage. A mutant is then tried by those tests that run its lines,
the cheapest first, up to the first that fails: see `mutation_tests.py`.

Mutants are written to the copy of the packages that `with_core.sh` makes: the checkout stays as it
is. Results are in `build/mutation/GROUP.sqlite`, which `cr-report` and `cr-html` read, too. A run
that was ended goes on where it stopped; mutants come in random order. Results of mutants
that no longer exist, because a module has changed, are forgotten.

The sample is random, and the same for the same seed and sources. Mutants of one place and one kind
are alike, so one of them is taken. Annotations, imports for type checking, `==` in place of `is`,
`strict` of `zip`, `frozen` and `slots` of dataclasses, and mutants that do not compile are left out.
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import os
import sys
import time
import tomllib
import warnings
from collections import Counter
from fnmatch import fnmatch
from importlib.util import cache_from_source
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import cosmic_ray.plugins
import parso
from cosmic_ray.ast import get_ast
from cosmic_ray.commands.init import _all_work_items
from cosmic_ray.mutating import MutationVisitor, _make_diff, use_mutation
from cosmic_ray.operators.operator import Operator
from cosmic_ray.work_db import (
    MutationSpecStorage,
    WorkDB,
    WorkItemStorage,
    WorkResultStorage,
    use_db,
)
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult
from mutation_tests import Tests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cosmic_ray.work_item import MutationSpec, WorkItem

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_suffix(".toml")
SESSIONS = ROOT / "build/mutation"
_CHECKS = {"strict", "frozen", "slots"}


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


def find(name: str, folder: Path, patterns: list[str]) -> list[Path]:
    """Return the files of a group that fit patterns."""
    files: dict[Path, None] = {}
    for pattern in patterns:
        found = [each for each in sorted(folder.glob(pattern)) if each.name != "__init__.py"]
        if not found:
            raise SystemExit(f"{TABLE.name}: {pattern} of {name} is no file")
        files.update(dict.fromkeys(found))
    return list(files)


def mutants(modules: list[Path], seed: int) -> list[WorkItem]:
    """Return the mutants of modules in an order that depends on seed and sources alone."""
    places: dict[tuple[object, ...], tuple[str, WorkItem]] = {}
    sources = {module: module.read_text() for module in modules}
    for item in _all_work_items(modules, {}):
        (mutation,) = item.mutations
        if mutation.operator_name.endswith(("_Is_Eq", "_IsNot_NotEq")):
            continue  # no class that is compared by identity here has an __eq__
        leaf = get_leaf(sources[mutation.module_path], mutation.start_pos)
        if is_type(leaf) or is_check(leaf):
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


def get_lines(source: str, position: tuple[int, int]) -> set[int]:
    """Return the lines of the statement at a position; of a constant, those of all that use it.

    Of a compound statement only the part counts that has the position, as the condition of an `if`.
    Return no lines of what runs while a module is imported.
    """
    statement = get_statement(get_leaf(source, position))
    if not is_in_function(statement) and statement.type == "simple_stmt":
        target = statement.get_first_leaf()
        used = _TREES[source].get_used_names()
        uses = [get_statement(leaf) for leaf in used.get(target.value, [target])]
        uses.remove(statement)
    else:
        uses = [statement]
    if not all(map(is_in_function, uses)):
        return set()
    return {line for use in uses for line in range(use.start_pos[0], use.end_pos[0] + 1)}


def get_statement(node: Any) -> Any:
    """Return the statement of a node, or the part of a compound statement."""
    while node.parent.type not in {"suite", "file_input"} and not any(
        each.type == "suite" for each in node.parent.children
    ):
        node = node.parent
    return node


def is_in_function(node: Any) -> bool:
    """Return whether a node is in the body of a function."""
    while node.parent is not None:
        if node.parent.type == "funcdef" and node is node.parent.children[-1]:
            return True
        node = node.parent
    return False


def is_check(leaf: Any) -> bool:
    """Return whether a leaf is the value of a keyword that checks the code itself, as `strict`."""
    argument = leaf.parent
    return argument.type == "argument" and argument.get_first_leaf().value in _CHECKS


def compiles(mutation: MutationSpec) -> bool:
    """Return whether a mutant can be made, and is Python at all."""
    operator = cosmic_ray.plugins.get_operator(mutation.operator_name)(**mutation.operator_args)
    source = mutation.module_path.read_text()
    try:
        changed = MutationVisitor.mutate_code(source, operator, mutation.occurrence)
        with warnings.catch_warnings(action="ignore"):
            compile(changed, "mutant", "exec")
    except (SyntaxError, AttributeError):  # the latter for an `except self._error`
        return False
    return bool(changed != source)


def begin(modules: list[Path], database: WorkDB, seed: int, sample: int) -> None:
    """Fill up a session to as many mutants as are wanted of each module."""
    items = {key(item): item for item in mutants(modules, seed)}
    have = {key(item): item.job_id for item in database.work_items}
    forget(database, [job for each, job in have.items() if each not in items])
    count = Counter(module for module, *_ in have.keys() & items.keys())
    for each, item in items.items():
        if each not in have and count[each[0]] < sample and compiles(item.mutations[0]):
            count[each[0]] += 1
            database.add_work_item(item)


def forget(database: WorkDB, jobs: list[str]) -> None:
    """Remove mutants and their results, for which cosmic-ray has no function."""
    with database._session_maker.begin() as session:  # noqa: SLF001
        for job in jobs:
            for table in (WorkResultStorage, MutationSpecStorage, WorkItemStorage):
                session.query(table).where(table.job_id == job).delete()


def key(item: WorkItem) -> tuple[str, str, int, tuple[int, int]]:
    """Return what tells mutants apart."""
    (mutation,) = item.mutations
    return (
        str(mutation.module_path),
        mutation.operator_name,
        mutation.occurrence,
        mutation.start_pos,
    )


def run(name: str, tests: Tests, database: WorkDB, todo: list[WorkItem], most_s: float) -> None:
    """Try mutants, and keep the results. Raise SystemExit if tests fail without a mutant."""
    first = todo[0].mutations[0].module_path
    if failed := tests.attempt(tests.choose(first, set(), most_s)):
        raise SystemExit(f"fails without a mutant: {failed}")
    for number, item in enumerate(todo, 1):
        (mutation,) = item.mutations
        module = mutation.module_path
        operator = cosmic_ray.plugins.get_operator(mutation.operator_name)(**mutation.operator_args)
        chosen = tests.choose(module, get_lines(module.read_text(), mutation.start_pos), most_s)
        began = time.monotonic()
        with use_mutation(module, operator, mutation.occurrence) as (before, after):
            failed = tests.attempt(chosen)
        result = WorkResult(
            worker_outcome=WorkerOutcome.NORMAL,
            output=failed,
            test_outcome=TestOutcome.KILLED if failed else TestOutcome.SURVIVED,
            diff="\n".join(_make_diff(before, after, module)),
        )
        database.set_result(item.job_id, result)
        where = f"{module}:{mutation.start_pos[0]} {mutation.operator_name.partition('/')[2]}"
        took = f"{time.monotonic() - began:.1f} s"
        why = f"killed by {failed}" if failed else f"SURVIVED {len(chosen)} tests"
        print(f"{name} {number}/{len(todo)} {took}: {where} {why}", flush=True)


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


def keep_sources_fresh(modules: list[Path]) -> None:
    """Have compiled files of all modules but those that change, for which they could be stale."""
    compileall.compile_dir(".", quiet=1, maxlevels=3)
    for module in modules:
        Path(cache_from_source(str(module))).unlink(missing_ok=True)
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


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
        "--sample", type=int, default=40, help="mutants per module (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the sample (default: %(default)s)")
    parser.add_argument(
        "--most-s",
        type=float,
        default=20,
        help="seconds of tests that a mutant has to survive (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        default="*",
        metavar="PATTERN",
        help="these modules of the groups only, as '*/group.py'",
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
        modules = find(name, Path(), table[name]["modules"])
        files = find(name, Path("tests"), table[name]["tests"])
        path = SESSIONS / f"{name}.sqlite"
        if chosen.fresh:
            for each in (path, path.with_suffix(".json")):
                each.unlink(missing_ok=True)
        with use_db(path) as database:
            begin(modules, database, chosen.seed, chosen.sample)
            todo = list(database.pending_work_items)
            if chosen.again:
                todo += [i for i, result in database.completed_work_items if not result.is_killed]
            todo = [i for i in todo if fnmatch(key(i)[0], chosen.only)]
            if todo:
                tests = Tests(files, modules, path.with_suffix(".json"))
                keep_sources_fresh(modules)
                run(name, tests, database, todo, chosen.most_s)
    report(names)


if __name__ == "__main__":
    main()
