//! Parses arguments, then runs the daemon or a command; nothing else.

fn main() {}
