//! Steps without network: changes, commit and rescue.

use super::{Made, Step, failure};
use crate::domain::automation::step::Remedy;

pub(super) async fn changes(step: &mut Step<'_>) -> Made {
    step.log("");
    Err(failure("not-implemented", "not implemented", Remedy::Never))
}

pub(super) async fn commit(step: &mut Step<'_>) -> Made {
    changes(step).await
}

pub(super) async fn rescue(step: &mut Step<'_>) -> Made {
    changes(step).await
}
