//! The jail of agents: what it may restrict on a kernel, and what a start decides from that.

pub(crate) mod limits;
pub(crate) mod pool;
pub(crate) mod presets;

use serde::{Deserialize, Serialize};

use super::words::words;

/// Mode of `agent.jail`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JailMode {
    /// Everything that the kernel offers. Without the file rules the program serves on loopback only.
    #[default]
    Auto,
    /// No start without the file rules.
    Required,
    /// No jail.
    Off,
}

/// Mode of `agent.home`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HomeMode {
    /// `shared` while there is one trust domain, `tenant` otherwise.
    #[default]
    Auto,
    /// The `HOME` of the agent's environment.
    Shared,
    /// One private folder for each tenant.
    Tenant,
}

impl HomeMode {
    /// True if each tenant gets a `HOME` of its own. `one_domain` is true while all tenants trust each other: the
    /// runtime is embedded, and no tenant has a token. `is_set` is true if the settings of the agent name a `HOME`; it is kept unless the mode is
    /// `tenant`.
    pub(crate) fn is_private(self, one_domain: bool, is_set: bool) -> bool {
        match self {
            Self::Auto => !one_domain && !is_set,
            Self::Shared => false,
            Self::Tenant => true,
        }
    }
}

words! {
    /// One kind of restriction that the kernel can enforce.
    Right {
        /// Reading, writing, running, creating, removing, linking and renaming files.
        Files = "files",
        /// Truncating files.
        Truncate = "truncate",
        /// TCP connections to listed ports only; in use with `agent.ports`.
        TcpConnect = "tcp_connect",
        /// `ioctl` on devices.
        IoctlDev = "ioctl_dev",
        /// Signals to processes outside the jail.
        Signals = "signals",
        /// Connections to abstract UNIX sockets outside the jail.
        AbstractSockets = "abstract_sockets",
    }
}

impl Right {
    /// The Landlock ABI that brought the right. The file rules are usable from ABI 2 on: with ABI 1 no file can be
    /// renamed between folders.
    fn since_abi(self) -> u32 {
        match self {
            Self::Files => 2,
            Self::Truncate => 3,
            Self::TcpConnect => 4,
            Self::IoctlDev => 5,
            Self::Signals | Self::AbstractSockets => 6,
        }
    }
}

/// The rights that a kernel can enforce. Either none, or [`Right::Files`] and those of its ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct KernelRights {
    /// Landlock ABI; 0 if Landlock does not work.
    abi: u32,
}

impl KernelRights {
    /// The rights of a Landlock ABI. An ABI without usable file rules counts as none.
    pub(crate) fn of_abi(abi: u32) -> Self {
        Self { abi: if abi < Right::Files.since_abi() { 0 } else { abi } }
    }

    pub(crate) fn has(self, right: Right) -> bool {
        self.abi >= right.since_abi()
    }
}

words! {
    /// State of the jail of all agents together.
    JailState {
        /// Every right is on for every agent.
        On = "on",
        /// The file rules are on for every agent; a later right is missing.
        Partial = "partial",
        /// At least one agent runs without the file rules.
        Off = "off",
    }
}

/// Gaps of the jail on this kernel, as sentences. `limits_ports` is true if an agent has
/// `agent.ports`.
pub(crate) fn warnings(kernel: KernelRights, limits_ports: bool) -> Vec<&'static str> {
    let mut found = Vec::new();
    if !kernel.has(Right::Files) {
        found.push("the kernel has no usable Landlock (Linux 5.19): agents have all rights of their user");
    }
    if !kernel.has(Right::Signals) {
        found.push("the kernel has no signal scopes (Linux 6.12): an agent of the same user can end this program");
    }
    if limits_ports && !kernel.has(Right::TcpConnect) {
        found.push("the kernel limits no TCP connections (Linux 6.7): `agent.ports` has no effect");
    }
    found
}

/// Reasons to refuse a start, with the section of the agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JailRefusal {
    /// [`JailMode::Required`] without file rules.
    #[error("`{0}.jail = \"required\"`: the kernel has no usable Landlock, which needs Linux 5.19 or newer")]
    Required(String),
    /// [`JailMode::Auto`] without file rules, on an address that other machines reach.
    #[error(
        "agents cannot be confined here, because the kernel has no usable Landlock (Linux 5.19 or newer), so the program \
         listens on loopback addresses only. Listen on 127.0.0.1, or set `{0}.jail = \"off\"` if another boundary, such \
         as a container, confines the agents"
    )]
    BeyondLoopback(String),
}

/// Checks at the start whether agents with these modes may run. `agents` are pairs of section and mode.
///
/// # Errors
/// An agent requires a jail that the kernel does not offer, or would be reachable from other machines without one.
pub(crate) fn check_start<'a>(
    agents: impl IntoIterator<Item = (&'a str, JailMode)>,
    kernel: KernelRights,
    is_loopback: bool,
) -> Result<(), JailRefusal> {
    if kernel.has(Right::Files) {
        return Ok(());
    }
    for (section, mode) in agents {
        match mode {
            JailMode::Required => return Err(JailRefusal::Required(section.to_owned())),
            JailMode::Auto if !is_loopback => return Err(JailRefusal::BeyondLoopback(section.to_owned())),
            JailMode::Auto | JailMode::Off => {}
        }
    }
    Ok(())
}

/// The state of the jail of agents with these modes. The limit of TCP connections does not count, since it is off by
/// default.
pub(crate) fn state(modes: impl IntoIterator<Item = JailMode>, kernel: KernelRights) -> JailState {
    let is_off = modes.into_iter().any(|mode| mode == JailMode::Off);
    let mut later = Right::ALL.into_iter().filter(|right| *right != Right::TcpConnect);
    if is_off || !kernel.has(Right::Files) {
        JailState::Off
    } else if later.all(|right| kernel.has(right)) {
        JailState::On
    } else {
        JailState::Partial
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODES: [JailMode; 3] = [JailMode::Auto, JailMode::Required, JailMode::Off];

    fn start(mode: JailMode, abi: u32, is_loopback: bool) -> Result<(), JailRefusal> {
        check_start([("agent", mode)], KernelRights::of_abi(abi), is_loopback)
    }

    #[test]
    fn kernel_with_file_rules_starts_in_every_mode_and_on_every_address() {
        for mode in MODES {
            for abi in [2, 6, 9] {
                assert!(start(mode, abi, false).is_ok() && start(mode, abi, true).is_ok(), "{mode:?} {abi}");
            }
        }
    }

    #[test]
    fn kernel_without_file_rules_starts_on_loopback_only_unless_the_jail_is_off() {
        for abi in [0, 1] {
            assert!(start(JailMode::Auto, abi, true).is_ok());
            assert_eq!(start(JailMode::Auto, abi, false), Err(JailRefusal::BeyondLoopback("agent".into())));
            for is_loopback in [true, false] {
                let refused = start(JailMode::Required, abi, is_loopback);
                assert_eq!(refused, Err(JailRefusal::Required("agent".into())));
                assert!(start(JailMode::Off, abi, is_loopback).is_ok());
            }
        }
        let named =
            check_start([("agent", JailMode::Off), ("agents.x", JailMode::Auto)], KernelRights::default(), false);
        let text = named.unwrap_err().to_string();
        assert!(text.contains("`agents.x.jail = \"off\"`") && text.contains("loopback"), "{text}");
    }

    #[test]
    fn state_names_what_every_agent_gets() {
        let of = |modes: &[JailMode], abi| state(modes.iter().copied(), KernelRights::of_abi(abi));
        assert_eq!(of(&[JailMode::Auto], 6), JailState::On);
        assert_eq!(of(&[JailMode::Required], 2), JailState::Partial);
        assert_eq!(of(&[JailMode::Auto], 5), JailState::Partial);
        assert_eq!(of(&[JailMode::Auto], 1), JailState::Off);
        assert_eq!(of(&[JailMode::Auto, JailMode::Off], 7), JailState::Off);
    }

    #[test]
    fn rights_are_on_from_their_abi_and_reported_by_name() {
        let on = |abi| {
            let kernel = KernelRights::of_abi(abi);
            Right::ALL.into_iter().filter(|right| kernel.has(*right)).map(Right::as_str).collect::<Vec<_>>()
        };
        assert!(on(0).is_empty() && on(1).is_empty());
        assert_eq!(on(2), ["files"]);
        assert_eq!(on(5), ["files", "truncate", "tcp_connect", "ioctl_dev"]);
        assert_eq!(on(7).len(), Right::ALL.len());
        assert!(warnings(KernelRights::of_abi(7), true).is_empty());
        assert!(warnings(KernelRights::of_abi(5), false)[0].contains("can end this program"));
        assert_eq!(warnings(KernelRights::of_abi(1), true).len(), 3);
    }

    #[test]
    fn home_is_shared_in_one_domain_and_private_otherwise() {
        for (one_domain, is_set, expected) in [(true, false, false), (false, false, true), (false, true, false)] {
            assert_eq!(HomeMode::Auto.is_private(one_domain, is_set), expected);
            assert!(
                !HomeMode::Shared.is_private(one_domain, is_set) && HomeMode::Tenant.is_private(one_domain, is_set)
            );
        }
    }
}
