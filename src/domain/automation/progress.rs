//! The progress of a run as people see it: its steps so far, and why it was skipped.

use super::{
    saga::{FailedStep, Next, Saga, SagaStatus, Verdict},
    skip::{SkipDetail, SkipReason},
    step::StepName,
};
use crate::domain::{clock::Timestamp, words::words};

words! {
    /// State of a step in the newest attempt of a run.
    StepState {
        /// The step is next, or in progress.
        Started = "started",
        /// The step has made or found its object, in this attempt or an earlier one.
        Done = "done",
        Failed = "failed",
    }
}

/// A step of a run that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StepProgress<'a> {
    pub step: StepName,
    pub state: StepState,
    pub failed: Option<&'a FailedStep>,
}

impl Saga {
    /// The steps that have begun, in their order.
    pub(crate) fn steps(&self, status: SagaStatus) -> Vec<StepProgress<'_>> {
        let next = match self.next(Timestamp(i64::MAX)) {
            Next::Step(step) if status == SagaStatus::Running => Some(step),
            Next::Step(_) | Next::Wait(_) | Next::End(_) => None,
        };
        let progress = |step| {
            let failed = self.failures.iter().find(|failed| failed.step == step);
            let state = match failed {
                Some(_) => StepState::Failed,
                None if self.has_fact(step) => StepState::Done,
                None if next == Some(step) => StepState::Started,
                None => return None,
            };
            Some(StepProgress { step, state, failed })
        };
        StepName::ALL.into_iter().filter_map(progress).collect()
    }

    fn has_fact(&self, step: StepName) -> bool {
        let facts = &self.facts;
        match step {
            StepName::Changes => facts.changes.is_some(),
            StepName::Preflight => facts.preflight.is_some(),
            StepName::Issue => facts.issue.is_some(),
            StepName::Commit => facts.commit.is_some(),
            StepName::Push => facts.push.is_some(),
            StepName::PullRequest => facts.pull_request.is_some(),
            StepName::Comment => facts.comment_url.is_some(),
            StepName::Rescue => facts.rescue.is_some(),
        }
    }

    /// Why the newest attempt of a run was skipped; `None` while it runs, and after another end.
    pub(crate) fn skip(&self, status: SagaStatus) -> Option<(SkipReason, Option<SkipDetail>)> {
        match (self.next(Timestamp(i64::MAX)), status) {
            (_, SagaStatus::Running | SagaStatus::Success | SagaStatus::Superseded) => None,
            (Next::End(Verdict::Skipped(detail)), _) => Some((detail.reason(), Some(detail))),
            // The token of the turn was lost; it is the only skip without a detail.
            (_, SagaStatus::Skipped) => Some((SkipReason::MissingCredential, None)),
            (_, SagaStatus::Waiting | SagaStatus::Error) => None,
        }
    }

    /// True if the commit of a run is kept, because it could not be delivered.
    pub(crate) fn is_kept(&self) -> bool {
        self.facts.rescue.is_some() && self.facts.push.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::automation::{
        saga::tests::{NOW, fact_of, plan},
        step::{Remedy, StepFailure, StepOutcome, StepReport},
    };

    fn report(outcome: StepOutcome) -> StepReport {
        StepReport { outcome, logs: Vec::new(), rate_remaining: None }
    }

    fn saga(done: &[StepName]) -> Saga {
        let mut saga = Saga::new(plan(), NOW);
        for step in done {
            saga.apply(*step, report(StepOutcome::Done(fact_of(*step))), NOW);
        }
        saga
    }

    fn fail(saga: &mut Saga, step: StepName, skip: Option<SkipDetail>) {
        let failure =
            StepFailure { code: "code".into(), message: "why".into(), skip, remedy: Remedy::Never, retry_at: None };
        saga.apply(step, report(StepOutcome::Failed(failure)), NOW);
    }

    #[test]
    fn steps_are_those_that_have_begun() {
        let words = |saga: &Saga, status| {
            let steps = saga.steps(status).into_iter();
            steps.map(|it| format!("{} {}", it.step.as_str(), it.state.as_str())).collect::<Vec<_>>()
        };
        assert_eq!(words(&saga(&[]), SagaStatus::Running), ["changes started"]);
        let mut failed = saga(&[StepName::Changes, StepName::Preflight, StepName::Issue, StepName::Commit]);
        fail(&mut failed, StepName::Push, None);
        let begun = ["changes done", "preflight done", "issue done", "commit done", "push failed"];
        assert_eq!(words(&failed, SagaStatus::Running), [&begun[..], &["rescue started"]].concat());
        assert_eq!(words(&failed, SagaStatus::Error), begun);
    }

    #[test]
    fn skip_has_its_detail_and_a_lost_token_has_none() {
        let mut limited = saga(&[StepName::Changes]);
        fail(&mut limited, StepName::Preflight, Some(SkipDetail::PrimaryLimit));
        limited.failures.push(FailedStep { step: StepName::Rescue, ..limited.failures[0].clone() });
        let why = Some((SkipReason::RateLimited, Some(SkipDetail::PrimaryLimit)));
        assert_eq!((limited.skip(SagaStatus::Waiting), limited.skip(SagaStatus::Running)), (why, None));
        let mut lost = saga(&[StepName::Changes]);
        fail(&mut lost, StepName::Preflight, None);
        lost.failures.push(FailedStep { step: StepName::Rescue, ..lost.failures[0].clone() });
        assert_eq!(lost.skip(SagaStatus::Skipped), Some((SkipReason::MissingCredential, None)));
        assert_eq!(lost.skip(SagaStatus::Error), None);
    }

    #[test]
    fn removed_rescue_is_kept_again_by_a_later_attempt() {
        let mut saga = saga(&[StepName::Changes, StepName::Preflight, StepName::Issue, StepName::Commit]);
        fail(&mut saga, StepName::Push, None);
        saga.apply(StepName::Rescue, report(StepOutcome::Done(fact_of(StepName::Rescue))), NOW);
        assert!(saga.is_kept());
        saga.remove_rescue(NOW);
        assert_eq!((saga.is_kept(), saga.facts.rescue_removed), (false, Some(NOW)));
        saga.retry(NOW);
        saga.apply(StepName::Preflight, report(StepOutcome::Done(fact_of(StepName::Preflight))), NOW);
        fail(&mut saga, StepName::Push, None);
        assert_eq!(saga.next(NOW), Next::Step(StepName::Rescue));
        saga.apply(StepName::Rescue, report(StepOutcome::Done(fact_of(StepName::Rescue))), NOW);
        assert_eq!((saga.is_kept(), saga.facts.rescue_removed), (true, None));
    }
}
