//! The run of automation on the changes of one turn: which step follows, when, and how the run ends.
//!
//! A run is a sequence of facts. Each step adds one or fails, and [`Saga::next`] decides from what is there alone, so a
//! run continues after a crash of supervisor or runtime at the step whose fact is missing. The order leaves no orphan:
//! what can be refused is refused before anything exists at GitHub, and a commit that cannot be delivered is rescued.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    plan::{Plan, Previous, Protection},
    signing::SigningWay,
    skip::{SkipDetail, SkipReason},
    step::{
        Changes, CommitFact, IssueFact, Preflight, PullRequestFact, PullRequestState, PullTarget, PushFact, Remedy,
        RescueFact, StepFact, StepFailure, StepName, StepOutcome, StepReport,
    },
};
use crate::domain::{clock::Timestamp, text, words::words};

/// The most log lines of a run, as in the contract of the result.
pub(crate) const MAX_LOG_LINES: usize = 50;
/// Largest log of a run, in bytes of JSON: a result is a line of the log of the program, which has at most 32 KB.
const MAX_LOG_BYTES: usize = 16 * 1024;
/// Executions of one step in one attempt, while its failures may pass.
const MAX_TRIES: u32 = 3;
/// Pause before the second execution of a step; three times as long before the third.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// Pause before the next attempt of a run that failed for a reason that may pass, unless GitHub stated a time.
const NEXT_ATTEMPT: Duration = Duration::from_secs(300);
/// Pauses before the next attempts of a run that did not reach the runtime, which is away for about a minute when it is
/// replaced; then [`NEXT_ATTEMPT`]. These attempts do not count among [`MAX_ATTEMPTS`].
const OUTAGE_PAUSES: [Duration; 3] = [Duration::from_secs(10), Duration::from_secs(30), Duration::from_secs(60)];
/// Attempts that the service begins by itself. With [`NEXT_ATTEMPT`] between them they outlast most outages.
pub(crate) const MAX_ATTEMPTS: u32 = 6;

words! {
    /// Status of a run.
    SagaStatus {
        /// An attempt runs.
        Running = "running",
        /// The service begins another attempt later.
        Waiting = "waiting",
        /// Everything that was requested is at GitHub.
        Success = "success",
        /// The run was skipped for a reason that only a person can change.
        Skipped = "skipped",
        /// The run failed.
        Error = "error",
        /// A later run of the session delivers its changes, too.
        Superseded = "superseded",
    }
}

/// State of a run. Stored as JSON; members of newer versions are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Saga {
    pub plan: Plan,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    pub attempt_began: Timestamp,
    #[serde(default)]
    pub facts: Facts,
    /// Failures of this attempt, at most one for each step.
    #[serde(default)]
    pub failures: Vec<FailedStep>,
    /// Failed executions of the step that is next.
    #[serde(default)]
    pub tries: u32,
    /// The next step waits for this time.
    #[serde(default)]
    pub not_before: Option<Timestamp>,
    /// True once the name of the branch got a suffix, because another branch blocked it.
    #[serde(default)]
    pub has_other_name: bool,
    /// Attempts that ended because the runtime was not reached, and were repeated after a short pause.
    #[serde(default)]
    pub outages: u32,
    #[serde(default)]
    pub logs: Vec<String>,
}

/// The facts of all steps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Facts {
    pub changes: Option<Changes>,
    pub preflight: Option<Preflight>,
    pub issue: Option<IssueFact>,
    pub commit: Option<CommitFact>,
    /// True if the commit was made only to be kept, before GitHub named an identity: another attempt makes it again.
    pub is_provisional: bool,
    /// True once GitHub refused a push because its commit had no signature.
    pub demands_signature: bool,
    pub push: Option<PushFact>,
    pub pull_request: Option<PullRequestFact>,
    pub comment_url: Option<String>,
    pub rescue: Option<RescueFact>,
    /// Time at which the kept commit was removed because of its age.
    pub rescue_removed: Option<Timestamp>,
}

/// A step that failed for the rest of the attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FailedStep {
    pub step: StepName,
    pub failure: StepFailure,
}

/// The continuation of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    Step(StepName),
    /// The next step waits until this time.
    Wait(Timestamp),
    End(Verdict),
}

/// The end of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Everything that was requested is at GitHub, or nothing was to be delivered in a dry run.
    Success,
    Skipped(SkipDetail),
    /// At least one step failed; what the others made is in the facts.
    Failed(StepFailure),
}

/// Why no further step delivers anything.
enum Obstacle<'a> {
    Skip(SkipDetail),
    /// A failure of a step.
    Failure(&'a StepFailure),
    /// A failure that no step reported.
    Own(StepFailure),
}

impl Saga {
    pub(crate) fn new(plan: Plan, now: Timestamp) -> Self {
        let issue = plan.previous.as_ref().and_then(|previous| previous.issue.clone()).or(plan.earlier_issue.clone());
        Self {
            plan,
            attempt: 1,
            attempt_began: now,
            facts: Facts { issue, ..Facts::default() },
            failures: Vec::new(),
            tries: 0,
            not_before: None,
            has_other_name: false,
            outages: 0,
            logs: Vec::new(),
        }
    }

    /// Decides what follows.
    pub(crate) fn next(&self, now: Timestamp) -> Next {
        if let Some(at) = self.not_before.filter(|at| *at > now) {
            return Next::Wait(at);
        }
        match self.obstacle() {
            Some(obstacle) => match self.step_of_rescue() {
                Some(step) => Next::Step(step),
                None => Next::End(match obstacle {
                    Obstacle::Skip(detail) => Verdict::Skipped(detail),
                    Obstacle::Own(failure) => Verdict::Failed(failure),
                    Obstacle::Failure(failure) => match failure.skip {
                        Some(detail) => Verdict::Skipped(detail),
                        None => Verdict::Failed(failure.clone()),
                    },
                }),
            },
            None => match self.step_of_delivery() {
                Some(step) => Next::Step(step),
                None => Next::End(self.failures.first().map_or(Verdict::Success, |failed| match self.is_whole() {
                    true => Verdict::Success,
                    false => Verdict::Failed(failed.failure.clone()),
                })),
            },
        }
    }

    /// The next step towards GitHub; `None` if all are done or have failed.
    fn step_of_delivery(&self) -> Option<StepName> {
        let facts = &self.facts;
        let is_open = |step: StepName| !self.has_failed(step);
        if facts.changes.is_none() {
            return Some(StepName::Changes);
        }
        if facts.preflight.is_none() {
            return Some(StepName::Preflight);
        }
        if self.wants_issue() && facts.issue.is_none() && is_open(StepName::Issue) && !self.plan.is_dry_run {
            return Some(StepName::Issue);
        }
        if facts.commit.is_none() {
            return Some(StepName::Commit);
        }
        if self.plan.is_dry_run {
            return None;
        }
        if facts.push.is_none() {
            return Some(StepName::Push);
        }
        if !self.plan.wants_pull_request() {
            return None;
        }
        if facts.pull_request.is_none() {
            return is_open(StepName::PullRequest).then_some(StepName::PullRequest);
        }
        let wants_comment = facts.issue.is_some() && self.open_previous().is_none_or(|it| it.pull_request.is_none());
        (wants_comment && facts.comment_url.is_none() && is_open(StepName::Comment)).then_some(StepName::Comment)
    }

    /// The next step that keeps a commit which cannot be delivered; `None` if there is nothing to keep, or it is kept.
    fn step_of_rescue(&self) -> Option<StepName> {
        let facts = &self.facts;
        let is_lost = self.has_changes() && facts.push.is_none() && !self.is_rescued() && !self.plan.is_dry_run;
        let is_possible = !self.has_failed(StepName::Commit) && !self.has_failed(StepName::Rescue);
        (is_lost && is_possible).then_some(match facts.commit {
            None => StepName::Commit,
            Some(_) => StepName::Rescue,
        })
    }

    /// True if the commit of the run is kept. Another one with the same changes may have been kept before it was signed.
    fn is_rescued(&self) -> bool {
        let Facts { rescue: Some(rescue), commit, .. } = &self.facts else { return false };
        let is_same = |kept: &String| commit.as_ref().is_none_or(|commit| commit.sha == *kept);
        rescue.commit.as_ref().is_none_or(is_same)
    }

    /// The signer of the commit; `None` if it is not signed.
    pub(crate) fn signing(&self) -> Option<SigningWay> {
        let preflight = self.facts.preflight.as_ref()?;
        preflight.signing.or(preflight.could_sign.filter(|_| self.facts.demands_signature))
    }

    /// Drops a commit that was made without the signature that it needs, so that it is made again.
    fn drop_unsigned(&mut self) {
        let is_unsigned = self.facts.commit.as_ref().is_some_and(|commit| !commit.is_signed);
        if is_unsigned && self.facts.push.is_none() && self.signing() == Some(SigningWay::Key) {
            self.facts.commit = None;
        }
    }

    /// A commit that fails is the last obstacle: one that is only kept, because of another obstacle, may have no change.
    fn obstacle(&self) -> Option<Obstacle<'_>> {
        let of_commit = || self.failure_of(StepName::Commit).map(Obstacle::Failure);
        self.obstacle_of_delivery().or_else(of_commit)
    }

    fn failure_of(&self, step: StepName) -> Option<&StepFailure> {
        self.failures.iter().find(|failed| failed.step == step).map(|failed| &failed.failure)
    }

    fn obstacle_of_delivery(&self) -> Option<Obstacle<'_>> {
        let steps = [StepName::Changes, StepName::Preflight, StepName::Push];
        if let Some(failure) = steps.into_iter().find_map(|step| self.failure_of(step)) {
            return Some(Obstacle::Failure(failure));
        }
        // A rate limit and a refused token stop every other request too.
        let stops =
            |detail: SkipDetail| matches!(detail.reason(), SkipReason::RateLimited | SkipReason::MissingCredential);
        if let Some(failed) =
            self.failures.iter().find(|it| it.step.is_remote() && it.failure.skip.is_some_and(stops))
        {
            return Some(Obstacle::Failure(&failed.failure));
        }
        let changes = self.facts.changes.as_ref()?;
        if let Some(path) = changes.unsafe_paths.first() {
            let message = format!("{} must not be in a commit: {}, and prompt again", path.name(), path.why);
            let (code, message) = (UNSAFE_PATH.to_owned(), text::cut(&message, 300));
            return Some(Obstacle::Own(StepFailure {
                code,
                message,
                skip: None,
                remedy: Remedy::Never,
                retry_at: None,
            }));
        }
        if changes.total == 0 {
            let has_others = changes.ignored > 0 || changes.omitted_total > 0;
            let detail = if has_others { SkipDetail::NothingStaged } else { SkipDetail::NoChanges };
            return Some(Obstacle::Skip(detail));
        }
        if let Some(finding) = changes.findings.first() {
            return Some(Obstacle::Skip(finding.detail));
        }
        if self.plan.protection == Protection::Refuse && self.touches_protected() {
            return Some(Obstacle::Skip(SkipDetail::ProtectedPath));
        }
        let preflight = self.facts.preflight.as_ref()?;
        let is_closed = preflight.pull_request == Some(PullRequestState::Closed);
        is_closed.then_some(Obstacle::Skip(SkipDetail::ClosedByPerson))
    }

    fn has_failed(&self, step: StepName) -> bool {
        self.failures.iter().any(|failed| failed.step == step)
    }

    /// True if the changes differ from their parent.
    pub(crate) fn has_changes(&self) -> bool {
        self.facts.changes.as_ref().is_some_and(|changes| changes.total > 0)
    }

    /// True if the change touches a path that the plan protects.
    pub(crate) fn touches_protected(&self) -> bool {
        let changed = self.facts.changes.iter().flat_map(|changes| &changes.files);
        changed.into_iter().any(|file| self.plan.is_protected(&file.path))
    }

    /// True if an issue belongs to the run.
    pub(crate) fn wants_issue(&self) -> bool {
        let has_issues = self.facts.preflight.as_ref().is_none_or(|preflight| preflight.has_issues);
        // The pull request on which a session works, and that of another run, have their own purpose.
        let is_of_another = self.plan.pull_request.is_some() || self.twin().is_some();
        self.plan.wants_pull_request() && has_issues && (!is_of_another || self.plan.issue.is_some())
    }

    /// The open pull request on which the session works.
    pub(crate) fn target(&self) -> Option<&PullTarget> {
        self.facts.preflight.as_ref()?.target.as_ref()
    }

    /// The open pull request of another run with the same content, which this run adopts.
    pub(crate) fn twin(&self) -> Option<&PullTarget> {
        self.facts
            .preflight
            .as_ref()?
            .twin
            .as_ref()
            .filter(|_| self.target().is_none() && self.open_previous().is_none())
    }

    /// True if the session's pull request was merged, so that its changes begin anew from the base.
    pub(crate) fn begins_anew(&self) -> bool {
        let state = self.facts.preflight.as_ref().and_then(|preflight| preflight.pull_request);
        state == Some(PullRequestState::Merged)
    }

    /// The branch and pull request of an earlier turn of the session, unless that was merged meanwhile: then a new one begins.
    pub(crate) fn open_previous(&self) -> Option<&Previous> {
        self.plan.previous.as_ref().filter(|_| !self.begins_anew())
    }

    /// True if what was requested exists, whatever failed beside it: a missing comment is no failure of the run, and a
    /// repository without issues has none.
    fn is_whole(&self) -> bool {
        let issue_failed = self.failures.iter().find(|failed| failed.step == StepName::Issue);
        let has_issue = issue_failed.is_none_or(|failed| failed.failure.code == ISSUES_DISABLED);
        let has_request = !self.plan.wants_pull_request() || self.facts.pull_request.is_some();
        self.facts.push.is_some() && has_request && has_issue
    }

    /// Adds the end of one execution of a step.
    pub(crate) fn apply(&mut self, step: StepName, report: StepReport, now: Timestamp) {
        self.logs.extend(report.logs);
        self.not_before = None;
        match report.outcome {
            StepOutcome::Done(fact) => {
                self.tries = 0;
                self.add(fact);
            }
            StepOutcome::Failed(failure) => self.fail(step, failure, now),
        }
        bound(&mut self.logs);
    }

    fn add(&mut self, fact: StepFact) {
        let facts = &mut self.facts;
        match fact {
            StepFact::Changes(made) => facts.changes = Some(made),
            StepFact::Preflight(made) => {
                facts.preflight = Some(*made);
                self.drop_unsigned();
            }
            StepFact::Issue(made) => facts.issue = Some(made),
            StepFact::Commit(made) => {
                facts.is_provisional = facts.preflight.is_none();
                facts.commit = Some(made);
            }
            StepFact::Push(made) => facts.push = Some(made),
            StepFact::PullRequest(made) => facts.pull_request = Some(made),
            StepFact::Comment { url } => facts.comment_url = Some(url),
            StepFact::Rescue(made) => (facts.rescue, facts.rescue_removed) = (Some(made), None),
        }
    }

    fn fail(&mut self, step: StepName, failure: StepFailure, now: Timestamp) {
        self.logs.push(text::cut(&format!("{} failed ({}): {}", step.as_str(), failure.code, failure.message), 300));
        self.tries += 1;
        if step == StepName::Push && failure.code == BRANCH_NAME_TAKEN && !self.has_other_name {
            (self.has_other_name, self.tries) = (true, 0);
            return;
        }
        if step == StepName::Push && failure.skip == Some(SkipDetail::SigningRequired) && self.signing().is_none() {
            self.facts.demands_signature = true;
            if self.signing().is_some() {
                self.tries = 0;
                self.drop_unsigned();
                return;
            }
        }
        let may_pass = failure.remedy == Remedy::Later && failure.retry_at.is_none() && failure.skip.is_none();
        if may_pass && self.tries < MAX_TRIES {
            self.not_before = Some(now.plus(FIRST_PAUSE * 3_u32.pow(self.tries - 1)));
            return;
        }
        self.tries = 0;
        self.failures.push(FailedStep { step, failure });
    }

    /// The time of the next attempt that the service begins by itself; `None` if only a person can help, or enough were
    /// made. Call it with the verdict of [`Self::next`].
    pub(crate) fn next_attempt(&self, verdict: &Verdict, now: Timestamp) -> Option<Timestamp> {
        if *verdict == Verdict::Success {
            return None;
        }
        let later = self.failures.iter().map(|failed| &failed.failure).find(|it| it.remedy == Remedy::Later)?;
        if let Some(pause) = self.pause_of_outage() {
            return Some(now.plus(pause));
        }
        let is_last = self.attempt >= MAX_ATTEMPTS + self.outages;
        (!is_last).then(|| later.retry_at.map_or(now.plus(NEXT_ATTEMPT), |at| at.max(now)))
    }

    /// The short pause before the next attempt, if this one did not reach the runtime.
    fn pause_of_outage(&self) -> Option<Duration> {
        let is_outage = self.failures.iter().any(|failed| failed.failure.code == RUNTIME_UNAVAILABLE);
        let pause = OUTAGE_PAUSES.get(usize::try_from(self.outages).ok()?).copied();
        pause.filter(|_| is_outage)
    }

    /// Records that the kept commit was removed because of its age. A later attempt that fails keeps it again, if it is
    /// still in the workspace.
    pub(crate) fn remove_rescue(&mut self, now: Timestamp) {
        if self.facts.rescue.take().is_some() && self.facts.push.is_none() {
            self.facts.rescue_removed = Some(now);
        }
    }

    /// Begins another attempt. Facts are kept, except the preflight, whose answers may have changed.
    pub(crate) fn retry(&mut self, now: Timestamp) {
        self.outages += u32::from(self.pause_of_outage().is_some());
        self.attempt += 1;
        self.attempt_began = now;
        self.failures.clear();
        if self.facts.is_provisional && self.facts.push.is_none() {
            self.facts.commit = None;
        }
        (self.tries, self.not_before, self.facts.preflight) = (0, None, None);
        self.logs.clear();
    }
}

/// Drops the oldest lines of a log that is too long; the newest ones name the failure.
fn bound(logs: &mut Vec<String>) {
    let (mut bytes, mut kept) = (0, 0);
    for line in logs.iter().rev().take(MAX_LOG_LINES) {
        // As in JSON: two quotes, a comma, and an escape for some characters.
        bytes += serde_json::to_string(line).map_or(MAX_LOG_BYTES, |json| json.len() + 1);
        if bytes > MAX_LOG_BYTES {
            break;
        }
        kept += 1;
    }
    logs.drain(..logs.len() - kept);
}

/// Code of the failure of the step `issue` in a repository without issues.
pub(crate) const ISSUES_DISABLED: &str = "issues-disabled";
/// Code of the failure of a run whose changes have paths that must not be in a commit.
pub(crate) const UNSAFE_PATH: &str = "unsafe-path";
/// Code of the failure of a step if the runtime does not answer.
pub(crate) const RUNTIME_UNAVAILABLE: &str = "runtime-unavailable";
/// Code of the failure of the step `push` if another branch blocks the name.
pub(crate) const BRANCH_NAME_TAKEN: &str = "branch-name-taken";

#[cfg(test)]
pub(crate) mod tests;
