//! Work of the demo agent that continues after the turn that began it, in the ways of real agents.

use std::{
    io,
    process::{Command as Process, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Agent,
    script::{Command, commands},
    turn::Turn,
};

/// Work that continues until `due`.
pub(super) struct Task {
    due: Instant,
    session: String,
    end: End,
}

/// The end of a task.
enum End {
    /// Begins a turn by itself, with the marks of an agent.
    Turn { marks: Marks, script: String },
    /// Completes the tool call.
    Call(String),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Marks {
    Claude,
    Qwen,
    None,
}

impl Agent {
    /// Performs the commands that leave work behind.
    pub(super) fn continue_later(&mut self, command: &Command, turn: &mut Turn) -> io::Result<()> {
        let due = Instant::now() + Duration::from_millis(command.number(0, 100));
        let script = command.name_and_text().1.replace(" , ", " ; ");
        let session = turn.session.clone();
        let marks = match command.word.as_str() {
            "background" => Marks::Claude,
            "background-qwen" => Marks::Qwen,
            "unannounced" => Marks::None,
            "leave" => {
                let quiet = Stdio::null;
                let mut sleep = Process::new("sleep");
                sleep.arg(&command.rest).stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn()?;
                return Ok(());
            }
            _ => {
                let call = self.tool(turn, "execute", "A long command")?;
                self.tasks.push(Task { due, session, end: End::Call(call) });
                return Ok(());
            }
        };
        self.announce(turn, marks)?;
        self.tasks.push(Task { due, session, end: End::Turn { marks, script } });
        Ok(())
    }

    /// Completes the tool call that began a task, as the agent with these marks does.
    fn announce(&mut self, turn: &mut Turn, marks: Marks) -> io::Result<()> {
        if marks == Marks::None {
            return Ok(());
        }
        let call = self.tool(turn, "execute", "A background command")?;
        let mut update = json!({"sessionUpdate": "tool_call_update", "toolCallId": call, "status": "completed"});
        match marks {
            Marks::Claude => {
                let response = json!({"backgroundTaskId": call, "stdout": ""});
                update["_meta"] = json!({"claudeCode": {"toolName": "Bash", "toolResponse": response}});
            }
            _ => {
                let text = json!({"type": "text", "text": format!("Background shell started with ID {call}")});
                update["content"] = json!([{"type": "content", "content": text}]);
            }
        }
        self.update(&turn.session, &update)
    }

    /// The time until the next task is due.
    pub(super) fn next_task(&self) -> Option<Duration> {
        let due = self.tasks.iter().map(|task| task.due).min()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// Ends the tasks that are due. Those that were due during a turn end right after its answer.
    pub(super) fn run_due_tasks(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) = self.tasks.drain(..).partition(|task| task.due <= now);
        self.tasks = later;
        due.into_iter().try_for_each(|task| self.end_task(task))
    }

    fn end_task(&mut self, Task { session, end, .. }: Task) -> io::Result<()> {
        let (marks, script) = match end {
            End::Call(call) => {
                let update = json!({"sessionUpdate": "tool_call_update", "toolCallId": call, "status": "completed"});
                return self.update(&session, &update);
            }
            End::Turn { marks, script } => (marks, script),
        };
        if marks == Marks::Qwen {
            self.notify("_qwencode/start_turn", &json!({"sessionId": session, "source": "background_notification"}))?;
        }
        self.turns_of_its_own += 1;
        // The ids of its tool calls differ from those of the prompt turns.
        let mut turn = Turn::new(session.clone());
        turn.tools = self.turns_of_its_own * 1000;
        for command in commands(&script) {
            self.perform(&command, &mut turn)?;
        }
        match marks {
            Marks::Qwen => self.notify("_qwencode/end_turn", &json!({"sessionId": session, "reason": "end_turn"})),
            Marks::Claude => {
                let origin = json!({"kind": "task-notification", "producer": "bash", "runId": "run"});
                let meta = json!({"_claude/origin": origin});
                let cost = json!({"amount": 0.02, "currency": "USD"});
                let usage = json!({"sessionUpdate": "usage_update", "used": 1200, "size": 200_000, "cost": cost, "_meta": meta});
                self.update(&session, &usage)
            }
            Marks::None => Ok(()),
        }
    }

    fn notify(&mut self, method: &str, params: &Value) -> io::Result<()> {
        self.lines.write(&json!({"jsonrpc": "2.0", "method": method, "params": params}))
    }

    /// Closes a conversation, with its tasks. False if it is unknown.
    pub(super) fn close(&mut self, id: &str) -> bool {
        self.tasks.retain(|task| task.session != id);
        self.conversations.remove(id).is_some()
    }
}
