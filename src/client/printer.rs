//! Prints a turn for people: text, tool calls with their status, the plan, and the result.

use std::{collections::HashMap, io::Write};

use serde_json::Value;

use super::{
    clean::{clean, clean_line},
    error::detail_for_cli,
    stream::{Happened, TurnEvent},
};
use crate::{
    contract::{
        automation::{AutomationStatus, GithubAutomation},
        problem::Problem,
        result::{ACPSessionResult, ResultStopReason},
    },
    domain::{
        text,
        turn::{Severity, outcome::ErrorCode},
    },
};

/// The longest title printed, in characters: about a line.
const MAX_TITLE_CHARS: usize = 100;
/// Tool calls whose titles are remembered; further ones are printed without a title.
const MAX_TOOLS: usize = 1000;

/// The kind of the text that is being printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Nothing,
    Message,
    Thought,
}

/// Prints a turn. Text of the agent is cleaned for the terminal.
#[derive(Debug)]
pub(crate) struct Printer<W> {
    out: W,
    open: Open,
    at_line_start: bool,
    tools: HashMap<String, (String, String)>,
}

impl<W: Write> Printer<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, open: Open::Nothing, at_line_start: true, tools: HashMap::new() }
    }

    /// True if a line can be printed without splitting a text.
    pub(crate) fn at_line_start(&self) -> bool {
        self.at_line_start
    }

    /// Prints one event.
    ///
    /// # Errors
    /// The terminal or pipe cannot be written.
    pub(crate) fn event(&mut self, event: &TurnEvent) -> std::io::Result<()> {
        match event {
            TurnEvent::Accepted(accepted) => {
                let joined = if accepted.duplicate { " (joined)" } else { "" };
                self.line(&format!("[turn] {}{joined}", accepted.prompt_id))?;
            }
            TurnEvent::Happened(happened) => self.happened(happened)?,
            TurnEvent::Result(result) => {
                self.line(&result_line(result))?;
                let mut errors = result.diagnostics.iter().filter(|it| it.severity == Severity::Error);
                errors.try_for_each(|it| self.line(&it.message))?;
                if let Some(automation) = &result.github_automation {
                    self.line(&automation_line(automation))?;
                }
                let code = result.meta.as_ref().and_then(|meta| ErrorCode::from_name(meta.error_code.as_deref()?));
                code.map_or(Ok(()), |code| self.line(code.cli_advice()))?;
            }
            TurnEvent::Problem(problem) => self.line(&problem_line(problem))?,
        }
        self.out.flush()
    }

    /// Prints a line of its own.
    ///
    /// # Errors
    /// As [`Self::event`].
    pub(crate) fn line(&mut self, line: &str) -> std::io::Result<()> {
        self.end_text()?;
        writeln!(self.out, "{}", clean_line(line))
    }

    fn happened(&mut self, happened: &Happened) -> std::io::Result<()> {
        let update = &happened.update;
        match happened.kind.as_str() {
            "update" => self.update(update),
            "permission_request" => {
                let title =
                    title_of(&update["toolCall"]).unwrap_or_else(|| "the agent requests permission".to_owned());
                self.line(&format!("[permission] {title}"))?;
                for (index, option) in permission_options(update).iter().enumerate() {
                    self.line(&format!("  {}. {}", index + 1, option.name))?;
                }
                Ok(())
            }
            "permission_resolved" => {
                let by = ["optionId", "outcome", "reason"].iter().find_map(|name| update[*name].as_str());
                self.line(&format!("[permission] answered: {}", short(by.unwrap_or("cancelled"))))
            }
            "status" => {
                let state = ["state", "status", "connection"].iter().find_map(|name| update[*name].as_str());
                self.line(&format!("[session] {}", short(state.unwrap_or("changed"))))
            }
            "gap" => self.line("[gap] some updates were evicted; the transcript has them"),
            "diagnostic" => {
                let message = update["message"].as_str().unwrap_or_default();
                self.line(&format!("[note] {}", short(message)))
            }
            "automation" => match (update["state"].as_str(), update["step"].as_str()) {
                (Some("done"), Some(step)) => self.line(&format!("[github] {}", short(step))),
                (Some("failed"), Some(step)) => {
                    let code = update["code"].as_str().map(|code| format!(": {}", short(code))).unwrap_or_default();
                    self.line(&format!("[github] {} failed{code}", short(step)))
                }
                _ => Ok(()),
            },
            "settings" => settings_lines(update).iter().try_for_each(|line| self.line(line)),
            _ => Ok(()),
        }
    }

    fn update(&mut self, update: &Value) -> std::io::Result<()> {
        let kind = update["sessionUpdate"].as_str().unwrap_or_default();
        match kind {
            "agent_message_chunk" => self.text(Open::Message, &update["content"]),
            "agent_thought_chunk" => self.text(Open::Thought, &update["content"]),
            "tool_call" | "tool_call_update" => self.tool(update),
            "plan" => self.plan(&update["entries"]),
            "current_mode_update" => {
                self.line(&format!("[mode] {}", short(update["currentModeId"].as_str().unwrap_or_default())))
            }
            // Not about this turn, or repeated by the result.
            "user_message_chunk"
            | "available_commands_update"
            | "config_option_update"
            | "session_info_update"
            | "usage_update" => Ok(()),
            other => self.line(&format!("[{}]", short(other))),
        }
    }

    fn text(&mut self, part: Open, content: &Value) -> std::io::Result<()> {
        let text = match content["text"].as_str() {
            Some(text) => clean(text),
            None => format!("[{}]", short(content["type"].as_str().unwrap_or("content"))),
        };
        if text.is_empty() {
            return Ok(());
        }
        if self.open != part {
            self.end_text()?;
            self.open = part;
            if part == Open::Thought {
                write!(self.out, "[thinking] ")?;
            }
        }
        write!(self.out, "{text}")?;
        self.at_line_start = text.ends_with('\n');
        Ok(())
    }

    fn tool(&mut self, update: &Value) -> std::io::Result<()> {
        let id = update["toolCallId"].as_str().unwrap_or_default();
        let before = self.tools.get(id).cloned();
        let known = before.as_ref();
        let title = title_of(update).or_else(|| known.map(|(title, _)| title.clone()));
        let status = update["status"].as_str().map(short).or_else(|| known.map(|(_, status)| status.clone()));
        let now = (title.unwrap_or_else(|| "tool".to_owned()), status.unwrap_or_else(|| "pending".to_owned()));
        if before.as_ref() == Some(&now) {
            return Ok(()); // only the content changed
        }
        self.line(&format!("[tool] {} ({})", now.0, now.1))?;
        if before.is_some() || self.tools.len() < MAX_TOOLS {
            self.tools.insert(id.to_owned(), now);
        }
        Ok(())
    }

    fn plan(&mut self, entries: &Value) -> std::io::Result<()> {
        let mut lines = plan_lines(entries).into_iter();
        self.line(&format!("[plan] {}", lines.next().unwrap_or_default()))?;
        lines.try_for_each(|line| self.line(&line))
    }

    fn end_text(&mut self) -> std::io::Result<()> {
        if !self.at_line_start {
            writeln!(self.out)?;
        }
        self.at_line_start = true;
        self.open = Open::Nothing;
        Ok(())
    }
}

/// A plan as lines: how much of it is done, then one line for each step.
pub(crate) fn plan_lines(entries: &Value) -> Vec<String> {
    let entries = entries.as_array().map_or(&[][..], Vec::as_slice);
    let done = entries.iter().filter(|entry| entry["status"] == "completed").count();
    let steps = entries.iter().map(|entry| {
        let mark = match entry["status"].as_str() {
            Some("completed") => "x",
            Some("in_progress") => ">",
            _ => " ",
        };
        format!("  [{mark}] {}", short(entry["content"].as_str().unwrap_or_default()))
    });
    std::iter::once(format!("{done} of {} done", entries.len())).chain(steps).collect()
}

/// The event `settings` as lines: the mode, model and options as they are now, or what was set again in a fresh agent,
/// and what could not be.
fn settings_lines(update: &Value) -> Vec<String> {
    let texts = |name: &str| {
        let texts = update[name].as_array().into_iter().flatten();
        texts.filter_map(Value::as_str).map(short).collect::<Vec<_>>()
    };
    let (applied, failed) = (texts("applied"), texts("failed"));
    let mut lines = Vec::new();
    if !applied.is_empty() {
        lines.push(format!("[settings] set again: {}", applied.join(", ")));
    }
    lines.extend(failed.iter().map(|failed| format!("[settings] {failed}")));
    if let Some(reason) = update["modeUnavailable"].as_str() {
        lines.push(format!("[settings] {}", short(reason)));
    }
    if lines.is_empty() {
        let current = &update["current"];
        let named = [("mode", &current["modeId"]), ("model", &current["modelId"])].into_iter();
        let options = current["options"].as_object().into_iter().flatten();
        let values = named.chain(options.map(|(name, value)| (name.as_str(), value))).filter_map(|(name, value)| {
            let value = match value {
                Value::String(text) => short(text),
                Value::Bool(value) => value.to_string(),
                _ => return None,
            };
            Some(format!("{} {value}", short(name)))
        });
        lines.push(format!("[settings] {}", values.collect::<Vec<_>>().join(", ")));
    }
    lines
}

/// An option of a permission request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OfferedOption {
    /// `optionId` of the answer.
    pub id: String,
    /// Name, cleaned.
    pub name: String,
}

/// The options of a permission request.
pub(crate) fn permission_options(update: &Value) -> Vec<OfferedOption> {
    let options = update["options"].as_array().map_or(&[][..], Vec::as_slice);
    let read = options.iter().filter_map(|option| {
        let id = option["optionId"].as_str()?.to_owned();
        let name = short(option["name"].as_str().unwrap_or(&id));
        Some(OfferedOption { id, name })
    });
    read.collect()
}

fn title_of(tool_call: &Value) -> Option<String> {
    tool_call["title"].as_str().filter(|title| !title.is_empty()).map(short)
}

fn short(text: &str) -> String {
    text::cut(&clean_line(text), MAX_TITLE_CHARS)
}

/// The result of a turn on one line.
pub(crate) fn result_line(result: &ACPSessionResult) -> String {
    let mut line = match result.stop_reason {
        ResultStopReason::Completed => "completed",
        ResultStopReason::Cancelled => "cancelled",
        ResultStopReason::Error => "failed",
    }
    .to_owned();
    let Some(meta) = &result.meta else { return line };
    let reason = meta.acp_stop_reason.as_ref().or(meta.error_code.as_ref());
    if let Some(reason) = reason.filter(|reason| **reason != line) {
        line += &format!(" ({})", short(reason));
    }
    if meta.usage_known {
        line += &format!(", {} tokens in, {} out", result.usage.input_tokens, result.usage.output_tokens);
    }
    let timings = &meta.timings;
    if let Some(first) = timings.first_update_ms {
        line += &format!(", first update after {first:.1} ms");
    }
    let updates = if timings.updates == 1 { "update" } else { "updates" };
    line + &format!(", {} {updates} in {:.1} ms over {}", timings.updates, timings.total_ms, short(&meta.route))
}

/// The outcome of automation on one line.
fn automation_line(automation: &GithubAutomation) -> String {
    let mut parts = Vec::new();
    parts.extend(automation.branch.as_ref().map(|branch| format!("branch {branch}")));
    parts.extend(automation.commit.as_ref().map(|commit| format!("commit {}", text::cut_bytes(&commit.sha, 12))));
    parts.extend(automation.issue.as_ref().map(|issue| format!("issue {}", issue.url)));
    parts.extend(automation.pull_request.as_ref().map(|pull| format!("pull request {}", pull.url)));
    parts.extend(automation.rescue.as_ref().map(|rescue| format!("the commit is kept as {}", rescue.id)));
    parts.extend(automation.retry_at.map(|at| format!("tried again at {at}")));
    let status = match automation.status {
        AutomationStatus::Success if automation.dry_run => "would deliver".to_owned(),
        AutomationStatus::Success => "delivered".to_owned(),
        // The note says what is missing, and what to do.
        AutomationStatus::Skipped => automation.transcript_note.clone().unwrap_or_default(),
        AutomationStatus::Error => automation.error.as_ref().map(|error| error.message.clone()).unwrap_or_default(),
    };
    let parts = parts.join(", ");
    if parts.is_empty() { format!("[github] {status}") } else { format!("[github] {status}: {parts}") }
}

/// The problem of a failed turn on one line.
pub(crate) fn problem_line(problem: &Problem) -> String {
    let (detail, code, request) =
        (clean_line(&detail_for_cli(problem)), clean_line(&problem.code), clean_line(&problem.request_id));
    format!("failed: {detail} [{code}, request {request}]")
}

#[cfg(test)]
mod tests;
