//! A tour of the main job, through the public API alone.

mod automation;
mod fallback;
mod github;

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use secrecy::SecretString;
use uuid::Uuid;

use self::github::LocalGithub;
use super::{AppError, ServeOptions, Service, access::client_token_place, announce, reload::Reloader, stop};
use crate::{
    client::{ApiClient, ClientError, NewSession, PromptRequest, TurnEvent, clean::clean_line, printer::Printer},
    config::{
        Loaded,
        client::ClientSettings,
        environment::{current_folder, current_program},
        error::Origin,
    },
    contract::result::{ACPSessionResult, ResultStopReason},
    process::{inherited::Inherited, terminal::Terminal},
};

/// Maximum duration of one step; the slowest takes about a second.
const STEP: Duration = Duration::from_secs(20);
/// Maximum time from a crash of the agent until its session is usable again.
const RECOVERY_LIMIT: Duration = Duration::from_secs(1);

/// Serves with everything embedded and shows a tour: a session, a turn that writes a file, a cancel, a crash,
/// a fallback and the way back, and a pull request at a GitHub of its own.
/// Continues serving until Ctrl-C, or ends after the tour with `once`. Fails where a step did not do what it
/// says.
pub(crate) async fn demo(mut loaded: Loaded, once: bool, options: ServeOptions) -> Result<(), AppError> {
    let inherited = Inherited::take_over();
    let terminal = Terminal::at_start();
    let reserved = automation::reserve(&mut loaded).map_err(AppError::io("a port of the demo's GitHub"))?;
    let service = Service::start(&loaded, inherited).await?;
    announce(options.announce.as_deref(), service.address())?;
    // Only now: the data folder is ours.
    let github = match reserved {
        Some(reserved) => automation::serve(reserved, &loaded).await.map_err(|cause| cause.to_string()),
        None => Err("a separate runtime does not reach a GitHub on this machine".to_owned()),
    };
    let token = Option::clone(&service.server_token.get());
    let toured = tour(service.address(), token, github.as_ref()).await;
    if toured.is_ok() {
        say(&links_text(service.address(), &loaded));
        if !once {
            say("\nServing until Ctrl-C.");
            let signals = stop::Signals::listen();
            stop::signal(signals, terminal, Reloader::new(options.reload, &loaded, service.targets())).await;
        }
    }
    service.stop().await;
    if let Ok(github) = github {
        github.stop().await;
    }
    toured
}

fn say(text: &str) {
    // A tour that nobody sees continues.
    let _ = writeln!(io::stdout(), "{text}");
}

fn links_text(address: SocketAddr, loaded: &Loaded) -> String {
    // A terminal in the same folder finds the default data folder, and with it address and token.
    let folder = match loaded.data_dir_origin {
        Origin::Default => String::new(),
        _ => format!(" --data-dir {}", loaded.data_dir.display()),
    };
    format!(
        "\nWhere to look:\n  \
         API          http://{address}/acp/sessions\n  \
         Documents    http://{address}/docs/\n  \
         Metrics      http://{address}/metrics\n  \
         Health       http://{address}/acp/health\n  \
         Token        {}\n  \
         Data         {}\n\
         From another terminal:\n  \
         {} session new{folder} --installation demo --workspace mine",
        client_token_place(loaded),
        loaded.data_dir.display(),
        own_name()
    )
}

/// This program as a shell finds it; most who see the tour have not installed it.
fn own_name() -> String {
    let Ok(program) = current_program() else { return "lumilink".to_owned() };
    let here = current_folder().ok().and_then(|folder| program.strip_prefix(folder).ok().map(PathBuf::from));
    here.unwrap_or(program).display().to_string()
}

/// Makes the error of a failed step.
fn failed(step: &str) -> impl Fn(ClientError) -> AppError {
    move |cause| AppError::Demo(format!("{step}: {cause}"))
}

fn check(holds: bool, what: &str) -> Result<(), AppError> {
    if holds { Ok(()) } else { Err(AppError::Demo(what.to_owned())) }
}

struct Tour {
    client: ApiClient,
    session: String,
}

/// `github` is the GitHub of the tour, or why there is none.
async fn tour(
    address: SocketAddr,
    token: Option<SecretString>,
    github: Result<&LocalGithub, &String>,
) -> Result<(), AppError> {
    let url = format!("http://{address}/").parse().map_err(|_| AppError::Demo("the address is not a URL".into()))?;
    let settings = ClientSettings { url, token };
    let client = ApiClient::new(&settings).map_err(failed("client"))?;
    say(&format!("LumiLink {} at http://{address}\n", env!("CARGO_PKG_VERSION")));

    say("1. Open a session in a workspace: its agent starts and completes the ACP handshake.");
    let began = Instant::now();
    // A workspace of its own for each tour, so that each begins with an empty folder.
    let workspace_id = format!("tour-{}", Uuid::new_v4().simple());
    let request = NewSession { workspace_id, installation_id: Some("demo".into()), ..NewSession::default() };
    let opened = client.new_session(&request).await.map_err(failed("new session"))?;
    let folder = PathBuf::from(opened.more["workspace"]["path"].as_str().unwrap_or_default());
    say(&format!("   session {} in {:.1} ms\n", opened.session_id, began.elapsed().as_secs_f64() * 1e3));
    let tour = Tour { client, session: opened.session_id };

    say("2. Prompt the agent to write a file, and stream the turn.");
    let result = tour.turn("think ; plan ; write hello.txt Hello from the agent", false).await?;
    check(result.stop_reason == ResultStopReason::Completed, "the turn that writes a file did not complete")?;
    // With a separate runtime the folder is in its container; the diff is the same everywhere.
    let diff = tour.client.diff(&tour.session).await.map_err(failed("diff"))?;
    check(diff.files.iter().any(|file| file.path == "hello.txt"), "the file is not in the workspace's diff")?;
    say(&format!("   {} changed in {}\n", diff.files[0].path, folder.display()));

    say("3. Cancel a long turn.");
    let result = tour.turn("sleep 60", true).await?;
    check(result.stop_reason == ResultStopReason::Cancelled, "the long turn was not cancelled")?;
    say("");

    say("4. Crash the agent during a turn, and use the session right after.");
    let result = tour.turn("crash", false).await?;
    check(result.stop_reason == ResultStopReason::Error, "the crash was not reported")?;
    let crashed = Instant::now();
    let result = tour.turn("context", false).await?;
    check(result.stop_reason == ResultStopReason::Completed, "the session was not usable after the crash")?;
    check(crashed.elapsed() < RECOVERY_LIMIT, "the session was not usable within a second of the crash")?;
    let facts = tour.client.session(&tour.session).await.map_err(failed("session"))?;
    check(facts["restarts"] == 1, "the session does not report its restart")?;
    say(&format!(
        "   usable again after {:.0} ms; the new agent received the conversation so far as context\n",
        crashed.elapsed().as_secs_f64() * 1e3
    ));

    fallback::show(&tour.client).await?;

    say("6. Deliver the changes of a turn to a GitHub on this machine: issue, branch and pull request.");
    match github {
        Ok(github) => automation::show(&tour.client, github).await?,
        Err(why) => say(&format!("   skipped: {}\n", clean_line(why))),
    }

    say("7. Close the sessions, which ends their agents.");
    tour.client.close(&tour.session).await.map_err(failed("close"))?;
    let limit = tokio::time::timeout(STEP, tour.wait_until_agents_exited());
    limit.await.map_err(|_| AppError::Demo("an agent process remains".into()))??;
    say("   no agent process remains");
    Ok(())
}

impl Tour {
    /// Waits until the runtime has reaped the agent, which ends a moment after its session.
    async fn wait_until_agents_exited(&self) -> Result<(), AppError> {
        let mut look = tokio::time::interval(Duration::from_millis(20));
        loop {
            look.tick().await;
            let health = self.client.health().await.map_err(failed("health"))?;
            if health["runtime"]["agentProcesses"] == 0 {
                return Ok(());
            }
        }
    }

    /// Runs one turn and prints it as it streams; cancels it at its first update where asked to.
    async fn turn(&self, text: &str, cancel: bool) -> Result<ACPSessionResult, AppError> {
        self.run(PromptRequest::text(&self.session, text), cancel).await
    }

    /// As [`Self::turn`].
    async fn run(&self, request: PromptRequest, cancel: bool) -> Result<ACPSessionResult, AppError> {
        let text = request.prompt.as_str().unwrap_or_default().to_owned();
        say(&format!("   > {text}"));
        let limit = tokio::time::timeout(STEP, self.stream(request, cancel));
        limit.await.map_err(|_| AppError::Demo(format!("{text:?} took longer than {} s", STEP.as_secs())))?
    }

    async fn stream(&self, request: PromptRequest, cancel: bool) -> Result<ACPSessionResult, AppError> {
        let mut stream = self.client.prompt_stream(&request).await.map_err(failed("prompt"))?;
        let mut printer = Printer::new(io::stdout());
        let mut cancelled = !cancel;
        while let Some(event) = stream.next().await.map_err(failed("stream"))? {
            printer.event(&event).map_err(AppError::io("standard output"))?;
            match event {
                TurnEvent::Happened(_) if !cancelled => {
                    cancelled = true;
                    let was_running = self.client.cancel(&self.session, None).await.map_err(failed("cancel"))?;
                    check(was_running, "the cancel found no running turn")?;
                }
                TurnEvent::Result(result) => return Ok(*result),
                TurnEvent::Problem(problem) => return Err(AppError::Demo(problem.detail.clone())),
                TurnEvent::Accepted(_) | TurnEvent::Happened(_) => {}
            }
        }
        Err(AppError::Demo("the stream of a turn ended without a result".into()))
    }
}
