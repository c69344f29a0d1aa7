//! Runs one turn on a terminal or in a script: prints it, asks for permissions, and cancels it on Ctrl-C.

use std::{
    io::{BufRead, IsTerminal, Write},
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use super::{
    ApiClient, ClientError,
    follow::{Events, follow},
    json_lines::{event_object, json_line},
    printer::{OfferedOption, Printer, permission_options},
    requests::{PermissionChoice, PromptRequest},
    stream::{Happened, TurnEvent},
};
use crate::contract::result::ResultStopReason;

/// Interval at which the timer is redrawn.
const TICK: Duration = Duration::from_millis(100);
const SPINNER: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];

#[derive(Debug, Clone, Copy)]
pub(crate) struct ConsoleOptions {
    /// Prints one JSON object per line and asks for no permission.
    pub json: bool,
    /// True to ask for permissions, if standard input is a terminal.
    pub ask: bool,
}

/// Runs one turn and prints it to standard output, with a timer on standard error if that is a terminal. Ctrl-C cancels
/// the turn; a second Ctrl-C stops waiting for its end. Returns whether the turn was completed.
///
/// # Errors
/// The turn could not be started or followed to its end.
pub(crate) async fn run_turn(
    client: &ApiClient,
    request: PromptRequest,
    options: ConsoleOptions,
) -> Result<bool, ClientError> {
    let ask = options.ask && !options.json && std::io::stdin().is_terminal();
    let mut console = Console {
        client: client.clone(),
        session_id: request.session_id.clone(),
        prompt_id: None,
        printer: Printer::new(std::io::stdout()),
        json: options.json,
        timer: Timer::new(!options.json && std::io::stderr().is_terminal()),
        questions: Vec::new(),
        keyboard: None,
        ask,
    };
    let interrupts = signal(SignalKind::interrupt())?;
    console.run(follow(client.clone(), request), interrupts).await
}

struct Console<W: Write> {
    client: ApiClient,
    session_id: String,
    prompt_id: Option<String>,
    printer: Printer<W>,
    json: bool,
    timer: Timer,
    questions: Vec<Question>,
    keyboard: Option<mpsc::Receiver<String>>,
    ask: bool,
}

/// A permission request waiting for the user.
struct Question {
    request_id: String,
    options: Vec<OfferedOption>,
}

impl<W: Write> Console<W> {
    async fn run(&mut self, mut events: Events, mut interrupts: Signal) -> Result<bool, ClientError> {
        let mut tick = tokio::time::interval(TICK);
        let mut cancelling = false;
        loop {
            tokio::select! {
                event = events.recv() => {
                    self.timer.hide();
                    let Some(event) = event else { return Err(ClientError::Interrupted) };
                    if let Some(completed) = self.show(&event?).await? {
                        return Ok(completed);
                    }
                }
                _ = interrupts.recv() => {
                    self.timer.hide();
                    if cancelling {
                        return Err(ClientError::Interrupted);
                    }
                    cancelling = true;
                    self.cancel(&mut interrupts).await?;
                }
                line = next_line(&mut self.keyboard), if !self.questions.is_empty() => {
                    self.answer(line.as_deref()).await?;
                }
                _ = tick.tick() => {
                    // The timer must not overwrite an unfinished line or a question.
                    if self.printer.at_line_start() && self.questions.is_empty() {
                        self.timer.show();
                    }
                }
            }
        }
    }

    /// Prints one event; returns whether the turn was completed after the last.
    async fn show(&mut self, event: &TurnEvent) -> Result<Option<bool>, ClientError> {
        if self.json {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{}", json_line(&event_object(event)?)?)?;
            out.flush()?;
        } else {
            self.printer.event(event)?;
        }
        match event {
            TurnEvent::Accepted(accepted) => self.prompt_id = Some(accepted.prompt_id.clone()),
            TurnEvent::Happened(happened) => self.note_question(happened)?,
            TurnEvent::Result(result) => return Ok(Some(result.stop_reason == ResultStopReason::Completed)),
            TurnEvent::Problem(_) => return Ok(Some(false)),
        }
        Ok(None)
    }

    fn note_question(&mut self, happened: &Happened) -> Result<(), ClientError> {
        let Some(request_id) = happened.update["requestId"].as_str().filter(|_| self.ask) else { return Ok(()) };
        match happened.kind.as_str() {
            "permission_request" => {
                let options = permission_options(&happened.update);
                self.questions.push(Question { request_id: request_id.to_owned(), options });
                self.keyboard.get_or_insert_with(read_keyboard);
                self.print_question()
            }
            "permission_resolved" => {
                self.questions.retain(|question| question.request_id != request_id);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn print_question(&mut self) -> Result<(), ClientError> {
        if let Some(question) = self.questions.first() {
            let line = format!("[permission] 1 to {} and Enter; Enter alone cancels:", question.options.len());
            self.printer.line(&line)?;
        }
        Ok(())
    }

    async fn answer(&mut self, line: Option<&str>) -> Result<(), ClientError> {
        let Some(question) = self.questions.first() else { return Ok(()) };
        let choice = match line.map(str::trim) {
            None | Some("") => PermissionChoice::Cancelled,
            Some(typed) => {
                let chosen = typed.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
                match chosen.and_then(|index| question.options.get(index)) {
                    Some(option) => PermissionChoice::Option(option.id.clone()),
                    None => return self.print_question(),
                }
            }
        };
        let question = self.questions.remove(0);
        match self.client.permission(&self.session_id, &question.request_id, &choice).await {
            // Another client was faster, or it timed out; the stream reports it.
            Ok(()) | Err(ClientError::Problem(_)) => {}
            Err(error) => self.printer.line(&format!("[permission] not answered: {error}"))?,
        }
        self.print_question()
    }

    async fn cancel(&mut self, interrupts: &mut Signal) -> Result<(), ClientError> {
        if !self.json {
            self.printer.line("[turn] cancelling; Ctrl-C again to stop waiting")?;
        }
        let prompt_id = self.prompt_id.clone();
        let cancelled = tokio::select! {
            cancelled = self.client.cancel(&self.session_id, prompt_id.as_deref()) => cancelled,
            _ = interrupts.recv() => return Err(ClientError::Interrupted),
        };
        match cancelled {
            Err(error) if !self.json => Ok(self.printer.line(&format!("[turn] not cancelled: {error}"))?),
            _ => Ok(()),
        }
    }
}

/// The next line of the keyboard; `None` at its end.
///
/// # Cancel safety
/// No line is lost.
async fn next_line(keyboard: &mut Option<mpsc::Receiver<String>>) -> Option<String> {
    match keyboard {
        Some(lines) => lines.recv().await,
        None => std::future::pending().await,
    }
}

/// Reads lines in a thread of its own, because a read of a terminal cannot be cancelled.
fn read_keyboard() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A timer that shows that the turn is running.
struct Timer {
    began: Instant,
    enabled: bool,
    shown: bool,
    turns: usize,
}

impl Timer {
    fn new(enabled: bool) -> Self {
        Self { began: Instant::now(), enabled, shown: false, turns: 0 }
    }

    // A failed write to the terminal must not end the turn.
    fn show(&mut self) {
        if self.enabled {
            self.turns = (self.turns + 1) % SPINNER.len();
            self.shown = true;
            let seconds = self.began.elapsed().as_secs_f32();
            let _ = write!(std::io::stderr(), "\r{} {seconds:.1} s ", SPINNER[self.turns]);
        }
    }

    fn hide(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\u{1b}[K");
        }
    }
}
