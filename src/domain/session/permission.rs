//! Permission requests of agents: the offered options, and decisions by policy.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    acp::schema::PermissionOptionKind,
    domain::{text, words::words},
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

words! {
    /// The origin of the answer to a permission request.
    AnsweredBy {
        /// A caller chose an option, or answered without one.
        User = "user",
        /// The policy `allow-once`.
        AllowOnce = "allow-once",
        /// The policy `allow-always`.
        AllowAlways = "allow-always",
        /// The policy `reject`.
        Reject = "reject",
        /// The fallback, which rejects in place of the policy `ask`.
        Fallback = "fallback",
        /// Nobody answered within `permission.timeout_s`.
        Timeout = "timeout",
        /// Too many requests of the session wait.
        Limit = "limit",
        /// The turn is being cancelled.
        Cancel = "cancel",
        /// The agent withdrew the request.
        Withdrawn = "withdrawn",
        /// The turn ended, or its agent.
        TurnEnd = "turn_end",
    }
}

impl From<PermissionPolicy> for AnsweredBy {
    /// `ask` decides nothing itself: it becomes the origin of a person's answer.
    fn from(policy: PermissionPolicy) -> Self {
        match policy {
            PermissionPolicy::AllowOnce => Self::AllowOnce,
            PermissionPolicy::AllowAlways => Self::AllowAlways,
            PermissionPolicy::Reject => Self::Reject,
            PermissionPolicy::Ask => Self::User,
        }
    }
}

/// Options of one request that are kept, in the order of the agent; known agents offer up to ten.
pub(crate) const MAX_OPTIONS: usize = 32;
/// The longest option id, in bytes; an option with a longer one is left out, because its id must be repeated exactly.
const MAX_ID_BYTES: usize = 1024;
/// The longest name of an option, in bytes; a longer one is cut.
const MAX_NAME_BYTES: usize = 1024;
/// The longest kind of an option, in bytes; a longer one is cut.
const MAX_KIND_BYTES: usize = 64;

/// An option of a request. ACP calls `kind` a hint for the presentation: an option of an unknown kind, or without one, is
/// offered to people like any other, and no policy chooses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OfferedOption {
    pub option_id: String,
    /// The id if the agent gives no name.
    pub name: String,
    /// As the agent sent it; absent if it sent no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

impl OfferedOption {
    /// Reads an option; `None` without a usable id.
    pub(crate) fn read(raw: &RawValue) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Lenient {
            option_id: String,
            #[serde(default)]
            name: serde_json::Value,
            #[serde(default)]
            kind: serde_json::Value,
        }
        let Lenient { option_id, name, kind } = serde_json::from_str(raw.get()).ok()?;
        let is_usable = !option_id.is_empty() && option_id.len() <= MAX_ID_BYTES;
        is_usable.then(|| Self {
            name: text::cut_bytes(name.as_str().unwrap_or(&option_id), MAX_NAME_BYTES).to_owned(),
            kind: kind.as_str().map(|kind| text::cut_bytes(kind, MAX_KIND_BYTES).to_owned()),
            option_id,
        })
    }

    /// The kind, if protocol version 1 knows it.
    fn known_kind(&self) -> Option<PermissionOptionKind> {
        Some(match self.kind.as_deref()? {
            "allow_once" => PermissionOptionKind::AllowOnce,
            "allow_always" => PermissionOptionKind::AllowAlways,
            "reject_once" => PermissionOptionKind::RejectOnce,
            "reject_always" => PermissionOptionKind::RejectAlways,
            _ => return None,
        })
    }

    /// True unless the option is known to reject: a grant must not be missed in the figures.
    pub(crate) fn may_allow(&self) -> bool {
        !matches!(self.known_kind(), Some(PermissionOptionKind::RejectOnce | PermissionOptionKind::RejectAlways))
    }
}

/// The decision about a permission request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Answer with this option at once.
    Select(OfferedOption),
    /// Answer `cancelled`: the agent offers no option that the policy permits, and no rejection.
    Cancel,
    /// Wait for a person.
    Ask,
}

/// Decides by policy. If the agent does not offer the preferred kind of option, the nearest kind that grants no more is
/// chosen: once instead of always, never the reverse, and a rejection if there is none. `cancelled`, which some agents
/// take as the end of the turn, remains for requests without a rejection. Options of unknown kinds are never chosen.
pub(crate) fn decide(policy: PermissionPolicy, options: &[OfferedOption]) -> Decision {
    use PermissionOptionKind::{AllowAlways, AllowOnce, RejectAlways, RejectOnce};
    let wanted: &[PermissionOptionKind] = match policy {
        PermissionPolicy::Ask => return Decision::Ask,
        PermissionPolicy::AllowOnce => &[AllowOnce, RejectOnce, RejectAlways],
        PermissionPolicy::AllowAlways => &[AllowAlways, AllowOnce, RejectOnce, RejectAlways],
        PermissionPolicy::Reject => &[RejectOnce, RejectAlways],
    };
    let of_kind = |kind: &PermissionOptionKind| options.iter().find(|option| option.known_kind() == Some(*kind));
    wanted.iter().find_map(of_kind).map_or(Decision::Cancel, |option| Decision::Select(option.clone()))
}

/// The option that refuses a request without a person; `None` if the agent offers no rejection.
pub(crate) fn refusal(options: &[OfferedOption]) -> Option<OfferedOption> {
    match decide(PermissionPolicy::Reject, options) {
        Decision::Select(option) => Some(option),
        Decision::Cancel | Decision::Ask => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn options(kinds: &[&str]) -> Vec<OfferedOption> {
        let option = |kind: &&str| OfferedOption {
            option_id: format!("id-{kind}"),
            name: (*kind).to_owned(),
            kind: Some((*kind).to_owned()),
        };
        kinds.iter().map(option).collect()
    }

    fn chosen(policy: PermissionPolicy, kinds: &[&str]) -> Option<String> {
        match decide(policy, &options(kinds)) {
            Decision::Select(option) => option.kind,
            Decision::Cancel => None,
            Decision::Ask => panic!("{policy:?} asks"),
        }
    }

    #[test]
    fn policy_never_grants_more_than_its_name() {
        use PermissionPolicy::{AllowAlways, AllowOnce, Reject};
        for (policy, offered, expected) in [
            (AllowOnce, &["allow_always"][..], None),
            (AllowAlways, &["allow_once"], Some("allow_once")),
            (AllowAlways, &["allow_once", "allow_always"], Some("allow_always")),
            (Reject, &["allow_once"], None),
        ] {
            assert_eq!(chosen(policy, offered).as_deref(), expected, "{policy:?} of {offered:?}");
        }
    }

    #[test]
    fn policy_rejects_instead_of_cancelling_where_a_no_is_meant() {
        use PermissionPolicy::{AllowAlways, AllowOnce, Reject};
        for (policy, offered, expected) in [
            (AllowOnce, &["allow_always", "reject_once"][..], "reject_once"),
            (AllowOnce, &["allow_always", "reject_always"], "reject_always"),
            (AllowOnce, &["reject_always", "reject_once"], "reject_once"),
            (AllowAlways, &["reject_once"], "reject_once"),
            (Reject, &["allow_once", "reject_always"], "reject_always"),
            (Reject, &["reject_always", "reject_once"], "reject_once"),
        ] {
            assert_eq!(chosen(policy, offered).as_deref(), Some(expected), "{policy:?} of {offered:?}");
        }
    }

    #[test]
    fn no_policy_chooses_an_option_of_an_unknown_kind() {
        use PermissionPolicy::{AllowAlways, AllowOnce, Reject};
        for policy in [AllowOnce, AllowAlways, Reject] {
            assert_eq!(chosen(policy, &["allow_persistent", "allow", ""]), None);
            assert_eq!(chosen(policy, &["allow_persistent", "reject_once"]).as_deref(), Some("reject_once"));
        }
        assert_eq!(chosen(AllowOnce, &["allow_persistent", "allow_once"]).as_deref(), Some("allow_once"));
    }

    #[test]
    fn timeout_rejects_the_request() {
        let both = options(&["allow_once", "reject_once"]);
        assert_eq!(refusal(&both), Some(both[1].clone()));
        assert_eq!(decide(PermissionPolicy::Ask, &both), Decision::Ask);
        assert_eq!(refusal(&options(&["allow_once", "other"])), None);
    }

    #[test]
    fn option_is_read_as_far_as_it_can_be() {
        let read = |json: Value| OfferedOption::read(&RawValue::from_string(json.to_string()).unwrap());
        let option = read(json!({"optionId": "a", "name": "A", "kind": "allow_persistent", "_meta": 1})).unwrap();
        assert_eq!(option.kind.as_deref(), Some("allow_persistent"));
        assert!(option.may_allow());
        let bare = read(json!({"optionId": "a", "name": null, "kind": 7})).unwrap();
        assert_eq!((bare.name.as_str(), bare.kind), ("a", None));
        let long = read(json!({"optionId": "a", "name": "é".repeat(4000), "kind": "k".repeat(4000)})).unwrap();
        assert!(long.name.len() <= MAX_NAME_BYTES && long.kind.unwrap().len() <= MAX_KIND_BYTES);
        for unusable in
            [json!({"name": "A"}), json!({"optionId": ""}), json!({"optionId": "x".repeat(2000)}), json!(1)]
        {
            assert_eq!(read(unusable), None);
        }
    }
}
