//! What the standard library does not set on a TCP connection. Only Linux knows it; elsewhere it is missing.

use std::{os::fd::RawFd, time::Duration};

/// Breaks a connection whose peer does not acknowledge what was sent, or takes nothing, for so long; also where it does
/// not take the probes of a closed window. A descriptor that is none is left alone.
pub fn set_user_timeout(descriptor: RawFd, timeout: Duration) {
    let timeout_ms = libc::c_uint::try_from(timeout.as_millis()).unwrap_or(libc::c_uint::MAX);
    // SAFETY: the value lives through the call and has the length that is said; the kernel checks the descriptor.
    unsafe {
        libc::setsockopt(
            descriptor,
            libc::IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            (&raw const timeout_ms).cast(),
            size_of_val(&timeout_ms) as libc::socklen_t,
        );
    }
}

/// Breaks a connection in both directions; whoever holds it sees its end. The caller knows that the descriptor is still
/// this connection's.
pub fn break_off(descriptor: RawFd) {
    // SAFETY: no memory is handed over; the kernel checks the descriptor.
    unsafe {
        libc::shutdown(descriptor, libc::SHUT_RDWR);
    }
}
