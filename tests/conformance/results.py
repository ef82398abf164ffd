"""The results of a collection of suites: kept on disk as they come, compared, reported.

A collection is a folder of tests/: this one, of suites that others wrote, or ../engines. In it are

  runtimes   a line a suite: its name, and the runtimes that it is run with, the controls first
  suites/    a file a suite (see ./batch)
  listed/    the cases that hull need not pass, a file a suite: a comment with the reason, the cases below it
  build      makes what the suites need, and prints the folder that has it
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
RUNTIMES = ["hull", "runc", "crun"]
VERDICTS = ["passed", "failed", "skipped"]
# What tests/differential/run found, a row of results.json a line. It runs with its control by itself, and its
# rows are reported with those of the suites that others wrote.
DIFFERENTIAL = REPO / "target/conformance/differential.jsonl"
DIFFERENTIAL_RUNTIMES = ["runc", "hull"]


def read_lines(path):
    """The objects of a file, one a line. A line that was cut off in writing is none."""
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            pass


def read(batch):
    """The results of one batch."""
    logs = batch / "logs"
    for result in read_lines(batch / "results.jsonl"):
        yield {**result, "log": logs / (result["test"].replace("/", ".") + ".log")}


def append(batch, suite, test, runtime, result, reason):
    line = {"suite": suite, "test": test, "runtime": runtime, "result": result, "reason": reason}
    with open(batch / "results.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


@dataclass
class Difference:
    """A case that a control passes and hull doesn't, or that is on the list."""

    suite: str
    test: str
    hull: str
    controls: list
    reason: str | None
    log: Path


class Collection:
    """The suites of a folder, and their results in target/, below its name."""

    def __init__(self, name):
        self.name = name
        self.folder = REPO / "tests" / name
        self.target = REPO / "target" / name
        lines = (self.folder / "runtimes").read_text().splitlines()
        words = [line.split() for line in lines if line.strip() and not line.startswith("#")]
        self.suites = {suite: runtimes for suite, *runtimes in words}
        self.compared = dict(self.suites)
        if DIFFERENTIAL.parent == self.target:
            self.compared["differential"] = DIFFERENTIAL_RUNTIMES

    def new_batch(self):
        """Makes the folder for what one host reports. Later ones sort behind earlier ones."""
        batches = self.target / "batches"
        batches.mkdir(parents=True, exist_ok=True)
        last = max((int(path.name.split("-")[0]) for path in batches.iterdir()), default=0)
        return Path(tempfile.mkdtemp(prefix=f"{last + 1:06}-", dir=batches))

    def forget(self):
        shutil.rmtree(self.target / "batches", ignore_errors=True)

    def read_differential(self):
        """The results of the differential check, those of its control among them."""
        for row in read_lines(DIFFERENTIAL) if "differential" in self.compared else []:
            for runtime in DIFFERENTIAL_RUNTIMES:
                result = {"suite": row["suite"], "test": row["test"], "runtime": runtime, "result": row[runtime]}
                yield {**result, "log": DIFFERENTIAL}

    def read_all(self):
        """The newest result of each (suite, test, runtime)."""
        known = {}
        batches = sorted((self.target / "batches").glob("*"))
        for results in [*map(read, batches), self.read_differential()]:
            for result in results:
                known[result["suite"], result["test"], result["runtime"]] = result
        return known

    def listed(self, suite):
        """The cases that hull need not pass, each with the reason."""
        cases, reason, in_comment = {}, "", False
        path = self.folder / "listed" / suite
        for line in path.read_text().splitlines() if path.exists() else []:
            if line.startswith("#"):
                text = line[1:].strip()
                reason = f"{reason} {text}" if in_comment else text
                in_comment = True
            else:
                in_comment = False
                if line.strip():
                    cases[line] = reason
        return cases

    def compare(self, known):
        differences = []
        for suite, runtimes in self.compared.items():
            reasons = self.listed(suite)
            for test in dict.fromkeys([test for s, test, _ in known if s == suite]):
                hull = known.get((suite, test, "hull"))
                passing = [r for r in runtimes if r != "hull" and known.get((suite, test, r), {}).get("result") == "passed"]
                if hull and (test in reasons or (passing and hull["result"] != "passed")):
                    differences.append(Difference(suite, test, hull["result"], passing, reasons.get(test), hull["log"]))
        return differences

    def errors_of_lists(self, cases, differences):
        """What is wrong with ./listed, given all cases that there are."""
        names = {case[:2] for case in cases}
        for suite in self.suites:
            for test in self.listed(suite):
                if (suite, test) not in names:
                    yield f"{suite}: {test}: listed, but the suite has no such case"
        for d in differences:
            if d.reason is None:
                continue
            if d.hull == "passed":
                yield f"{d.suite}: {d.test}: listed, but hull passes it"
            elif not d.controls:
                yield f"{d.suite}: {d.test}: listed, but no control passes it"

    def table(self, known):
        """The figures, as rows of a Markdown table."""
        yield "| suite | runtime | passed | failed | skipped |"
        yield "| --- | --- | ---: | ---: | ---: |"
        for suite, runtimes in self.compared.items():
            for runtime in runtimes:
                got = [result["result"] for (s, _, r), result in known.items() if (s, r) == (suite, runtime)]
                yield f"| {suite} | {runtime} | " + " | ".join(str(got.count(verdict)) for verdict in VERDICTS) + " |"

    def row(self, suite, test, known):
        """A line of results.json."""
        results = {runtime: known.get((suite, test, runtime), {}).get("result") for runtime in RUNTIMES}
        listed = test in self.listed(suite)
        if self.name == "engines":
            control = self.suites[suite][0]
            return {"engine": suite, "test": test, "hull": results["hull"], "control": results[control], "listed": listed}
        return {"suite": suite, "test": test, **results, "listed": listed}

    def write_json(self, cases, known):
        rows = [self.row(*case, known) for case in dict.fromkeys(case[:2] for case in cases)]
        self.target.mkdir(parents=True, exist_ok=True)
        (self.target / "results.json").write_text(json.dumps(rows, indent=1) + "\n")

    def report(self, cases):
        """Prints the comparison and writes results.json. Returns the exit status."""
        cases = [*cases, *((r["suite"], r["test"], r["runtime"]) for r in self.read_differential())]
        known = {case: result for case, result in self.read_all().items() if case in set(cases)}
        self.write_json(cases, known)
        differences = self.compare(known)
        explained = [d for d in differences if d.reason is not None and d.hull != "passed"]
        unexplained = [d for d in differences if d.reason is None]
        errors = list(self.errors_of_lists(cases, differences))
        missing = [case for case in cases if case not in known]

        print("\n".join(self.table(known)))
        print(f"\n{len(explained)} listed differences:")
        for d in explained:
            print(f"  {d.suite}: {d.test}: hull {d.hull}: {d.reason}")
        print(f"\n{len(unexplained)} differences that aren't listed:")
        for d in unexplained:
            print(f"  {d.suite}: {d.test}: hull {d.hull}, {' and '.join(d.controls)} passed ({d.log})")
        skipped = {case: result for case, result in known.items() if case[2] == "hull" and result["result"] == "skipped"}
        print(f"\n{len(skipped)} cases that skipped themselves with hull:")
        for (suite, test, _), result in skipped.items():
            print(f"  skipped {suite}::{test}: {result.get('reason') or 'its suite does not say why'}")
        if errors:
            print(f"\n{len(errors)} errors of the lists:")
            for error in errors:
                print(f"  {error}")
        builds = {result["build"] for (_, _, runtime), result in known.items() if runtime == "hull" and "build" in result}
        if len(builds) > 1:
            print(f"\nhull's results are of {len(builds)} builds of it; FRESH=1 runs all with this one")
        if missing:
            print(f"\n{len(missing)} results are still missing; the same command goes on with them")
        print(f"\nresults: {self.target / 'results.json'}")
        return 1 if unexplained or errors or missing else 0
