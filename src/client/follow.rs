//! Follows one turn to its end across broken connections.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{
    ApiClient, ClientError,
    requests::PromptRequest,
    stream::{Happened, TurnEvent},
};

/// Events queued for a slow terminal; the connection is not read while the queue is full.
const WAITING_EVENTS: usize = 64;
/// Interval at which a turn is polled after its stream was lost.
const POLL_EVERY: Duration = Duration::from_millis(500);
/// Consecutive failed polls after which the turn is given up: about a minute, because the client attempts each three
/// times.
const MAX_FAILED_POLLS: u32 = 40;
/// Times a prompt is sent again under its key if the stream broke before the server accepted it.
const MAX_RESENDS: u32 = 3;

/// The events of a turn; the last is a result, a problem, or an error.
pub(crate) type Events = mpsc::Receiver<Result<TurnEvent, ClientError>>;

/// Sends a prompt and follows its turn in a task of its own. If the stream breaks before the server accepted the prompt,
/// the prompt is sent again under the same key; afterwards the state of the turn is polled until it ends. Dropping the
/// receiver ends the task; the turn continues in the server.
///
/// # Panics
/// Outside a tokio runtime.
pub(crate) fn follow(client: ApiClient, request: PromptRequest) -> Events {
    let (sender, receiver) = mpsc::channel(WAITING_EVENTS);
    tokio::spawn(async move {
        let mut follower = Follower { client, request, sender, prompt_id: None };
        if let Err(error) = follower.run().await {
            // A closed channel means that the receiver was dropped.
            let _ = follower.sender.send(Err(error)).await;
        }
    });
    receiver
}

struct Follower {
    client: ApiClient,
    request: PromptRequest,
    sender: mpsc::Sender<Result<TurnEvent, ClientError>>,
    prompt_id: Option<String>,
}

impl Follower {
    async fn run(&mut self) -> Result<(), ClientError> {
        let mut resends = 0;
        loop {
            let error = match self.stream().await {
                Ok(true) => return Ok(()),
                Ok(false) => None,
                Err(error @ (ClientError::Lost { .. } | ClientError::Stream(_))) => Some(error),
                Err(error) => return Err(error),
            };
            if let Some(prompt_id) = self.prompt_id.clone() {
                self.note("the stream was lost; the turn continues, polling for its result").await;
                return self.poll(&prompt_id).await;
            }
            resends += 1;
            if resends > MAX_RESENDS {
                let url = "the server".to_owned();
                return Err(error.unwrap_or(ClientError::Lost { url, cause: "the stream ended at once".into() }));
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    /// Forwards events; `false` if the stream ended before the turn.
    async fn stream(&mut self) -> Result<bool, ClientError> {
        let mut stream = self.client.prompt_stream(&self.request).await?;
        loop {
            let event = tokio::select! {
                event = stream.next() => event?,
                () = self.sender.closed() => return Ok(true),
            };
            let Some(event) = event else { return Ok(false) };
            if let TurnEvent::Accepted(accepted) = &event {
                self.prompt_id = Some(accepted.prompt_id.clone());
            }
            let last = event.is_last();
            if self.sender.send(Ok(event)).await.is_err() || last {
                return Ok(true);
            }
        }
    }

    async fn poll(&self, prompt_id: &str) -> Result<(), ClientError> {
        let mut failed = 0;
        while !self.sender.is_closed() {
            match self.client.prompt_state(prompt_id).await {
                Ok(status) => {
                    failed = 0;
                    if let Some(result) = status.result {
                        let _ = self.sender.send(Ok(TurnEvent::Result(Box::new(result)))).await;
                        return Ok(());
                    }
                    if !matches!(status.state.as_str(), "accepted" | "running") {
                        let cause =
                            format!("the turn is {} and has no result", super::clean::clean_line(&status.state));
                        return Err(ClientError::Lost { url: "the server".into(), cause });
                    }
                }
                Err(error) if error.is_transient() && failed < MAX_FAILED_POLLS => failed += 1,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
        Ok(())
    }

    async fn note(&self, message: &str) {
        let note = Happened {
            id: None,
            kind: "diagnostic".into(),
            session_id: self.request.session_id.clone(),
            prompt_id: self.prompt_id.clone(),
            update: serde_json::json!({"severity": "warn", "message": message}),
        };
        let _ = self.sender.send(Ok(TurnEvent::Happened(note))).await;
    }
}
