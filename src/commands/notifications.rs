//! `lumilink toasts`

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use serde_json::{Map, Value};
use tokio::signal::unix::{SignalKind, signal};

use super::flags::{CommandError, ServerFlags, print, print_json};
use crate::{
    client::{
        ApiClient, Bookmark, NotificationEvent, NotificationFollower, NotificationScope,
        clean::clean_line,
        notifications::{InboxEntry, ReceivedNotification},
    },
    config::Environment,
    domain::notify::reading::Place,
};

/// Notifications per page of the list; the default of the server.
const PAGE: usize = 50;
/// Disables colours: <https://no-color.org>.
const NO_COLOR: &str = "NO_COLOR";

#[derive(Debug, Args)]
pub(crate) struct NotificationsArgs {
    #[command(flatten)]
    server: ServerFlags,
    #[command(flatten)]
    scope_flags: ScopeFlags,
    /// Lists only unread notifications.
    #[arg(long, conflicts_with = "follow")]
    unread: bool,
    /// Most notifications to list, the newest.
    #[arg(long, value_name = "COUNT", default_value = "50", conflicts_with = "follow")]
    limit: usize,
    /// Prints notifications live until Ctrl-C; reconnects by itself.
    #[arg(long)]
    follow: bool,
    /// Resumes after the notification with this seq; requires --epoch. Both are in the output of --json.
    #[arg(long, value_name = "SEQ", requires = "epoch", requires = "follow")]
    since_cursor: Option<u64>,
    /// Epoch of the cursor: the identity of the database, as printed by --json.
    #[arg(long, value_name = "ID", requires = "since_cursor")]
    epoch: Option<String>,
    /// Keeps the cursor in this file, and resumes from it if the file exists.
    #[arg(long, value_name = "FILE", requires = "follow", conflicts_with = "since_cursor")]
    state: Option<PathBuf>,
    /// Prints the progress of sessions, too.
    #[arg(long, requires = "follow")]
    telemetry: bool,
    /// Marks printed notifications as read.
    #[arg(long)]
    ack: bool,
}

#[derive(Debug, Args)]
struct ScopeFlags {
    /// Tenant whose notifications are read.
    #[arg(long, value_name = "NAME")]
    installation: Option<String>,
    /// Only notifications of this workspace.
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,
    /// Notifications of this session, and those that concern its whole workspace.
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Notifications of this user's sessions, and those that concern a whole workspace.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Notifications of operators, about the service as a whole.
    #[arg(long, conflicts_with_all = ["installation", "workspace", "session", "user"])]
    operators: bool,
}

impl From<ScopeFlags> for NotificationScope {
    fn from(scope_flags: ScopeFlags) -> Self {
        Self {
            installation_id: scope_flags.installation,
            workspace_id: scope_flags.workspace,
            user_id: scope_flags.user,
            session_id: scope_flags.session,
            operators: scope_flags.operators,
        }
    }
}

/// Lists or follows notifications. A follower that is stopped by a signal exits with 0.
pub(crate) fn run(arguments: NotificationsArgs) -> Result<ExitCode, CommandError> {
    let NotificationsArgs { server, scope_flags, unread, limit, follow, since_cursor, epoch, state, telemetry, ack } =
        arguments;
    let (scope, json) = (NotificationScope::from(scope_flags), server.json);
    let bookmark = state.map(|file| {
        let opened = Bookmark::open(&file, &scope);
        opened.map_err(|cause| CommandError::failed(&file.display().to_string(), &cause))
    });
    let bookmark = bookmark.transpose()?;
    server.with_client(async move |client| {
        let reader = Reader { client, scope, json, colours: has_colours(), ack };
        if follow {
            let given = since_cursor.zip(epoch).map(|(cursor, epoch)| Place { epoch, cursor });
            let place = given.or_else(|| bookmark.as_ref()?.place().cloned());
            reader.follow(place, bookmark, telemetry).await?;
        } else {
            reader.list(unread, limit).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn has_colours() -> bool {
    std::io::stdout().is_terminal() && Environment::of_process().get(NO_COLOR).is_none()
}

struct Reader {
    client: ApiClient,
    scope: NotificationScope,
    json: bool,
    colours: bool,
    ack: bool,
}

impl Reader {
    async fn list(&self, unread_only: bool, limit: usize) -> Result<(), CommandError> {
        let (mut entries, mut cursor, mut unread) = (Vec::new(), None, 0);
        while entries.len() < limit {
            let page = (limit - entries.len()).min(PAGE);
            let page = self.client.notifications(&self.scope, unread_only, cursor.as_deref(), Some(page)).await?;
            entries.extend(page.items);
            (cursor, unread) = (page.next_cursor, page.unread);
            if cursor.is_none() {
                break;
            }
        }
        // Oldest first: a terminal shows the end of the output.
        for entry in entries.iter().rev() {
            if self.json { print_json(entry)? } else { print(&entry_text(entry, self.colours))? }
        }
        if !self.json {
            notice(&format!("{unread} unread"));
        }
        for InboxEntry { notification, .. } in entries.iter().filter(|entry| self.ack && !entry.read) {
            self.client.ack_notification(&self.scope, notification.id).await?;
        }
        Ok(())
    }

    async fn follow(
        &self,
        place: Option<Place>,
        mut bookmark: Option<Bookmark>,
        telemetry: bool,
    ) -> Result<(), CommandError> {
        let failed = |cause| CommandError::failed("signals", &cause);
        let mut terminated = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupted = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut follower = NotificationFollower::new(self.client.clone(), self.scope.clone(), place, telemetry);
        loop {
            tokio::select! {
                biased;
                _ = interrupted.recv() => break,
                _ = terminated.recv() => break,
                done = self.step(&mut follower, &mut bookmark) => done?,
            }
        }
        keep(&follower, &mut bookmark)?;
        follower.close().await;
        Ok(())
    }

    /// Prints one event and keeps its cursor.
    ///
    /// # Cancel safety
    /// The event was printed and its cursor kept, or neither; only the mark as read may be missing.
    async fn step(
        &self,
        follower: &mut NotificationFollower,
        bookmark: &mut Option<Bookmark>,
    ) -> Result<(), CommandError> {
        let event = follower.next().await?;
        self.show(&event)?;
        keep(follower, bookmark)?;
        if let NotificationEvent::Notification(notification) = &event
            && self.ack
            && let Err(error) = self.client.ack_notification(&self.scope, notification.id).await
        {
            notice(&format!("not marked as read: {error}"));
        }
        Ok(())
    }

    fn show(&self, event: &NotificationEvent) -> Result<(), CommandError> {
        match event {
            event if self.json => print_json(event),
            NotificationEvent::Notification(notification) => print(&notification_text(notification, self.colours)),
            NotificationEvent::Telemetry(telemetry) => print(&telemetry_text(telemetry)),
            event => {
                notice_text(event).iter().for_each(|text| notice(text));
                Ok(())
            }
        }
    }
}

fn keep(follower: &NotificationFollower, bookmark: &mut Option<Bookmark>) -> Result<(), CommandError> {
    let (Some(bookmark), Some(place)) = (bookmark, follower.place()) else { return Ok(()) };
    bookmark.keep(place).map_err(|cause| CommandError::failed("the state file", &cause))
}

/// Writes a notice to standard error; standard output is for notifications.
fn notice(text: &str) {
    let _ = writeln!(std::io::stderr(), "[{text}]");
}

/// Length of the longest severity, to align the columns.
const SEVERITY_WIDTH: usize = 7;
/// Characters shown of a session id, as in notifications.
const SUFFIX_CHARS: usize = 6;

/// A notification on a line: time, severity, workspace, body.
pub(crate) fn notification_text(notification: &ReceivedNotification, colours: bool) -> String {
    let shown =
        |name: &str| notification.more.get(name).and_then(Value::as_str).map_or_else(|| "-".to_owned(), clean_line);
    let severity = shown("severity");
    let padding = " ".repeat(SEVERITY_WIDTH.saturating_sub(severity.chars().count()));
    let severity = match severity.as_str() {
        _ if !colours => severity,
        "error" => format!("\u{1b}[31m{severity}\u{1b}[0m"),
        "warning" => format!("\u{1b}[33m{severity}\u{1b}[0m"),
        _ => format!("\u{1b}[32m{severity}\u{1b}[0m"),
    };
    format!("{}  {severity}{padding}  {}  {}", shown("createdAt"), shown("workspaceId"), shown("body"))
}

/// An entry of the list: `*` marks an unread notification.
pub(crate) fn entry_text(entry: &InboxEntry, colours: bool) -> String {
    let mark = if entry.read { ' ' } else { '*' };
    format!("{mark} {}", notification_text(&entry.notification, colours))
}

/// The progress of a session on a line.
pub(crate) fn telemetry_text(telemetry: &Map<String, Value>) -> String {
    let shown = |name: &str| telemetry.get(name).and_then(Value::as_str).map_or_else(|| "-".to_owned(), clean_line);
    let session = shown("sessionId");
    let suffix = session.char_indices().rev().nth(SUFFIX_CHARS - 1).map_or(0, |(at, _)| at);
    let mut line = format!(
        "{}  session  {}  {} is {}, {}",
        shown("at"),
        shown("workspaceId"),
        &session[suffix..],
        shown("state"),
        shown("connection")
    );
    let Some(progress) = telemetry.get("progress").and_then(Value::as_object) else { return line };
    let number = |name: &str| progress.get(name).and_then(Value::as_f64);
    if let Some(elapsed) = number("elapsedMs") {
        line.push_str(&format!(", {:.1} s", elapsed / 1e3));
    }
    if let (Some(done), Some(total)) = (number("planDone"), number("planTotal")) {
        line.push_str(&format!(", plan {done} of {total}"));
    }
    if let Some(eta) = number("etaMs") {
        line.push_str(&format!(", about {:.1} s to go", eta / 1e3));
    }
    line
}

/// A notice about the connection; `None` for notifications and progress.
pub(crate) fn notice_text(event: &NotificationEvent) -> Option<String> {
    let unread = |count: &u64| if *count == 0 { "nothing unread".to_owned() } else { format!("{count} unread") };
    Some(match event {
        NotificationEvent::Notification(_) | NotificationEvent::Telemetry(_) => return None,
        NotificationEvent::Welcome { unread: count, .. } => format!("connected; {}", unread(count)),
        NotificationEvent::Gap { telemetry } => format!("{telemetry} progress frames were dropped"),
        NotificationEvent::Reset { reason } => {
            format!("the cursor was rejected ({reason}); reading the missed notifications from the list")
        }
        NotificationEvent::CaughtUp { notifications, incomplete: None } => {
            format!("{notifications} read from the list")
        }
        NotificationEvent::CaughtUp { notifications, incomplete: Some(why) } => {
            format!("{notifications} read from the list, more may be missing: {}", clean_line(why))
        }
        NotificationEvent::Broken { reason, again_in_ms: 0 } => format!("{}; reconnecting", clean_line(reason)),
        NotificationEvent::Broken { reason, again_in_ms } => {
            let milliseconds = std::time::Duration::from_millis(*again_in_ms);
            format!("{}; reconnecting in {:.1} s", clean_line(reason), milliseconds.as_secs_f64())
        }
        NotificationEvent::Restored { unread: count, .. } => format!("reconnected; {}", unread(count)),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn notification(severity: &str, body: &str) -> ReceivedNotification {
        let notification = json!({"id": "00000000-0000-0000-0000-000000000007", "seq": 7, "severity": severity, "body": body,
        "workspaceId": "api", "createdAt": "2026-11-25T00:00:00Z"});
        serde_json::from_value(notification).unwrap()
    }

    #[test]
    fn a_notification_is_one_line_without_control_characters() {
        let evil = notification("warning", "two\nlines\u{1b}[2J");
        assert_eq!(notification_text(&evil, false), "2026-11-25T00:00:00Z  warning  api  two lines[2J");
        let coloured = notification_text(&notification("error", "x"), true);
        assert_eq!(coloured, "2026-11-25T00:00:00Z  \u{1b}[31merror\u{1b}[0m    api  x");
        assert_eq!(notification_text(&notification("info", "x"), false), "2026-11-25T00:00:00Z  info     api  x");
        let entry = InboxEntry { notification: notification("info", "x"), read: false };
        assert!(entry_text(&entry, false).starts_with("* 2026"));
        assert!(entry_text(&InboxEntry { read: true, ..entry }, false).starts_with("  2026"));
    }

    #[test]
    fn session_progress_shows_the_known_members() {
        let mut telemetry = json!({"workspaceId": "api", "sessionId": "01a20a11-0e3c-7000-8000-0123456789ab",
        "state": "running", "connection": "connected", "at": "2026-11-25T00:00:00Z", "promptId": null,
        "progress": {"elapsedMs": 1500, "etaMs": 250_000, "planDone": 2, "planTotal": 5}});
        let text = |value: &Value| telemetry_text(value.as_object().unwrap());
        let head = "2026-11-25T00:00:00Z  session  api  6789ab is running, connected";
        assert_eq!(text(&telemetry), format!("{head}, 1.5 s, plan 2 of 5, about 250.0 s to go"));
        telemetry["progress"] = json!({"elapsedMs": 1500, "etaMs": null, "planDone": null});
        assert_eq!(text(&telemetry), format!("{head}, 1.5 s"));
        telemetry["progress"] = Value::Null;
        assert_eq!(text(&telemetry), head);
        assert_eq!(text(&json!({"sessionId": "é"})), "-  session  -  é is -, -");
    }

    #[test]
    fn connection_events_are_one_sentence() {
        let broken = |again_in_ms| NotificationEvent::Broken { reason: "gone\u{1b}[2J".into(), again_in_ms };
        assert_eq!(notice_text(&broken(0)).unwrap(), "gone[2J; reconnecting");
        assert_eq!(notice_text(&broken(1520)).unwrap(), "gone[2J; reconnecting in 1.5 s");
        assert_eq!(
            notice_text(&NotificationEvent::Restored { after_ms: 1, unread: 0 }).unwrap(),
            "reconnected; nothing unread"
        );
        assert_eq!(notice_text(&NotificationEvent::Notification(notification("info", "x"))), None);
    }
}
