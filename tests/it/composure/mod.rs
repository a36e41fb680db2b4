//! Composure: what the daemon does when the machine runs short, when senders and mail exchangers are
//! hostile, when the clock jumps and when DNS lies. New work is refused politely, accepted work goes
//! on, and everything heals by itself.

mod clock;
mod dns;
mod injection;
mod latency;
mod shortage;
mod spoofing;
mod tarpits;
mod timing;
mod tls;
mod world;
