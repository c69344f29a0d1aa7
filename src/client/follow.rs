//! One turn to its end, whatever becomes of the connection.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{
    ApiClient, ClientError,
    requests::PromptRequest,
    stream::{Happened, TurnEvent},
};

/// Events that wait for a slow terminal before the connection has to wait.
const WAITING_EVENTS: usize = 64;
/// How often a turn is asked after whose stream was lost.
const POLL_EVERY: Duration = Duration::from_millis(500);
/// How many polls in a row may fail before the turn is given up: the client itself tries each three
/// times, so this is about a minute.
const MAX_FAILED_POLLS: u32 = 40;
/// How often a turn is sent again, under its key, whose stream broke before the server took it.
const MAX_RESENDS: u32 = 3;

/// What a follower gives: events, the last of which is a result or problem, or an error as the last.
pub(crate) type Events = mpsc::Receiver<Result<TurnEvent, ClientError>>;

/// Sends a prompt and follows its turn in a task of its own. A stream that breaks is replaced: before the
/// server took the prompt by sending it again under the same key, afterwards by asking for the turn's
/// state until it ended. Dropping the receiver ends the task; the turn itself goes on in the server.
///
/// Has to be called within a tokio runtime.
pub(crate) fn follow(client: ApiClient, request: PromptRequest) -> Events {
    let (sender, receiver) = mpsc::channel(WAITING_EVENTS);
    tokio::spawn(async move {
        let mut follower = Follower { client, request, sender, prompt_id: None };
        if let Err(error) = follower.run().await {
            // Nobody listening is the other way to end.
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
            let broke = match self.stream().await {
                Ok(true) => return Ok(()),
                Ok(false) => None,
                Err(error @ (ClientError::Lost { .. } | ClientError::Stream(_))) => Some(error),
                Err(error) => return Err(error),
            };
            if let Some(prompt_id) = self.prompt_id.clone() {
                self.say("the stream was lost; the turn goes on, its result is asked for").await;
                return self.poll(&prompt_id).await;
            }
            resends += 1;
            if resends > MAX_RESENDS {
                let url = "the server".to_owned();
                return Err(broke.unwrap_or(ClientError::Lost { url, cause: "the stream ended at once".into() }));
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    /// Passes events on; `false` where the stream ended before the turn did.
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

    async fn say(&self, message: &str) {
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
