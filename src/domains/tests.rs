//! Tests of the domains room.
