//! The service's own credential for GitHub: an App, whose tokens are minted for one repository each.

use secrecy::SecretString;

use crate::domain::{
    automation::{plan::Plan, skip::Credential, step::StepFailure},
    ids::InstallationId,
};

use super::lost_token;

/// The service's credential, if there is one. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Credentials {}

impl Credentials {
    /// The credential for a turn of this tenant without a token of its own.
    pub(super) fn of_tenant(&self, _: &InstallationId) -> Credential {
        Credential::Missing(None)
    }

    /// A token for the repository of a run.
    ///
    /// # Errors
    /// GitHub refuses, or does not answer.
    pub(super) async fn mint(&self, _: &InstallationId, _: &Plan) -> Result<SecretString, StepFailure> {
        Err(lost_token())
    }

    /// Forgets the token of the repository of a run, because GitHub refused it. False if there is none.
    pub(super) fn renew(&self, _: &Plan) -> bool {
        false
    }
}
