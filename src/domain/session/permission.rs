//! Decides permission requests of agents by policy.

use crate::{
    acp::schema::{PermissionOption, PermissionOptionKind},
    domain::words::words,
};

words! {
    /// A workspace's answer to `session/request_permission`.
    #[derive(Default)]
    PermissionPolicy {
        /// Allows each call once. The default: the container is the boundary, and nobody watches a
        /// background run.
        #[default]
        AllowOnce = "allow-once",
        /// Allows, and lets the agent stop asking for calls of that kind.
        AllowAlways = "allow-always",
        /// Rejects.
        Reject = "reject",
        /// Publishes the request as an event and waits for `POST /acp/session/permission`; rejects when
        /// nobody answers in time.
        Ask = "ask",
    }
}

/// The decision about a permission request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Answer with the option of this id at once.
    Select(String),
    /// Answer `cancelled`: the agent offers no option that the policy permits.
    Cancel,
    /// Wait for a person.
    Ask,
}

/// Decides by policy. If the agent does not offer the preferred kind of option, the nearest kind that grants no more is
/// chosen: once instead of always, never the reverse.
pub(crate) fn decide(policy: PermissionPolicy, options: &[PermissionOption]) -> Decision {
    use PermissionOptionKind::{AllowAlways, AllowOnce, RejectAlways, RejectOnce};
    let wanted: &[PermissionOptionKind] = match policy {
        PermissionPolicy::Ask => return Decision::Ask,
        PermissionPolicy::AllowOnce => &[AllowOnce],
        PermissionPolicy::AllowAlways => &[AllowAlways, AllowOnce],
        PermissionPolicy::Reject => &[RejectOnce, RejectAlways],
    };
    first_of(wanted, options)
}

/// Decides a request without an answer in time: rejects it, or cancels it if the agent offers no rejection.
pub(crate) fn on_timeout(options: &[PermissionOption]) -> Decision {
    first_of(&[PermissionOptionKind::RejectOnce, PermissionOptionKind::RejectAlways], options)
}

fn first_of(wanted: &[PermissionOptionKind], options: &[PermissionOption]) -> Decision {
    wanted
        .iter()
        .find_map(|kind| options.iter().find(|option| option.kind == *kind))
        .map_or(Decision::Cancel, |option| Decision::Select(option.option_id.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(kinds: &[(&str, PermissionOptionKind)]) -> Vec<PermissionOption> {
        kinds.iter().map(|(id, kind)| PermissionOption::new((*id).to_owned(), *id, *kind)).collect()
    }

    #[test]
    fn policy_never_grants_more_than_its_name() {
        let always_only = options(&[("a", PermissionOptionKind::AllowAlways)]);
        assert_eq!(decide(PermissionPolicy::AllowOnce, &always_only), Decision::Cancel);
        let once_only = options(&[("o", PermissionOptionKind::AllowOnce)]);
        assert_eq!(decide(PermissionPolicy::AllowAlways, &once_only), Decision::Select("o".into()));
        assert_eq!(decide(PermissionPolicy::Reject, &once_only), Decision::Cancel);
    }

    #[test]
    fn timeout_rejects_the_request() {
        let both = options(&[("a", PermissionOptionKind::AllowOnce), ("r", PermissionOptionKind::RejectOnce)]);
        assert_eq!(on_timeout(&both), Decision::Select("r".into()));
        assert_eq!(decide(PermissionPolicy::Ask, &both), Decision::Ask);
    }
}
