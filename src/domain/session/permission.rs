//! Whether an agent may do what it asks for.

use crate::{
    acp::schema::{PermissionOption, PermissionOptionKind},
    domain::words::words,
};

words! {
    /// How a workspace answers `session/request_permission`.
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

/// What to do with a permission request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Answers with this option at once.
    Select(String),
    /// Answers `cancelled`: the agent offers nothing that the policy could choose.
    Cancel,
    /// Waits for a person.
    Ask,
}

/// Decides by policy. An agent that does not offer the wanted kind gets the nearest kind that grants no
/// more than the policy: once instead of always, never the other way round.
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

/// What a request gets when nobody answered it in time.
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
    fn a_policy_never_grants_more_than_it_says() {
        let always_only = options(&[("a", PermissionOptionKind::AllowAlways)]);
        assert_eq!(decide(PermissionPolicy::AllowOnce, &always_only), Decision::Cancel);
        let once_only = options(&[("o", PermissionOptionKind::AllowOnce)]);
        assert_eq!(decide(PermissionPolicy::AllowAlways, &once_only), Decision::Select("o".into()));
        assert_eq!(decide(PermissionPolicy::Reject, &once_only), Decision::Cancel);
    }

    #[test]
    fn silence_rejects() {
        let both = options(&[("a", PermissionOptionKind::AllowOnce), ("r", PermissionOptionKind::RejectOnce)]);
        assert_eq!(on_timeout(&both), Decision::Select("r".into()));
        assert_eq!(decide(PermissionPolicy::Ask, &both), Decision::Ask);
    }
}
