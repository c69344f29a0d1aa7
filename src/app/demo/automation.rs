//! The part of the tour in which the changes of an agent become an issue, a branch and a pull request.

use std::{collections::BTreeMap, ffi::OsString, io};

use secrecy::ExposeSecret;
use uuid::Uuid;

use super::{
    Tour, check, failed,
    github::{LocalGithub, REPOSITORY, Reserved},
    say,
};
use crate::{
    app::AppError,
    client::{ApiClient, AutomationRequest, NewSession, PromptRequest, clean::clean_line},
    config::{Loaded, sections::Github},
    contract::{
        automation::{AutomationStatus, GithubAutomation},
        result::ACPSessionResult,
    },
    runtime::workspaces::git::Git,
};

/// Folder of the repository, in the data folder.
const FOLDER: &str = "demo-github";
/// Lines of the pull request that the tour shows: title, summary and a part of the diagnostics.
const PAGE_LINES: usize = 16;

/// Reserves the address of a GitHub for the tour, and makes the settings use it in place of another one. `None` with a separate
/// runtime, which reaches only its own loopback.
pub(super) fn reserve(loaded: &mut Loaded) -> io::Result<Option<Reserved>> {
    let config = &mut loaded.config;
    if config.runtime.url.is_some() {
        return Ok(None);
    }
    let reserved = Reserved::new()?;
    // Credentials and policies of the user's own settings are for another GitHub.
    config.github = Github {
        api_url: reserved.api_url(),
        author_name: "LumiLink demo".into(),
        author_email: "demo@lumilink.invalid".into(),
        ..Github::default()
    };
    config.workspaces.git_hosts.push(reserved.host().to_owned());
    Ok(Some(reserved))
}

/// Serves the GitHub of the tour.
///
/// # Errors
/// As [`Reserved::serve`].
pub(super) async fn serve(reserved: Reserved, loaded: &Loaded) -> io::Result<LocalGithub> {
    let environment: BTreeMap<_, _> = loaded
        .base_environment
        .iter()
        .map(|(name, value)| (name.clone(), OsString::from(value.expose_secret())))
        .collect();
    reserved.serve(&loaded.data_dir.join(FOLDER), Git::new(environment)).await
}

/// Shows what a turn would deliver, delivers it, and shows where it is.
pub(super) async fn show(client: &ApiClient, github: &LocalGithub) -> Result<(), AppError> {
    let request = NewSession {
        workspace_id: format!("github-{}", Uuid::new_v4().simple()),
        installation_id: Some("demo".into()),
        repository: Some(github.url()),
        github_token: Some(github.token().clone()),
        ..NewSession::default()
    };
    let opened = client.new_session(&request).await.map_err(failed("new session"))?;
    let tour = Tour { client: client.clone(), session: opened.session_id };

    let dry = tour.automated("write greeting.txt Hello", true).await?;
    let automation = delivered(&dry)?;
    check(automation.dry_run, "the dry run was no dry run")?;
    check(github.open_items() == 0, "the dry run opened something")?;
    say("   nothing was pushed and nothing was opened: it was a dry run\n");

    let result = tour.automated("write farewell.txt Goodbye", false).await?;
    let automation = delivered(&result)?;
    let (Some(branch), Some(commit), Some(pull)) = (&automation.branch, &automation.commit, &automation.pull_request)
    else {
        return Err(AppError::Demo("the automation has no branch, commit or pull request".into()));
    };
    check(github.head(branch).await.as_ref() == Some(&commit.sha), "the pushed branch does not have the commit")?;
    say(&format!(
        "   {REPOSITORY} is the bare repository {}\n   the branch {} is at {}, and its pull request at {}",
        github.folder().display(),
        clean_line(branch),
        clean_line(commit.sha.get(..12).unwrap_or_default()),
        clean_line(&pull.url),
    ));
    for line in github.page_of_pull_request(pull.number).lines().take(PAGE_LINES) {
        say(&format!("   | {}", clean_line(line)));
    }
    say("");
    client.close(&tour.session).await.map_err(failed("close"))
}

fn delivered(result: &ACPSessionResult) -> Result<&GithubAutomation, AppError> {
    let automation = result.github_automation.as_ref();
    let automation = automation.ok_or_else(|| AppError::Demo("the result has no githubAutomation".into()))?;
    let why = automation.error.as_ref().map(|error| error.message.as_str()).or(automation.transcript_note.as_deref());
    let why = format!("the changes were not delivered: {}", clean_line(why.unwrap_or_default()));
    check(automation.status == AutomationStatus::Success, &why)?;
    Ok(automation)
}

impl Tour {
    /// Runs a turn whose changes are delivered, or would be in a dry run.
    async fn automated(&self, text: &str, is_dry: bool) -> Result<ACPSessionResult, AppError> {
        let automation = Some(AutomationRequest { mode: None, dry_run: is_dry });
        self.run(PromptRequest { automation, ..PromptRequest::text(&self.session, text) }, false).await
    }
}
