//! The push.

use super::{Made, Step, failure};
use crate::domain::automation::step::Remedy;

pub(super) async fn push(step: &mut Step<'_>) -> Made {
    step.remote()?;
    Err(failure("not-implemented", "not implemented", Remedy::Never))
}
