//! `lumilink toasts`

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    flags::{CommandError, print},
    server_flags::{ServerFlags, print_json},
    toasts_view::{entry_text, notice_text, telemetry_text, toast_text},
};
use crate::{
    client::{ApiClient, Bookmark, ToastEvent, ToastFollower, ToastScope, notifications::InboxEntry},
    config::Environment,
    domain::notify::reading::Place,
};

/// Toasts on a page of the list: as many as a server gives that is not asked for a number.
const PAGE: usize = 50;
/// Says that no program is to write colours: <https://no-color.org>.
const NO_COLOR: &str = "NO_COLOR";

/// Which server, which toasts, and what to do with them.
#[derive(Debug, Args)]
pub struct ToastsArgs {
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

impl From<Whose> for ToastScope {
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
pub fn run(arguments: ToastsArgs) -> Result<ExitCode, CommandError> {
    let ToastsArgs { server, whose, unread, limit, follow, since_cursor, epoch, state, telemetry, ack } = arguments;
    let (scope, json) = (ToastScope::from(whose), server.json);
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
    scope: ToastScope,
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
        let mut follower = ToastFollower::new(self.client.clone(), self.scope.clone(), place, telemetry);
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
    async fn step(&self, follower: &mut ToastFollower, bookmark: &mut Option<Bookmark>) -> Result<(), CommandError> {
        let event = follower.next().await?;
        self.show(&event)?;
        keep(follower, bookmark)?;
        if let ToastEvent::Toast(toast) = &event
            && self.ack
            && let Err(error) = self.client.ack_toast(&self.scope, toast.id).await
        {
            notice(&format!("not marked as read: {error}"));
        }
        Ok(())
    }

    fn show(&self, event: &ToastEvent) -> Result<(), CommandError> {
        match event {
            event if self.json => print_json(event),
            ToastEvent::Toast(toast) => print(&toast_text(toast, self.colours)),
            ToastEvent::Telemetry(telemetry) => print(&telemetry_text(telemetry)),
            event => {
                notice_text(event).iter().for_each(|text| notice(text));
                Ok(())
            }
        }
    }
}

fn keep(follower: &ToastFollower, bookmark: &mut Option<Bookmark>) -> Result<(), CommandError> {
    let (Some(bookmark), Some(place)) = (bookmark, follower.place()) else { return Ok(()) };
    bookmark.keep(place).map_err(|cause| CommandError::failed("the file with the place", &cause))
}

/// Tells whoever watches; standard output is for toasts.
fn notice(text: &str) {
    let _ = writeln!(std::io::stderr(), "[{text}]");
}
