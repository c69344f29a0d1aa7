//! Creation exactly once, whatever happens to requests and answers.

use std::time::Duration;

use super::client::{GithubClient, TRIES};
use crate::domain::automation::github_answer::Refusal;

/// The wait before the first look for what a lost answer may have reported, since lists of GitHub lag; it doubles.
const SETTLE: Duration = Duration::from_secs(1);
/// The most changes of a request after refusals.
const MAX_CHANGES: u32 = 8;

/// Something to create at GitHub, which is recognised when it exists.
pub(crate) trait Creation {
    type Made;

    /// Looks for what exists, by reading only.
    async fn find(&mut self, client: &mut GithubClient) -> Result<Option<Self::Made>, Refusal>;

    /// Sends one POST.
    async fn create(&mut self, client: &mut GithubClient) -> Result<Self::Made, Refusal>;

    /// Changes the request after a refusal, for instance leaves out labels; false if another try cannot succeed.
    async fn adapt(&mut self, client: &mut GithubClient, refusal: &Refusal) -> bool;
}

/// Finds or creates. Returns true beside what existed before, and false beside what a request of this call made.
///
/// After an answer that is lost, and after an error of the server, it waits and looks twice before it creates again. At
/// most 3 creations are sent, apart from those that [`Creation::adapt`] changes.
///
/// # Errors
/// The last [`Refusal`]. A retry is safe: it looks first.
///
/// # Cancel safety
/// As [`GithubClient::create`].
pub(crate) async fn create_once<C: Creation>(
    client: &mut GithubClient,
    creation: &mut C,
) -> Result<(C::Made, bool), Refusal> {
    let (mut tries, mut changes, mut is_uncertain) = (0, 0, false);
    loop {
        if let Some(made) = creation.find(client).await? {
            return Ok((made, !is_uncertain));
        }
        let refusal = match creation.create(client).await {
            Ok(made) => return Ok((made, false)),
            Err(refusal) => refusal,
        };
        if changes < MAX_CHANGES && creation.adapt(client, &refusal).await {
            changes += 1;
            continue;
        }
        tries += 1;
        if refusal.is_uncertain() {
            is_uncertain = true;
            tokio::time::sleep(SETTLE).await;
            if let Some(made) = creation.find(client).await? {
                return Ok((made, false));
            }
            if tries == TRIES {
                return Err(refusal);
            }
            tokio::time::sleep(2 * SETTLE).await;
            continue;
        }
        match refusal.limited_until() {
            Some(until) if tries < TRIES && client.wait_until(until).await => {}
            _ => return Err(refusal),
        }
    }
}
