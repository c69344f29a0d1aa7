//! The controlling terminal of this process.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt};

/// Remembers whether this process started with a controlling terminal whose end concerns it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terminal {
    had_one: bool,
}

impl Terminal {
    /// Looks for the terminal. A process that ignores SIGHUP (`nohup`) is to outlive its terminal, so it counts as
    /// without one. Must be called before a handler of SIGHUP is installed.
    pub(crate) fn at_start() -> Self {
        Self { had_one: !ignores_hangup() && is_there() }
    }

    /// True if the process started with a terminal that has been closed since.
    pub(crate) fn has_closed(self) -> bool {
        self.had_one && !is_there()
    }
}

/// The kernel takes the terminal away from every process of a session before it sends SIGHUP.
fn is_there() -> bool {
    OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open("/dev/tty").is_ok()
}

fn ignores_hangup() -> bool {
    // SAFETY: `action` is valid for a write, and without a new action the call only reads.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGHUP, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}
