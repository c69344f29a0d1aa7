//! Notifications (`toast` in wire names): content, addressee, stream, and the scope of a subscriber.

use std::{fmt, ops::Range, str::FromStr, time::Duration};

use uuid::Uuid;

use crate::domain::{
    capacity::{AlertKind, CapacityChange},
    clock::Timestamp,
    ids::{BadName, InstallationId, SessionId, UserId, WorkspaceId, WorkspaceKey},
    redaction::Redacted,
    turn::transcript::TranscriptEntry,
    words::words,
};

/// The title of every notification.
pub(crate) const TITLE: &str = "Automation update";
/// Time for which a client shows a notification.
pub(crate) const AUTO_DISMISS_MS: u32 = 10_000;
/// The longest body of a notification, in characters.
pub(crate) const MAX_BODY_CHARS: usize = 140;
/// The longest note, in characters.
pub(crate) const MAX_NOTE_CHARS: usize = 512;
/// Period within which the same event of several sessions of a workspace is one notification: when a runtime goes down,
/// all connections to it break.
const COALESCING_PERIOD: Duration = Duration::from_secs(60);
/// Characters of a session's id that a notification may show.
const SUFFIX_CHARS: usize = 6;

words! {
    /// Severity of a notification.
    Severity {
        /// A problem has ended.
        Info = "info",
        /// Automation was skipped, or something needs a moment.
        Warning = "warning",
        /// A rollback, or a session that failed for good.
        Error = "error",
    }
}

words! {
    /// Cause of a notification.
    Trigger {
        /// Automation was skipped.
        AutomationSkipped = "automationSkipped",
        /// Automation failed.
        AutomationFailed = "automationFailed",
        /// A later attempt of automation delivered the changes of a turn.
        AutomationDelivered = "automationDelivered",
        /// The window rolled the workspace back.
        AutoThreshold = "autoThreshold",
        /// An operator changed the route.
        ManualOperator = "manualOperator",
        /// A user changed the route.
        ManualUser = "manualUser",
        /// The workspace is on ACP again.
        Recovered = "recovered",
        /// The workspace was migrated to another route.
        Migrated = "migrated",
        /// A session's handshake failed, so that it goes over the fallback by itself.
        HandshakeFailed = "handshakeFailed",
        /// A session failed for good.
        SessionFailed = "sessionFailed",
        /// The connection to the agent is broken and is being made again.
        Reconnecting = "reconnecting",
        /// Seats are running out, or are free again.
        Capacity = "capacity",
        /// Many workspaces were rolled back at once, or no longer are.
        SystemicRollback = "systemicRollback",
    }
}

/// The figures in the text of an operators' notification, for programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Figures {
    /// A change of the capacity alert.
    Capacity(CapacityChange),
    /// A rollback storm began or ended.
    RollbackStorm {
        kind: AlertKind,
        /// Workspaces that rolled back by themselves within 5 minutes: now, or at the peak of a storm that has ended.
        rolled_back: usize,
        /// Workspaces in use at the begin.
        in_use: Option<usize>,
    },
}

/// The content of a notification; made only by [`crate::domain::notify::notice`], which has every text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    pub severity: Severity,
    pub trigger: Trigger,
    /// 1 to [`MAX_BODY_CHARS`] characters, without secrets, control characters and markup.
    pub body: Redacted,
    /// Only for operators.
    pub figures: Option<Figures>,
}

/// A sequence of notifications. Sequence numbers are assigned in commit order, without gaps.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Stream {
    /// The stream of the service's operators.
    Operators,
    Tenant(InstallationId),
}

const OPERATORS: &str = "operators";
const TENANT: &str = "tenant:";

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operators => f.write_str(OPERATORS),
            Self::Tenant(tenant) => write!(f, "{TENANT}{tenant}"),
        }
    }
}

impl FromStr for Stream {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        match text.strip_prefix(TENANT) {
            Some(tenant) => tenant.parse().map(Self::Tenant),
            None if text == OPERATORS => Ok(Self::Operators),
            // An empty name never parses, and its error states the format of a name.
            None => "".parse().map(Self::Tenant),
        }
    }
}

/// The recipients of a notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Addressee {
    Operators,
    /// All subscribers of a workspace.
    Workspace(WorkspaceKey),
    /// The user of a session, and the subscribers of its whole workspace.
    Session(WorkspaceKey, SessionId),
}

impl Addressee {
    /// The stream to which the notification is appended.
    pub(crate) fn stream(&self) -> Stream {
        match self {
            Self::Operators => Stream::Operators,
            Self::Workspace(key) | Self::Session(key, _) => Stream::Tenant(key.installation_id.clone()),
        }
    }

    pub(crate) fn workspace(&self) -> Option<&WorkspaceKey> {
        match self {
            Self::Operators => None,
            Self::Workspace(key) | Self::Session(key, _) => Some(key),
        }
    }

    pub(crate) fn session(&self) -> Option<SessionId> {
        match self {
            Self::Session(_, session) => Some(*session),
            Self::Operators | Self::Workspace(_) => None,
        }
    }
}

/// A notification that is committed in the transaction of its cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewNotification {
    /// A fresh UUID of version 7.
    pub id: Uuid,
    pub to: Addressee,
    pub notice: Notice,
    /// The cause, for deduplication: a second notification of the same cause is not written.
    pub cause_id: String,
}

impl NewNotification {
    /// `id` is a fresh UUID of version 7.
    pub(crate) fn new(id: Uuid, to: Addressee, notice: Notice, cause_id: impl fmt::Display) -> Self {
        Self { id, to, notice, cause_id: cause_id.to_string() }
    }
}

/// A notification about a session and its note in the session's transcript; both are written, or neither if the cause
/// was reported before.
#[derive(Debug, Clone)]
pub(crate) struct SessionNotice {
    pub notification: NewNotification,
    pub note: TranscriptEntry,
}

/// Times of an earlier notification that also covers an event of another session of the workspace at `now`. The range
/// extends to both sides, since events are not written in the order in which they happen.
pub(crate) fn coalescing_range(now: Timestamp) -> Range<Timestamp> {
    now.minus(COALESCING_PERIOD).plus(Duration::from_micros(1))..now.plus(COALESCING_PERIOD)
}

/// The notifications that a subscriber or a reader of the inbox asks for; each filter narrows them, `None` does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope {
    pub stream: Stream,
    pub workspace: Option<WorkspaceId>,
    /// Notifications about this user's sessions and about whole workspaces.
    pub user: Option<UserId>,
    /// Notifications about this session and about its whole workspace; requires `workspace` to be the session's.
    pub session: Option<SessionId>,
    /// True to leave out the notifications about whole workspaces.
    pub sessions_only: bool,
}

impl Scope {
    /// All notifications of a stream.
    pub(crate) fn all(stream: Stream) -> Self {
        Self { stream, workspace: None, user: None, session: None, sessions_only: false }
    }

    /// True if a notification of the stream, about these, is in the scope. `user` is the session's.
    pub(crate) fn takes(
        &self,
        workspace: Option<&WorkspaceId>,
        session: Option<SessionId>,
        user: Option<&UserId>,
    ) -> bool {
        let is_of_workspace = self.workspace.is_none() || self.workspace.as_ref() == workspace;
        // A notification without a session concerns everyone.
        let is_of_session = self.session.is_none() || session.is_none() || self.session == session;
        let is_of_user = self.user.is_none() || session.is_none() || self.user.as_ref() == user;
        is_of_workspace && is_of_session && is_of_user && (session.is_some() || !self.sessions_only)
    }

    /// True if `other` contains every notification of this scope.
    #[cfg(test)]
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        fn narrows<T: PartialEq>(this: Option<&T>, other: Option<&T>) -> bool {
            other.is_none() || this == other
        }
        self.stream == other.stream
            && narrows(self.workspace.as_ref(), other.workspace.as_ref())
            && narrows(self.user.as_ref(), other.user.as_ref())
            && narrows(self.session.as_ref(), other.session.as_ref())
            && (self.sessions_only || !other.sessions_only)
    }
}

/// The last [`SUFFIX_CHARS`] characters of a session's id, the only part that a notification may show.
pub(crate) fn session_suffix(session: SessionId) -> String {
    let id = session.to_string();
    id[id.len() - SUFFIX_CHARS..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(workspace: Option<&str>, user: Option<&str>, session: Option<u128>) -> Scope {
        Scope {
            stream: Stream::Tenant("acme".parse().unwrap()),
            workspace: workspace.map(|it| it.parse().unwrap()),
            user: user.map(|it| it.parse().unwrap()),
            session: session.map(|id| SessionId(Uuid::from_u128(id))),
            sessions_only: false,
        }
    }

    #[test]
    fn stream_names_parse_and_other_texts_do_not() {
        for stream in [Stream::Operators, Stream::Tenant("a:b".parse().unwrap())] {
            assert_eq!(stream.to_string().parse(), Ok(stream));
        }
        for bad in ["", "tenant:", "acme", "operators:x", "tenant:a b"] {
            assert!(bad.parse::<Stream>().is_err(), "{bad}");
        }
    }

    #[test]
    fn events_less_than_a_minute_apart_share_a_notification() {
        let now = Timestamp(1_800_000_000_000_000);
        let minute = Duration::from_secs(60);
        let less = minute - Duration::from_micros(1);
        for (earlier, is_shared) in [
            (now, true),
            (now.minus(less), true),
            (now.minus(minute), false),
            (now.plus(less), true),
            (now.plus(minute), false),
        ] {
            assert_eq!(coalescing_range(now).contains(&earlier), is_shared, "{earlier}");
            assert_eq!(coalescing_range(earlier).contains(&now), is_shared, "in either order: {earlier}");
        }
    }

    #[test]
    fn scope_takes_its_own_notifications_and_those_for_everyone() {
        let (ws, other): (WorkspaceId, WorkspaceId) = ("ws".parse().unwrap(), "other".parse().unwrap());
        let (ann, bob): (UserId, UserId) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let (one, two) = (Some(SessionId(Uuid::from_u128(1))), Some(SessionId(Uuid::from_u128(2))));
        let all = scope(None, None, None);
        assert!(
            all.takes(Some(&ws), one, Some(&ann))
                && all.takes(Some(&other), None, None)
                && all.takes(None, None, None)
        );
        let of_workspace = scope(Some("ws"), None, None);
        assert!(of_workspace.takes(Some(&ws), one, None) && !of_workspace.takes(Some(&other), None, None));
        assert!(!of_workspace.takes(None, None, None));
        let of_ann = scope(Some("ws"), Some("ann"), None);
        assert!(of_ann.takes(Some(&ws), one, Some(&ann)) && of_ann.takes(Some(&ws), None, None));
        assert!(!of_ann.takes(Some(&ws), one, Some(&bob)) && !of_ann.takes(Some(&ws), one, None));
        let without_workspaces = Scope { sessions_only: true, ..scope(None, Some("ann"), None) };
        assert!(without_workspaces.takes(Some(&ws), one, Some(&ann)));
        assert!(!without_workspaces.takes(Some(&ws), None, None) && !without_workspaces.takes(None, None, None));
        let of_one = scope(Some("ws"), None, Some(1));
        assert!(of_one.takes(Some(&ws), one, Some(&bob)) && of_one.takes(Some(&ws), None, None));
        assert!(!of_one.takes(Some(&ws), two, None));
    }

    #[test]
    fn scope_is_within_itself_and_every_wider_one() {
        let (wide, narrow) = (scope(Some("ws"), None, None), scope(Some("ws"), Some("ann"), Some(1)));
        assert!(narrow.is_within(&wide) && narrow.is_within(&narrow) && !wide.is_within(&narrow));
        assert!(!wide.is_within(&Scope::all(Stream::Operators)));
        assert!(!scope(Some("other"), None, None).is_within(&wide));
    }
}
