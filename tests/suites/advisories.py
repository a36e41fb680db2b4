"""Judges the crates of Cargo.lock by the advisories in tests/data/advisories.json.

That file is a copy of what RustSec (https://rustsec.org, CC0) had published on the day it names, without texts: for
machines that cannot ask anew, or have no cargo-deny, which asks the database itself. It is made by
`python3 tests/suites/advisories.py copy FOLDER`, where FOLDER is a clone of the database.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COPY = ROOT / "tests/data/advisories.json"
# What is no fault: .deny.toml judges the unmaintained only where we name them ourselves.
TOLD = {"unmaintained", "notice"}

Version = tuple[int, int, int, tuple]
# After every pre-release of the same version.
RELEASED = ((2,),)


def version(text: str) -> Version:
    """A version in the order of precedence (semver.org, 11)."""
    text = text.strip().partition("+")[0]
    numbers, _, pre = text.partition("-")
    parts = [int(number) for number in numbers.split(".")]
    parts += [0] * (3 - len(parts))
    named = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in pre.split(".")) if pre else RELEASED
    return (parts[0], parts[1], parts[2], named)


def next_breaking(text: str) -> Version:
    """The first version that a caret requirement no longer takes, without its pre-releases."""
    given = [int(number) for number in re.split(r"[-+]", text)[0].split(".")]
    at = next((index for index, number in enumerate(given) if number), len(given) - 1)
    return version(".".join(str(number) for number in [*given[:at], given[at] + 1]) + "-0")


def meets(found: str, requirement: str) -> bool:
    """Whether a version meets every comparison of a requirement."""
    have = version(found)
    for comparison in requirement.split(","):
        sign, wanted = re.fullmatch(r"\s*(>=|<=|>|<|=|\^|)\s*(\S+)\s*", comparison).groups()
        want = version(wanted)
        met = {
            ">=": have >= want,
            "<=": have <= want,
            ">": have > want,
            "<": have < want,
            "=": have == want,
        }.get(sign, want <= have < next_breaking(wanted))
        if not met:
            return False
    return True


def is_affected(found: str, advisory: dict) -> bool:
    return not any(meets(found, requirement) for requirement in advisory["patched"] + advisory["unaffected"])


def copy(database: Path) -> None:
    """Writes tests/data/advisories.json from a clone of the database."""
    asked = ["git", "-C", str(database), "log", "-1", "--format=%cs"]
    day = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    kept = []
    for file in sorted(database.glob("crates/*/RUSTSEC-*.md")):
        read = tomllib.loads(re.search(r"```toml\n(.*?)```", file.read_text(), re.DOTALL).group(1))
        told, versions = read["advisory"], read.get("versions", {})
        if "withdrawn" in told or told.get("informational") in TOLD:
            continue
        patched, unaffected = versions.get("patched", []), versions.get("unaffected", [])
        kept.append({"id": told["id"], "crate": told["package"], "patched": patched, "unaffected": unaffected})
    lines = ",\n".join(json.dumps(one) for one in kept)
    COPY.write_text(f'{{"published_until": "{day}", "advisories": [\n{lines}\n]}}\n')
    print(f"{len(kept)} advisories until {day}")


def prove() -> None:
    """The order of versions and what requirements take: a judge that takes everything would be none."""
    assert version("1.0.0-alpha.2") < version("1.0.0-alpha.10") < version("1.0.0-beta") < version("1.0.0")
    assert version("0.9") < version("0.10.0") and version("1.2.3+x") == version("1.2.3")
    assert meets("0.24.3", "^ 0.24.3") and not meets("0.25.0", "^0.24.3") and not meets("0.25.0-alpha.1", "^0.24.3")
    assert meets("1.9.0", "1.2") and not meets("2.0.0", "1.2") and not meets("0.0.4", "^0.0.3")
    assert meets("0.8.0", ">= 0.7.4, < 0.8.1") and not meets("0.8.1", ">= 0.7.4, < 0.8.1")
    assert meets("0.2.3", "=0.2.3") and meets("0.2.3", "<= 0.2.3") and not meets("0.2.3", "> 0.2.3")
    advisory = {"patched": [">= 0.6.14, < 1.0.0", ">= 1.6.1"], "unaffected": ["< 0.6.3"]}
    affected = [found for found in ("0.6.2", "0.6.3", "0.6.14", "1.0.0", "1.6.1") if is_affected(found, advisory)]
    assert affected == ["0.6.3", "1.0.0"], affected


def judge() -> int:
    prove()
    known = json.loads(COPY.read_text())
    ignored = tomllib.loads((ROOT / ".deny.toml").read_text())["advisories"]["ignore"]
    ignored = {one["id"] for one in ignored}
    locked: dict[str, list[str]] = {}
    for package in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]:
        locked.setdefault(package["name"], []).append(package["version"])
    faults, met = [], set()
    for advisory in known["advisories"]:
        for found in locked.get(advisory["crate"], []):
            if is_affected(found, advisory):
                met.add(advisory["id"])
                if advisory["id"] not in ignored:
                    faults.append(f"{advisory['crate']} {found}: https://rustsec.org/advisories/{advisory['id']}")
    faults += [f".deny.toml ignores {one}, which no crate is affected by" for one in sorted(ignored - met)]
    for fault in faults:
        print(f"FAILED: {fault}")
    if not faults:
        count = len(known["advisories"])
        print(f"advisories: none of {count} published until {known['published_until']} concerns us, but {len(met)} with a reason in .deny.toml")
    return 1 if faults else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["copy"] and len(sys.argv) == 3:
        copy(Path(sys.argv[2]))
    else:
        sys.exit(judge())
