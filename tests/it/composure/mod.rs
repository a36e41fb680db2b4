//! Composure: what the daemon does when the machine runs short, when senders and mail exchangers are
//! hostile, when the clock jumps and when DNS lies. New work is refused politely, accepted work goes
//! on, and everything heals by itself.

mod shortage;
mod tarpits;
