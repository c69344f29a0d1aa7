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

/// Toasts on a page of the list: as many as a server gives that is not asked for a number.
const PAGE: usize = 50;
/// Says that no program is to write colours: <https://no-color.org>.
const NO_COLOR: &str = "NO_COLOR";

/// Which server, which toasts, and what to do with them.
#[derive(Debug, Args)]
pub(crate) struct NotificationsArgs {
    #[command(flatten)]
    server: ServerFlags,
    #[command(flatten)]
    whose: Whose,
    /// Only what was not read.
    #[arg(long, conflicts_with = "follow")]
    unread: bool,
    /// At most so many, the newest.
    #[arg(long, value_name = "COUNT", default_value = "50", conflicts_with = "follow")]
    limit: usize,
    /// Prints toasts as they come, until Ctrl-C; goes on by itself after a broken connection.
    #[arg(long)]
    follow: bool,
    /// Goes on after this toast; needs the epoch in which it got its number.
    #[arg(long, value_name = "SEQ", requires = "epoch", requires = "follow")]
    since_cursor: Option<u64>,
    /// Names the database that gave the cursor: `epoch` of the welcome with --json.
    #[arg(long, value_name = "ID", requires = "since_cursor")]
    epoch: Option<String>,
    /// Keeps the place in this file, and goes on from there where it exists.
    #[arg(long, value_name = "FILE", requires = "follow", conflicts_with = "since_cursor")]
    state: Option<PathBuf>,
    /// Prints how sessions are doing, too.
    #[arg(long, requires = "follow")]
    telemetry: bool,
    /// Marks what was printed as read.
    #[arg(long)]
    ack: bool,
}

#[derive(Debug, Args)]
struct Whose {
    /// Of this tenant.
    #[arg(long, value_name = "NAME")]
    installation: Option<String>,
    /// Only of this workspace.
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,
    /// Only of this session, and what concerns its workspace as a whole.
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Only of this user's sessions, and what concerns a workspace as a whole.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// What operators are told about the service as a whole.
    #[arg(long, conflicts_with_all = ["installation", "workspace", "session", "user"])]
    operators: bool,
}

impl From<Whose> for NotificationScope {
    fn from(whose: Whose) -> Self {
        Self {
            installation_id: whose.installation,
            workspace_id: whose.workspace,
            user_id: whose.user,
            session_id: whose.session,
            operators: whose.operators,
        }
    }
}

/// Does it. A follower that is stopped has done what it should: exit code 0.
pub(crate) fn run(arguments: NotificationsArgs) -> Result<ExitCode, CommandError> {
    let NotificationsArgs { server, whose, unread, limit, follow, since_cursor, epoch, state, telemetry, ack } =
        arguments;
    let (scope, json) = (NotificationScope::from(whose), server.json);
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
            let page = self.client.toasts(&self.scope, unread_only, cursor.as_deref(), Some(page)).await?;
            entries.extend(page.items);
            (cursor, unread) = (page.next_cursor, page.unread);
            if cursor.is_none() {
                break;
            }
        }
        // A terminal shows the end.
        for entry in entries.iter().rev() {
            if self.json { print_json(entry)? } else { print(&entry_text(entry, self.colours))? }
        }
        if !self.json {
            notice(&format!("{unread} unread"));
        }
        for InboxEntry { toast, .. } in entries.iter().filter(|entry| self.ack && !entry.read) {
            self.client.ack_toast(&self.scope, toast.id).await?;
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

    /// One event. Where it is given up, the event was printed and its place kept, or neither; only the mark may be
    /// missing.
    async fn step(
        &self,
        follower: &mut NotificationFollower,
        bookmark: &mut Option<Bookmark>,
    ) -> Result<(), CommandError> {
        let event = follower.next().await?;
        self.show(&event)?;
        keep(follower, bookmark)?;
        if let NotificationEvent::Toast(toast) = &event
            && self.ack
            && let Err(error) = self.client.ack_toast(&self.scope, toast.id).await
        {
            notice(&format!("not marked as read: {error}"));
        }
        Ok(())
    }

    fn show(&self, event: &NotificationEvent) -> Result<(), CommandError> {
        match event {
            event if self.json => print_json(event),
            NotificationEvent::Toast(toast) => print(&toast_text(toast, self.colours)),
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
    bookmark.keep(place).map_err(|cause| CommandError::failed("the file with the place", &cause))
}

/// Tells whoever watches; standard output is for toasts.
fn notice(text: &str) {
    let _ = writeln!(std::io::stderr(), "[{text}]");
}

/// The longest severity, so that what follows stands in a column.
const SEVERITY_WIDTH: usize = 7;
/// Characters of a session's id that are shown: as many as in a toast.
const SUFFIX_CHARS: usize = 6;

/// A toast on a line: when, how bad, where, what.
pub(crate) fn toast_text(toast: &ReceivedNotification, colours: bool) -> String {
    let shown = |name: &str| toast.more.get(name).and_then(Value::as_str).map_or_else(|| "-".to_owned(), clean_line);
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

/// The same on the list: a mark on what was not read.
pub(crate) fn entry_text(entry: &InboxEntry, colours: bool) -> String {
    let mark = if entry.read { ' ' } else { '*' };
    format!("{mark} {}", toast_text(&entry.toast, colours))
}

/// How a session is doing, on a line.
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

/// What happens to the line itself.
pub(crate) fn notice_text(event: &NotificationEvent) -> Option<String> {
    let unread = |count: &u64| if *count == 0 { "nothing unread".to_owned() } else { format!("{count} unread") };
    Some(match event {
        NotificationEvent::Toast(_) | NotificationEvent::Telemetry(_) => return None,
        NotificationEvent::Welcome { unread: count, .. } => format!("following; {}", unread(count)),
        NotificationEvent::Gap { telemetry } => format!("{telemetry} notes of sessions were left out"),
        NotificationEvent::Reset { reason } => {
            format!("the place to go on from is of no use ({reason}); the list is read instead")
        }
        NotificationEvent::CaughtUp { toasts, incomplete: None } => format!("{toasts} caught up with from the list"),
        NotificationEvent::CaughtUp { toasts, incomplete: Some(why) } => {
            format!("{toasts} caught up with from the list, which may not be all: {}", clean_line(why))
        }
        NotificationEvent::Broken { reason, again_in_ms: 0 } => format!("{}; connecting again", clean_line(reason)),
        NotificationEvent::Broken { reason, again_in_ms } => {
            let milliseconds = std::time::Duration::from_millis(*again_in_ms);
            format!("{}; connecting again in {:.1} s", clean_line(reason), milliseconds.as_secs_f64())
        }
        NotificationEvent::Restored { unread: count, .. } => format!("connected again; {}", unread(count)),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn toast(severity: &str, body: &str) -> ReceivedNotification {
        let toast = json!({"id": "00000000-0000-0000-0000-000000000007", "seq": 7, "severity": severity, "body": body,
        "workspaceId": "api", "createdAt": "2026-11-25T00:00:00Z"});
        serde_json::from_value(toast).unwrap()
    }

    #[test]
    fn a_toast_is_one_line_without_anything_that_a_terminal_acts_on_but_our_own_colour() {
        let evil = toast("warning", "two\nlines\u{1b}[2J");
        assert_eq!(toast_text(&evil, false), "2026-11-25T00:00:00Z  warning  api  two lines[2J");
        let coloured = toast_text(&toast("error", "x"), true);
        assert_eq!(coloured, "2026-11-25T00:00:00Z  \u{1b}[31merror\u{1b}[0m    api  x");
        assert_eq!(toast_text(&toast("info", "x"), false), "2026-11-25T00:00:00Z  info     api  x");
        let entry = InboxEntry { toast: toast("info", "x"), read: false };
        assert!(entry_text(&entry, false).starts_with("* 2026"));
        assert!(entry_text(&InboxEntry { read: true, ..entry }, false).starts_with("  2026"));
    }

    #[test]
    fn a_session_is_told_with_what_is_known_of_its_turn() {
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
    fn what_happens_to_the_line_is_told_in_a_sentence() {
        let broken = |again_in_ms| NotificationEvent::Broken { reason: "gone\u{1b}[2J".into(), again_in_ms };
        assert_eq!(notice_text(&broken(0)).unwrap(), "gone[2J; connecting again");
        assert_eq!(notice_text(&broken(1520)).unwrap(), "gone[2J; connecting again in 1.5 s");
        assert_eq!(
            notice_text(&NotificationEvent::Restored { after_ms: 1, unread: 0 }).unwrap(),
            "connected again; nothing unread"
        );
        assert_eq!(notice_text(&NotificationEvent::Toast(toast("info", "x"))), None);
    }
}
