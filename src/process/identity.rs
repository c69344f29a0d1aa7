//! The identity of a process of this program, from which another process on the same machine recognises its end.

use std::{fs, os::linux::fs::MetadataExt};

use super::run::{run_lives, run_of_this_process};

/// The identity of this process: the boot of the machine, the process with its start time, its network, and the name of
/// the machine for people.
pub(crate) fn of_this_process() -> String {
    format!("{}/{}/{}/{}", boot(), run_of_this_process(), network(), host())
}

/// True if the process has ended, for one that ran since the last boot of this machine in the process namespace of this
/// process; `None` for any other one, whose end cannot be seen from here, and for a malformed identity.
pub(crate) fn has_ended(identity: &str) -> Option<bool> {
    let [its_boot, run, ..] = parts(identity)?;
    let own = run_of_this_process();
    let is_visible = its_boot == boot() && !its_boot.is_empty() && run.split('.').next() == own.split('.').next();
    is_visible.then(|| !run_lives(run))
}

/// True if the process binds its addresses where this process does: on this machine since its last boot, in the same
/// network namespace. Only one process at a time can listen on an address there.
pub(crate) fn shares_network(identity: &str) -> bool {
    let is_ours = |its_network: &str| its_network == network() && !its_network.is_empty();
    parts(identity).is_some_and(|[its_boot, _, its_network, _]| its_boot == boot() && is_ours(its_network))
}

/// The process for people: `process 42 on build-host`.
pub(crate) fn shown(identity: &str) -> String {
    let Some([_, run, _, host]) = parts(identity) else { return "an unknown process".into() };
    format!("process {} on {host}", run.split('.').nth(1).unwrap_or("?"))
}

/// The name of this machine; empty if the system does not say.
pub(crate) fn host() -> String {
    kernel_text("hostname").unwrap_or_default()
}

fn parts(identity: &str) -> Option<[&str; 4]> {
    let mut parts = identity.splitn(4, '/');
    Some([parts.next()?, parts.next()?, parts.next()?, parts.next()?])
}

fn boot() -> String {
    kernel_text("random/boot_id").unwrap_or_default()
}

fn network() -> String {
    fs::metadata("/proc/self/ns/net").map(|space| space.st_ino().to_string()).unwrap_or_default()
}

fn kernel_text(name: &str) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_an_ended_one_is_recognised() {
        let own = of_this_process();
        assert!(has_ended(&own) == Some(false) && shares_network(&own), "{own}");
        assert!(shown(&own).starts_with(&format!("process {} on ", std::process::id())), "{own}");
        let [boot, run, network, host] = parts(&own).unwrap();
        let namespace = run.split('.').next().unwrap();
        // No process has the id 0, and a later process with the same id has another start time.
        for ended in [format!("{namespace}.0.1"), format!("{namespace}.{}.1", std::process::id())] {
            assert_eq!(has_ended(&format!("{boot}/{ended}/{network}/{host}")), Some(true), "{ended}");
            assert_eq!(has_ended(&format!("other-boot/{ended}/{network}/{host}")), None);
        }
        assert_eq!(has_ended(&format!("{boot}/1.0.1/{network}/{host}")), None, "another process namespace");
        assert!(!shares_network(&format!("{boot}/{run}/1/{host}")));
        assert!(has_ended("").is_none() && has_ended("x").is_none() && !shares_network(""));
    }
}
