//! Threads of low priority.

use std::io;

/// The lowest priority, which also lowers that of disk accesses.
const NICENESS: i32 = 19;

/// Starts a thread of the lowest priority.
///
/// # Errors
/// The thread cannot be started.
pub(crate) fn spawn_low_priority(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Of this thread alone; with the usual priority the work only disturbs more.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS);
        work();
    });
    thread.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_has_low_priority_and_the_process_keeps_its_own() {
        let own = || rustix::process::getpriority_process(None).unwrap();
        let (before, (done, niceness)) = (own(), std::sync::mpsc::sync_channel(1));
        let of_thread = move || {
            let niceness = rustix::process::getpriority_process(Some(rustix::thread::gettid()));
            done.send(niceness.unwrap()).unwrap();
        };
        spawn_low_priority("test", of_thread).unwrap();
        assert_eq!(niceness.recv().unwrap(), NICENESS);
        assert_eq!(own(), before);
    }
}
