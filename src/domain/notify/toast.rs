//! Notifications: what one says, to whom, in which stream it stands, and who gets it.

use std::{fmt, ops::Range, str::FromStr, time::Duration};

use uuid::Uuid;

use crate::domain::{
    clock::Timestamp,
    ids::{BadName, InstallationId, SessionId, UserId, WorkspaceId, WorkspaceKey},
    redaction::Redacted,
    turn::transcript::TranscriptEntry,
    words::words,
};

/// The title of every notification (mission).
pub(crate) const TITLE: &str = "Automation update";
/// How long a notification stays on the screen, in milliseconds (mission).
pub(crate) const AUTO_DISMISS_MS: u32 = 10_000;
/// What a notification may be long (mission), in characters.
pub(crate) const MAX_BODY_CHARS: usize = 140;
/// What a note may be long (mission), in characters.
pub(crate) const MAX_NOTE_CHARS: usize = 512;
/// What befalls many sessions of a workspace within so long is one notification: where a runtime goes away, all
/// connections to it break.
const TOGETHER: Duration = Duration::from_secs(60);
/// Characters of a session's id that a notification may show (mission).
const SUFFIX_CHARS: usize = 6;

words! {
    /// How bad it is.
    Severity {
        /// Something is good again.
        Info = "info",
        /// Automation was skipped, or something needs a moment.
        Warning = "warning",
        /// A rollback, or a session that failed for good.
        Error = "error",
    }
}

words! {
    /// What a notification is about.
    Trigger {
        /// Automation was skipped.
        AutomationSkipped = "automationSkipped",
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

/// What is told: made in [`crate::domain::notify::notice`] alone, where every text is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub trigger: Trigger,
    /// 1 to [`MAX_BODY_CHARS`] characters, without secrets, control characters and markup.
    pub body: Redacted,
}

/// One sequence of notifications. Its numbers are given in the order of commits, without a hole.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Stream {
    /// Of the service's operators.
    Operators,
    /// Of a tenant.
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
            // Not a name at all, so that the error says what one is.
            None => "".parse().map(Self::Tenant),
        }
    }
}

/// To whom a notification goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Addressee {
    Operators,
    /// Everyone in a workspace.
    Workspace(WorkspaceKey),
    /// The user of a session, and those who look at its workspace.
    Session(WorkspaceKey, SessionId),
}

impl Addressee {
    /// The sequence in which it stands.
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

/// A notification that is to be written to disk, in the transaction of its cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewNotification {
    /// New: a UUID of version 7.
    pub id: Uuid,
    /// For whom.
    pub to: Addressee,
    pub notice: Notice,
    /// What caused it; a second notification of the same cause is skipped.
    pub cause_id: String,
}

impl NewNotification {
    /// A notification; `id` is new.
    pub(crate) fn new(id: Uuid, to: Addressee, notice: Notice, cause_id: impl fmt::Display) -> Self {
        Self { id, to, notice, cause_id: cause_id.to_string() }
    }
}

/// A notification about a session, and the note that stands beside it in the session's transcript: both are written, or
/// neither where the cause was told before.
#[derive(Debug, Clone)]
pub(crate) struct SessionNotice {
    pub toast: NewNotification,
    pub note: TranscriptEntry,
}

/// When a notification was told that stands for what befalls another session of its workspace now. Both ways, since
/// such things are not written in the order in which they happen.
pub(crate) fn told_together(now: Timestamp) -> Range<Timestamp> {
    now.minus(TOGETHER).plus(Duration::from_micros(1))..now.plus(TOGETHER)
}

/// What a subscriber or a reader of the inbox wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope {
    /// Of which sequence.
    pub stream: Stream,
    /// Only of this workspace.
    pub workspace: Option<WorkspaceId>,
    /// Only of this user's sessions, and what concerns a workspace as a whole.
    pub user: Option<UserId>,
    /// Only of this session, and what concerns a workspace as a whole. The workspace has to be set to the session's.
    pub session: Option<SessionId>,
}

impl Scope {
    /// Everything of a sequence.
    pub(crate) fn all(stream: Stream) -> Self {
        Self { stream, workspace: None, user: None, session: None }
    }

    /// Whether something of the sequence is for it.
    pub(crate) fn takes(
        &self,
        workspace: Option<&WorkspaceId>,
        session: Option<SessionId>,
        user: Option<&UserId>,
    ) -> bool {
        let is_of_workspace = self.workspace.is_none() || self.workspace.as_ref() == workspace;
        // What is about no session concerns everyone.
        let is_of_session = self.session.is_none() || session.is_none() || self.session == session;
        let is_of_user = self.user.is_none() || session.is_none() || self.user.as_ref() == user;
        is_of_workspace && is_of_session && is_of_user
    }

    /// Whether everything that this one sees is seen by the other one too.
    #[cfg(test)]
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        fn narrows<T: PartialEq>(this: Option<&T>, other: Option<&T>) -> bool {
            other.is_none() || this == other
        }
        self.stream == other.stream
            && narrows(self.workspace.as_ref(), other.workspace.as_ref())
            && narrows(self.user.as_ref(), other.user.as_ref())
            && narrows(self.session.as_ref(), other.session.as_ref())
    }
}

/// The part of a session's id that a notification may show.
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
        }
    }

    #[test]
    fn a_stream_reads_back_and_nothing_else_does() {
        for stream in [Stream::Operators, Stream::Tenant("a:b".parse().unwrap())] {
            assert_eq!(stream.to_string().parse(), Ok(stream));
        }
        for bad in ["", "tenant:", "acme", "operators:x", "tenant:a b"] {
            assert!(bad.parse::<Stream>().is_err(), "{bad}");
        }
    }

    #[test]
    fn causes_within_a_minute_are_merged() {
        let now = Timestamp(1_800_000_000_000_000);
        let minute = Duration::from_secs(60);
        let less = minute - Duration::from_micros(1);
        for (told, is_one) in [
            (now, true),
            (now.minus(less), true),
            (now.minus(minute), false),
            (now.plus(less), true),
            (now.plus(minute), false),
        ] {
            assert_eq!(told_together(now).contains(&told), is_one, "{told}");
            assert_eq!(told_together(told).contains(&now), is_one, "whichever is written first: {told}");
        }
    }

    #[test]
    fn a_scope_takes_its_own_and_what_concerns_everyone() {
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
        let of_one = scope(Some("ws"), None, Some(1));
        assert!(of_one.takes(Some(&ws), one, Some(&bob)) && of_one.takes(Some(&ws), None, None));
        assert!(!of_one.takes(Some(&ws), two, None));
    }

    #[test]
    fn a_scope_is_within_itself_and_every_wider_one() {
        let (wide, narrow) = (scope(Some("ws"), None, None), scope(Some("ws"), Some("ann"), Some(1)));
        assert!(narrow.is_within(&wide) && narrow.is_within(&narrow) && !wide.is_within(&narrow));
        assert!(!wide.is_within(&Scope::all(Stream::Operators)));
        assert!(!scope(Some("other"), None, None).is_within(&wide));
    }
}
