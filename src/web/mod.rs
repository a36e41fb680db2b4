//! Doors over HTTP: health and metrics on a loopback listener; the admin API on the local socket.

mod health;

pub use health::{Monitor, Readiness, Remark, serve as serve_monitor};
