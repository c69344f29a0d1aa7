//! The comment on the issue.

use super::{Api, clean, page, wrong_step};
use crate::{
    domain::automation::step::{StepFact, StepInput},
    github::comment_once,
    runtime::automation::Made,
};

/// Finds or writes the comment.
pub(super) async fn comment(api: &mut Api<'_>, input: &StepInput) -> Made {
    let StepInput::Comment { issue, marker, body } = input else { return Err(wrong_step()) };
    match comment_once(&mut api.client, &mut api.repository, *issue, marker, &clean(body)).await {
        Ok(comment) => Ok(StepFact::Comment { url: page(comment.html_url.as_deref()) }),
        Err(refusal) => Err(api.failure(&refusal)),
    }
}
