//! Calls of git against the host, and the failures that the host reports.

use std::{ffi::OsString, time::Duration};

use super::{failure, local::broken};
use crate::{
    domain::automation::{
        rejection,
        step::{Remedy, StepFailure},
    },
    runtime::workspaces::{
        git::Finished,
        proxy::{Proxy, ProxyFailure},
        repositories::BareRepository,
    },
};

/// Runs git against the host.
///
/// # Errors
/// The failure of the host, or of git.
pub(super) async fn over(
    repository: &BareRepository,
    proxy: &Proxy,
    args: Vec<OsString>,
    timeout: Duration,
) -> Result<String, StepFailure> {
    // Of an earlier call.
    drop(proxy.take_failure());
    let finished = repository.remote(proxy, args, timeout).await.map_err(broken)?;
    let output = text_of(&finished);
    match finished.exit_code() {
        Some(0) => Ok(output),
        _ => Err(of_host(proxy).unwrap_or_else(|| {
            let last = output.trim().lines().last().unwrap_or_default();
            failure("git-failed", &format!("git: {last}"), Remedy::Later)
        })),
    }
}

pub(super) fn text_of(finished: &Finished) -> String {
    String::from_utf8_lossy(&finished.output.bytes).into_owned()
}

/// The failure of the host, if there was one.
pub(super) fn of_host(proxy: &Proxy) -> Option<StepFailure> {
    Some(match proxy.take_failure()? {
        ProxyFailure::Refused(answer) => {
            let failure = rejection::of_status(answer.status, &answer.text, answer.sso.as_deref());
            StepFailure { retry_at: answer.retry_at.filter(|_| failure.remedy == Remedy::Later), ..failure }
        }
        ProxyFailure::Lost(cause) => {
            failure("github-unavailable", &format!("GitHub could not be reached: {cause}"), Remedy::Later)
        }
    })
}
