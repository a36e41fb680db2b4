//! One test binary for everything that needs the whole daemon.
