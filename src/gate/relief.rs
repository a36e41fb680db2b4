//! Gives free memory back to the system: an allocator keeps what was freed, and a gate that shut for
//! a crowd would stay shut when the crowd has gone.
//!
//! Only glibc is asked; others (musl) keep little.

/// Gives pages that hold nothing back. May take some milliseconds: not for the async workers.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(super) fn give_back() {
    #[expect(unsafe_code, reason = "malloc_trim(3) has no preconditions; the standard library does not offer it")]
    unsafe extern "C" {
        safe fn malloc_trim(pad: usize) -> i32;
    }
    malloc_trim(0);
}

/// Nothing to do.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) fn give_back() {}
