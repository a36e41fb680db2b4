"""Judges the crates of Cargo.lock by .deny.toml: licences, sources, second versions, forbidden crates.

A part of what cargo-deny does, from `cargo metadata` alone, so that every machine can do it.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = "x86_64-unknown-linux-gnu"


def allowed(expression: str, licences: set[str]) -> bool:
    """Whether an SPDX expression can be met; `A/B` is the old way to write `A OR B`."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def either() -> bool:
        met = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            met = both() or met
        return met

    def both() -> bool:
        met = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            met = one() and met
        return met

    def one() -> bool:
        token = tokens.pop(0)
        if token == "(":
            met = either()
            tokens.pop(0)
            return met
        if tokens and tokens[0] == "WITH":
            tokens.pop(0)
            token = f"{token} WITH {tokens.pop(0)}"
        return token in licences

    return either()


def same(version: str, wanted: str) -> bool:
    return version == wanted or version.startswith(wanted + ".")


def judge(packages: list[dict], rules: dict) -> list[str]:
    """One sentence for each crate that is not as it should be."""
    problems, versions = [], defaultdict(list)
    licences = set(rules["licenses"]["allow"])
    forbidden = {entry["crate"] for entry in rules["bans"]["deny"]}
    registries = {"registry+" + url for url in rules["sources"]["allow-registry"]}
    for package in packages:
        name = f"{package['name']} {package['version']}"
        versions[package["name"]].append(package["version"])
        if not package["license"]:
            problems.append(f"{name}: names no licence")
        elif not allowed(package["license"], licences):
            problems.append(f"{name}: licence {package['license']}")
        if package["source"] is not None and package["source"] not in registries:
            problems.append(f"{name}: comes from {package['source']}")
        if package["name"] in forbidden:
            problems.append(f"{name}: is forbidden")
    skipped = [entry["crate"].split("@") for entry in rules["bans"]["skip"]]
    for name, found in versions.items():
        left = [v for v in found if not any(s[0] == name and same(v, s[1]) for s in skipped)]
        if len(left) > 1:
            problems.append(f"{name}: {len(left)} versions: {', '.join(left)}")
    reasons = rules["bans"]["skip"] + rules["advisories"]["ignore"]
    for entry in reasons:
        if not re.match(r"20\d\d-\d\d-\d\d: \S", entry.get("reason", "")):
            problems.append(f"{entry}: an exception needs a date and a reason")
    return problems


def output(*command: str) -> str:
    return subprocess.run(["cargo", *command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def used() -> set[tuple[str, str]]:
    """Names and versions of what is built: metadata and lock file also name what no feature asks for."""
    tree = output("tree", "--locked", "--prefix=none", "--edges=normal,build,dev", f"--target={TARGET}", "--format={p}")
    return {(line.split()[0], line.split()[1].lstrip("v")) for line in tree.splitlines() if line.strip()}


def main() -> int:
    rules = tomllib.loads((ROOT / ".deny.toml").read_text())
    metadata = json.loads(output("metadata", "--format-version=1", "--locked"))
    built = used()
    packages = [package for package in metadata["packages"] if (package["name"], package["version"]) in built]
    # A check that finds nothing wrong with anything is no check.
    wrong = {"name": "x", "version": "1.0.0", "license": "Proprietary", "source": "git+https://x.example"}
    other = {**wrong, "name": "ring", "license": "MIT AND (X OR Y)"}
    if len(judge([wrong, other, {**other, "version": "2.0.0"}], rules)) < 9:
        print("the check lets through what it must not")
        return 1
    problems = judge(packages, rules)
    print("\n".join(problems) or f"{len(packages)} crates: licences, sources and versions are as .deny.toml says")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
