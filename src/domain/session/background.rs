//! Work of an agent outside a prompt turn: how it is recognised, when it ends, and when a turn is quiet.
//!
//! Agents announce such work in their own ways, because the protocol has none: Claude Code and qwen-code name a task in
//! a tool call and begin a turn of their own when it ends, codex keeps the tool call open, and others say nothing.

use std::{collections::VecDeque, time::Duration};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::domain::{
    clock::Timestamp,
    turn::{transcript::MAX_TRACKED, update::UpdateView},
};

/// Announced tasks that are remembered, the newest ones. An agent that announces more is quiet too early.
const MAX_TASKS: usize = 64;

/// Turns that an agent may begin by itself between two prompts. Later output is kept without a turn, so that an agent
/// cannot fill the table of turns.
const MAX_WOKEN: u32 = 100;
/// More than any time after which a turn counts as quiet.
const LONG_AGO: Duration = Duration::from_secs(365 * 24 * 3600);

/// Time limits of work outside a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BackgroundLimits {
    /// `[turn] inactivity_timeout_s`: background work ends when its agent was silent for this time.
    pub silence: Duration,
    /// `[session] background_max_s`: background work ends at the latest this long after the turn.
    pub longest: Duration,
    /// `[turn] quiet_s`: silence after which a turn is quiet.
    pub quiet: Duration,
    /// `[turn] quiet_max_s`: the longest wait for a quiet turn.
    pub quiet_max: Duration,
}

/// A mark by which an agent announces its own work outside a prompt turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mark {
    /// A task continues after the tool call that began it. The agent will begin its later turn with an output if
    /// `speaks`, and with a mark otherwise.
    TaskBegan { id: String, speaks: bool },
    /// The agent began a turn of its own.
    TurnBegan,
    /// The agent ended a turn of its own.
    TurnEnded,
}

/// Reads the mark in an update, with the `_meta` beside it. The text is searched before it is parsed, because nearly no
/// update has a mark.
pub(crate) fn mark_of_update(view: &UpdateView, update: &RawValue, meta: Option<&RawValue>) -> Option<Mark> {
    let has = |text: &str| update.get().contains(text);
    match view.kind.as_str() {
        "tool_call" | "tool_call_update" => {
            let of_claude = has("backgroundTaskId").then(|| task_of_claude(update)).flatten();
            let of_qwen = || has("Background shell started").then(|| view.call_id.clone()).flatten();
            let of_claude = of_claude.map(|id| Mark::TaskBegan { id, speaks: true });
            of_claude.or_else(|| of_qwen().map(|id| Mark::TaskBegan { id, speaks: false }))
        }
        "usage_update" => {
            let origin =
                |meta: Option<&RawValue>| Some(serde_json::from_str::<Origin>(meta?.get()).ok()?.origin.kind);
            let beside = origin(meta).or_else(|| {
                let inside: WithMeta<'_> = serde_json::from_str(update.get()).ok()?;
                origin(inside.meta)
            });
            beside.is_some_and(|kind| kind == "task-notification").then_some(Mark::TurnEnded)
        }
        _ => None,
    }
}

/// Reads the mark in a notification that is not part of the protocol.
pub(crate) fn mark_of_notification(method: &str) -> Option<Mark> {
    match method {
        "_qwencode/start_turn" => Some(Mark::TurnBegan),
        "_qwencode/end_turn" => Some(Mark::TurnEnded),
        _ => None,
    }
}

#[derive(Deserialize)]
struct WithMeta<'a> {
    #[serde(borrow, rename = "_meta")]
    meta: Option<&'a RawValue>,
}

/// `_meta` of Claude Code's last update of a turn.
#[derive(Deserialize)]
struct Origin {
    #[serde(rename = "_claude/origin")]
    origin: OriginKind,
}

#[derive(Deserialize)]
struct OriginKind {
    kind: String,
}

/// `_meta.claudeCode.toolResponse.backgroundTaskId`.
fn task_of_claude(update: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Meta {
        claude_code: ClaudeCode,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ClaudeCode {
        tool_response: ToolResponse,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ToolResponse {
        background_task_id: String,
    }
    let update: WithMeta<'_> = serde_json::from_str(update.get()).ok()?;
    let meta: Meta = serde_json::from_str(update.meta?.get()).ok()?;
    Some(meta.claude_code.tool_response.background_task_id)
}

/// The agent's open work, during a turn and after it.
#[derive(Debug, Default)]
pub(crate) struct Background {
    /// Tool calls without a final status, the newest [`MAX_TRACKED`].
    calls: VecDeque<String>,
    /// Announced tasks that lack their later turn, and whether that begins with an output.
    tasks: VecDeque<(String, bool)>,
    /// Turns that the agent has begun by itself since the last prompt.
    woken: u32,
    /// The agent's last message.
    heard: Timestamp,
    /// The end of the last prompt turn, or the begin of the first work after the connection.
    since: Timestamp,
    /// True once a prompt turn of this connection has ended. Earlier output is a greeting.
    had_turn: bool,
    /// True once the work has ended by a limit; what is still open counts no more until the next prompt turn ends.
    is_over: bool,
}

impl Background {
    /// Begins with a new connection, whose agent has no open work.
    pub(crate) fn begin(&mut self, now: Timestamp) {
        *self = Self { heard: now, since: now, ..Self::default() };
    }

    /// Continues with an agent that worked before, whose open work is not known. Its next output begins a turn.
    pub(crate) fn resume(&mut self, in_background: bool, now: Timestamp) {
        *self = Self { heard: now.minus(LONG_AGO), since: now, had_turn: true, ..Self::default() };
        if in_background {
            self.tasks.push_back((String::new(), true));
            self.heard = now;
        }
    }

    /// Records a message of the agent.
    pub(crate) fn hear(&mut self, now: Timestamp) {
        self.heard = now;
    }

    /// Records what an update says about open work.
    pub(crate) fn on_update(&mut self, view: &UpdateView, mark: Option<&Mark>) {
        if let Some(call) = &view.call_id {
            match (view.call_ended, view.kind.as_str()) {
                (Some(true), _) => self.calls.retain(|open| open != call),
                (Some(false), _) | (None, "tool_call") if !self.calls.contains(call) => {
                    push_bounded(&mut self.calls, call.clone(), MAX_TRACKED);
                }
                _ => {}
            }
        }
        match mark {
            Some(Mark::TaskBegan { id, speaks }) if !self.tasks.iter().any(|(task, _)| task == id) => {
                push_bounded(&mut self.tasks, (id.clone(), *speaks), MAX_TASKS);
            }
            // No agent names its task in the turn that follows it.
            Some(Mark::TurnEnded) => drop(self.tasks.pop_front()),
            _ => {}
        }
    }

    /// Records the end of a prompt turn. A turn that did not complete leaves no open calls.
    pub(crate) fn turn_ended(&mut self, is_completed: bool, now: Timestamp) {
        if !is_completed {
            self.calls.clear();
        }
        (self.since, self.heard, self.is_over, self.had_turn, self.woken) = (now, now, false, true, 0);
    }

    /// True if the agent has open work that keeps its session from hibernating.
    pub(crate) fn is_open(&self) -> bool {
        !self.is_over && (!self.calls.is_empty() || !self.tasks.is_empty())
    }

    /// True once a limit has ended the background work.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// True if the agent will begin a turn with an output, and mark its end.
    pub(crate) fn expects_turn(&self) -> bool {
        self.tasks.iter().any(|(_, speaks)| *speaks)
    }

    /// Counts a turn that the agent begins by itself. False if it has begun too many since the last prompt.
    pub(crate) fn may_wake(&mut self) -> bool {
        self.woken = self.woken.saturating_add(1);
        self.woken <= MAX_WOKEN
    }

    /// True if an update outside a turn, which comes at `now`, begins a turn of the agent's own. Output that follows the
    /// last one at once is the rest of the turn that has ended.
    pub(crate) fn wakes(&self, view: &UpdateView, now: Timestamp, limits: BackgroundLimits) -> bool {
        let is_output =
            matches!(view.kind.as_str(), "agent_message_chunk" | "agent_thought_chunk" | "tool_call" | "plan");
        is_output && (self.expects_turn() || (self.had_turn && now.since(self.heard) >= limits.quiet))
    }

    /// Time at which silence ends a turn of the agent's own: a model may take long between two steps, a tool call longer.
    pub(crate) fn silent_at(&self, limits: BackgroundLimits) -> Timestamp {
        let longest = if self.calls.is_empty() { limits.quiet_max.min(limits.silence) } else { limits.silence };
        self.heard.plus(longest)
    }

    /// Time at which a limit ends the background work: silence, or its longest duration.
    pub(crate) fn ends_at(&self, limits: BackgroundLimits) -> Timestamp {
        self.heard.plus(limits.silence).min(self.since.plus(limits.longest))
    }

    /// Ends the background work by a limit.
    pub(crate) fn end(&mut self) {
        self.is_over = true;
    }

    /// Describes the work that the end of the agent cuts off; `None` if there is none. Open calls that a limit has ended
    /// are left out, because some agents never end their calls.
    pub(crate) fn unfinished(&self) -> Option<String> {
        let calls = if self.is_over { 0 } else { self.calls.len() };
        let count = |n: usize, what: &str| (n > 0).then(|| format!("{n} {what}{}", if n == 1 { "" } else { "s" }));
        let parts = [count(self.tasks.len(), "background task"), count(calls, "open tool call")];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| parts.join(" and "))
    }

    /// The activity that others see.
    pub(crate) fn activity(&self, in_turn: bool) -> Activity {
        Activity { is_open: in_turn || self.is_open(), heard: self.heard }
    }
}

/// Text of the note that background work was cut off, for `reason`; `work` describes it, if it is known.
pub(crate) fn cut_off_note(reason: &str, work: Option<&str>) -> String {
    format!("background work of the agent was cut off ({}): {reason}", work.unwrap_or("not known in detail"))
}

fn push_bounded<T>(list: &mut VecDeque<T>, one: T, most: usize) {
    if list.len() >= most {
        list.pop_front();
    }
    list.push_back(one);
}

/// An agent's work outside a turn, as those see it who wait for a quiet turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Activity {
    /// True if a tool call or a turn of the agent's own is open, or an announced task lacks its later turn.
    pub is_open: bool,
    /// The agent's last message.
    pub heard: Timestamp,
}

/// The next step of a wait for a quiet turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuietStep {
    /// Decide again after this time, or when the activity changes.
    Wait(Duration),
    /// The agent is quiet: decide by the processes that it left.
    CheckProcesses,
    /// The wait has taken too long; the turn is not quiet.
    GiveUp,
}

/// Decides whether a turn, whose agent ended it at `ended`, is quiet.
pub(crate) fn quiet_step(
    activity: Activity,
    ended: Timestamp,
    now: Timestamp,
    limits: BackgroundLimits,
) -> QuietStep {
    let left = limits.quiet_max.saturating_sub(now.since(ended));
    if left.is_zero() {
        return QuietStep::GiveUp;
    }
    let silent_for = now.since(activity.heard.max(ended));
    if activity.is_open {
        QuietStep::Wait(left)
    } else if silent_for < limits.quiet {
        QuietStep::Wait(left.min(limits.quiet - silent_for))
    } else {
        QuietStep::CheckProcesses
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::turn::update::view_update;

    const LIMITS: BackgroundLimits = BackgroundLimits {
        silence: Duration::from_secs(600),
        longest: Duration::from_secs(1800),
        quiet: Duration::from_secs(1),
        quiet_max: Duration::from_secs(60),
    };

    fn at(seconds: u64) -> Timestamp {
        Timestamp(0).plus(Duration::from_secs(seconds))
    }

    fn raw(json: &Value) -> Box<RawValue> {
        serde_json::value::to_raw_value(json).unwrap()
    }

    fn view(json: &Value) -> UpdateView {
        view_update(&raw(json)).unwrap()
    }

    fn mark(json: &Value, meta: Option<Value>) -> Option<Mark> {
        mark_of_update(&view(json), &raw(json), meta.as_ref().map(raw).as_deref())
    }

    fn task(id: &str) -> Mark {
        Mark::TaskBegan { id: id.into(), speaks: true }
    }

    fn take(background: &mut Background, json: &Value) {
        background.on_update(&view(json), mark(json, None).as_ref());
    }

    #[test]
    fn tasks_of_known_agents_are_recognised() {
        let claude = json!({"sessionUpdate": "tool_call_update", "toolCallId": "c", "status": "completed",
            "_meta": {"claudeCode": {"toolName": "Bash", "toolResponse": {"backgroundTaskId": "b1"}}}});
        assert_eq!(mark(&claude, None), Some(Mark::TaskBegan { id: "b1".into(), speaks: true }));
        let text = json!({"type": "text", "text": "Background shell started with ID 3"});
        let qwen = json!({"sessionUpdate": "tool_call_update", "toolCallId": "q", "status": "completed",
            "content": [{"type": "content", "content": text}]});
        assert_eq!(mark(&qwen, None), Some(Mark::TaskBegan { id: "q".into(), speaks: false }));
        let said = json!({"sessionUpdate": "agent_message_chunk", "content": text});
        assert_eq!(mark(&said, None), None, "the agent only speaks of it");
    }

    #[test]
    fn end_of_a_turn_that_an_agent_began_is_recognised_by_its_mark() {
        let meta = |kind: &str| json!({"_claude/origin": {"kind": kind, "producer": "bash", "runId": "r"}});
        let mut usage = json!({"sessionUpdate": "usage_update", "used": 5, "size": 10});
        assert_eq!(mark(&usage, None), None);
        assert_eq!(mark(&usage, Some(meta("task-notification"))), Some(Mark::TurnEnded));
        assert_eq!(mark(&usage, Some(meta("human"))), None);
        usage["_meta"] = meta("task-notification");
        assert_eq!(mark(&usage, None), Some(Mark::TurnEnded));
        usage["_meta"] = json!({"_claude/origin": "unreadable"});
        assert_eq!(mark(&usage, None), None);
        assert_eq!(mark_of_notification("_qwencode/start_turn"), Some(Mark::TurnBegan));
        assert_eq!(mark_of_notification("_qwencode/end_turn"), Some(Mark::TurnEnded));
    }

    #[test]
    fn background_lasts_until_the_call_or_the_task_ends() {
        let mut background = Background::default();
        background.begin(at(0));
        assert!(!background.is_open());
        take(&mut background, &json!({"sessionUpdate": "tool_call", "toolCallId": "a"}));
        take(
            &mut background,
            &json!({"sessionUpdate": "tool_call_update", "toolCallId": "a", "status": "in_progress"}),
        );
        background.turn_ended(true, at(1));
        assert!(background.is_open());
        take(
            &mut background,
            &json!({"sessionUpdate": "tool_call_update", "toolCallId": "a", "status": "completed"}),
        );
        assert!(!background.is_open());
        background.on_update(&UpdateView::default(), Some(&task("t")));
        assert!(background.is_open() && background.expects_turn());
        background.on_update(&UpdateView::default(), Some(&Mark::TurnEnded));
        assert!(!background.is_open());
    }

    #[test]
    fn calls_that_an_agent_leaves_open_keep_no_session_for_ever() {
        let mut background = Background::default();
        background.begin(at(0));
        take(&mut background, &json!({"sessionUpdate": "tool_call", "toolCallId": "a", "status": "in_progress"}));
        background.turn_ended(true, at(10));
        assert_eq!(background.ends_at(LIMITS), at(610));
        background.hear(at(1700));
        assert_eq!(background.ends_at(LIMITS), at(1810), "the longest duration holds although the agent speaks");
        background.end();
        assert!(!background.is_open());
        assert_eq!(background.unfinished(), None);
        background.turn_ended(true, at(2000));
        assert!(background.is_open(), "the next turn begins anew");
        background.turn_ended(false, at(2001));
        assert!(!background.is_open(), "a cancelled turn leaves no open calls");
    }

    #[test]
    fn output_right_after_a_turn_belongs_to_it_and_later_output_is_a_turn_of_the_agent() {
        let said = view(&json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "x"}}));
        let usage = view(&json!({"sessionUpdate": "usage_update"}));
        let mut background = Background::default();
        background.begin(at(0));
        assert!(!background.wakes(&said, at(9), LIMITS), "a greeting is no turn");
        background.turn_ended(true, at(10));
        let soon = at(10).plus(Duration::from_millis(999));
        assert!(!background.wakes(&said, soon, LIMITS));
        assert!(background.wakes(&said, at(11), LIMITS));
        assert!(!background.wakes(&usage, at(11), LIMITS), "a state is no output");
        background.on_update(&UpdateView::default(), Some(&task("t")));
        assert!(background.wakes(&said, soon, LIMITS), "the agent has announced it");
        background.on_update(&UpdateView::default(), Some(&Mark::TurnEnded));
        let marked = Mark::TaskBegan { id: "q".into(), speaks: false };
        background.on_update(&UpdateView::default(), Some(&marked));
        assert!(background.is_open() && !background.wakes(&said, soon, LIMITS), "that agent marks the begin");
    }

    #[test]
    fn agent_that_wakes_endlessly_is_bounded_until_the_next_prompt() {
        let mut background = Background::default();
        assert_eq!((0..1000).filter(|_| background.may_wake()).count(), MAX_WOKEN as usize);
        background.turn_ended(true, at(1));
        assert!(background.may_wake());
    }

    #[test]
    fn unfinished_work_is_described_by_number_and_kind() {
        let mut background = Background::default();
        assert_eq!(background.unfinished(), None);
        background.on_update(&UpdateView::default(), Some(&task("t")));
        take(&mut background, &json!({"sessionUpdate": "tool_call", "toolCallId": "a"}));
        take(&mut background, &json!({"sessionUpdate": "tool_call", "toolCallId": "b"}));
        assert_eq!(background.unfinished().as_deref(), Some("1 background task and 2 open tool calls"));
        background.end();
        assert_eq!(background.unfinished().as_deref(), Some("1 background task"));
    }

    #[test]
    fn open_work_is_bounded_in_number() {
        let mut background = Background::default();
        for n in 0..1000 {
            take(&mut background, &json!({"sessionUpdate": "tool_call", "toolCallId": format!("c{n}")}));
            background.on_update(&UpdateView::default(), Some(&task(&format!("t{n}"))));
        }
        assert_eq!((background.calls.len(), background.tasks.len()), (MAX_TRACKED, MAX_TASKS));
    }

    #[test]
    fn turn_is_quiet_after_silence_without_open_work_and_is_not_awaited_for_ever() {
        let quiet = Activity { is_open: false, heard: at(10) };
        let open = Activity { is_open: true, heard: at(10) };
        let step = |activity, now| quiet_step(activity, at(10), now, LIMITS);
        let half = at(10).plus(Duration::from_millis(400));
        assert_eq!(step(quiet, half), QuietStep::Wait(Duration::from_millis(600)));
        assert_eq!(step(quiet, at(11)), QuietStep::CheckProcesses);
        assert_eq!(step(open, at(11)), QuietStep::Wait(Duration::from_secs(59)));
        assert_eq!(step(open, at(70)), QuietStep::GiveUp);
        assert_eq!(step(quiet, at(70)), QuietStep::GiveUp);
        let last = Activity { is_open: false, heard: at(69) };
        assert_eq!(quiet_step(last, at(10), at(69), LIMITS), QuietStep::Wait(Duration::from_secs(1)));
    }
}
