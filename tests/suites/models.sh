#!/usr/bin/env bash
# The store's own locks under loom, which tries every order of steps: docs/how-to/fuzz.md.
set -u
cd "$(dirname "$0")/../.." || exit 1
CARGO_TARGET_DIR=target/models cargo test --locked --manifest-path tests/models/Cargo.toml
