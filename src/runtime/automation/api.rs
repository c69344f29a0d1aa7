//! Steps that use GitHub's REST API.

use super::{Made, Step, failure};
use crate::domain::automation::step::Remedy;

pub(super) async fn preflight(step: &mut Step<'_>) -> Made {
    step.remote()?;
    Err(failure("not-implemented", "not implemented", Remedy::Never))
}

pub(super) async fn issue(step: &mut Step<'_>) -> Made {
    preflight(step).await
}

pub(super) async fn pull_request(step: &mut Step<'_>) -> Made {
    preflight(step).await
}

pub(super) async fn comment(step: &mut Step<'_>) -> Made {
    preflight(step).await
}
