//! The bare repository, served by git itself over smart HTTP.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use actix_web::{HttpRequest, HttpResponse, http::header};

use super::{MAX_BODY_BYTES, problem};
use crate::runtime::workspaces::git::{Call, Git, Input};

/// The default branch.
pub(super) const MAIN: &str = "main";
/// Time limit of one call; each takes milliseconds.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The first commit.
const FIRST_COMMIT: &[u8] = b"commit refs/heads/main\n\
    committer LumiLink demo <demo@lumilink.invalid> 1790000000 +0000\n\
    data 12\nFirst commitM 100644 inline README.md\n\
    data 49\n# Hello\n\nA repository of the LumiLink demo only.\n\n";

/// Text of the repository's `description`, by which an earlier demo is recognised.
const DESCRIPTION: &str = "A repository of the LumiLink demo. The next demo replaces it.\n";

/// Removes the repository of an earlier demo, and nothing else.
fn remove_earlier(folder: &Path) -> io::Result<()> {
    let parent = folder.parent().unwrap_or(folder);
    if parent.is_symlink() || folder.is_symlink() {
        return Err(io::Error::other(format!("{} is a link", parent.display())));
    }
    match std::fs::read_to_string(folder.join("description")) {
        Ok(text) if text == DESCRIPTION => std::fs::remove_dir_all(folder),
        _ if folder.exists() => Err(io::Error::other(format!("{} is not of a demo; move it away", folder.display()))),
        _ => Ok(()),
    }
}

/// A bare repository.
pub(super) struct BareRepository {
    folder: PathBuf,
    git: Git,
}

impl BareRepository {
    /// Makes a repository with one commit on [`MAIN`], in place of what is in `folder`.
    ///
    /// # Errors
    /// git is missing or fails, or the folder cannot be written.
    pub(super) async fn create(folder: PathBuf, git: Git) -> io::Result<Self> {
        remove_earlier(&folder)?;
        std::fs::create_dir_all(&folder)?;
        let repository = Self { folder, git };
        let branch = format!("--initial-branch={MAIN}");
        repository.run(&["init", "--quiet", "--bare", &branch, "."], Input::Nothing).await?;
        std::fs::write(repository.folder.join("description"), DESCRIPTION)?;
        repository.run(&["config", "http.receivepack", "true"], Input::Nothing).await?;
        repository.run(&["fast-import", "--quiet"], Input::Bytes(FIRST_COMMIT.to_vec())).await?;
        Ok(repository)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    async fn run(&self, args: &[&str], input: Input) -> io::Result<Vec<u8>> {
        let args = args.iter().map(OsString::from).collect();
        let call = Call { max_output: MAX_BODY_BYTES, input, ..Call::local(&self.folder, args, TIMEOUT) };
        let output = self.git.run(call).await.map_err(|failure| io::Error::other(failure.detail))?;
        Ok(output.bytes)
    }

    /// The commit of a branch.
    pub(super) async fn head(&self, branch: &str) -> Option<String> {
        let name = format!("refs/heads/{branch}^{{commit}}");
        let found =
            self.run(&["rev-parse", "--verify", "--quiet", "--end-of-options", &name], Input::Nothing).await.ok()?;
        Some(String::from_utf8(found).ok()?.trim().to_owned()).filter(|sha| !sha.is_empty())
    }

    /// The changes of a branch since its base, as text.
    pub(super) async fn diff(&self, base: &str, head: &str) -> String {
        let range = format!("refs/heads/{base}...refs/heads/{head}");
        let made =
            self.run(&["diff", "--no-color", "--no-ext-diff", "--end-of-options", &range], Input::Nothing).await;
        made.map_or_else(|cause| cause.to_string(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Answers git: `info/refs?service=…`, `git-upload-pack` and `git-receive-pack`.
    pub(super) async fn serve(&self, request: &HttpRequest, service: &str, body: Vec<u8>) -> HttpResponse {
        let is_list = service == "info";
        let named = if is_list { request.query_string().trim_start_matches("service=") } else { service };
        let Some(name) = named.strip_prefix("git-").filter(|name| matches!(*name, "upload-pack" | "receive-pack"))
        else {
            return problem(403, "Forbidden");
        };
        if request.headers().contains_key(header::CONTENT_ENCODING) {
            return problem(415, "Unsupported Media Type");
        }
        let list = if is_list { vec!["--advertise-refs"] } else { vec![] };
        let args = [name, "--stateless-rpc"].into_iter().chain(list).chain(["."]).map(OsString::from).collect();
        let version = request.headers().get("git-protocol").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let call = Call {
            env: vec![("GIT_PROTOCOL", version.into())],
            max_output: 4 * MAX_BODY_BYTES,
            input: if is_list { Input::Nothing } else { Input::Bytes(body) },
            ..Call::local(&self.folder, args, TIMEOUT)
        };
        // A refused push has its reason in the output.
        let Ok(finished) = self.git.execute(call).await else { return problem(500, "git failed") };
        let kind = if is_list { "advertisement" } else { "result" };
        let mut answer = Vec::new();
        if is_list {
            let line = format!("# service=git-{name}\n");
            answer.extend_from_slice(format!("{:04x}{line}0000", line.len() + 4).as_bytes());
        }
        answer.extend_from_slice(&finished.output.bytes);
        HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, format!("application/x-git-{name}-{kind}")))
            .insert_header((header::CACHE_CONTROL, "no-cache"))
            .body(answer)
    }
}
