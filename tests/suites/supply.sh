#!/usr/bin/env bash
# What we ship is made of: licences, sources, second versions, forbidden crates, as .deny.toml says.
# supply.py reads the same file and judges everywhere, advisories.py by a copy of the advisories; cargo-deny judges
# too if it is installed, by what was published since.
set -u
cd "$(dirname "$0")/../.." || exit 1
not_run() { echo "NOT RUN: $1 ($2)"; [ -z "${POSTERN_NOT_RUN:-}" ] || echo "$1 ($2)" >> "$POSTERN_NOT_RUN"; }

python3 tests/suites/supply.py || exit 1
python3 tests/suites/advisories.py || exit 1
if ! command -v cargo-deny > /dev/null; then
  not_run "advisories since the copy" "cargo-deny is not installed: cargo install cargo-deny --locked"
  exit 0
fi
cargo-deny --config .deny.toml check --allow unmatched-skip licenses bans sources || exit 1
database=target/advisory-dbs
if cargo-deny --config .deny.toml fetch db > /dev/null 2>&1; then
  cargo-deny --config .deny.toml check advisories || exit 1
elif compgen -G "$database/advisory-db-*" > /dev/null; then
  echo "the database cannot be fetched; the copy in $database judges"
  cargo-deny --offline --config .deny.toml check advisories || exit 1
else
  not_run "advisories since the copy" "the RustSec database cannot be fetched, and there is no copy in $database"
fi
