//! Answers the client requests of an agent that the runtime serves itself: files and terminals.

use std::{sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use super::{
    files,
    terminals::{MAX_OUTPUT_BYTES, TerminalSettings, Terminals},
};
use crate::{
    acp::{
        jsonrpc::{self, RpcError},
        schema::{
            CreateTerminalRequest, KillTerminalRequest, ReadTextFileResponse, ReleaseTerminalRequest,
            TerminalOutputRequest, WaitForTerminalExitRequest, client_method,
        },
    },
    process::stdio::{ClientRequest, Interceptor},
    runtime::workspaces::folders::SessionFolders,
    transport::pipe::{self, FrameSender, PipeLimits},
};

/// Largest number of client requests of one agent in progress. Most complete in milliseconds; `wait_for_exit` can
/// take as long as its command, and no known agent waits for this many. Further requests are answered with an error,
/// never queued.
const ANSWERS_AT_ONCE: usize = 64;
/// Requests that may wait to be started. A request can be as large as a frame, so only one waits; until it is started,
/// the agent's output is not read.
const REQUESTS_IN_QUEUE: usize = 1;
/// Memory of one agent's requests in progress, in bytes: their parameters, and their answers until the agent's queue
/// takes them. A request that needs more than all of it runs alone. While it is used up, the agent is not read: an agent
/// that takes no answers would otherwise fill the memory with the files that it asked for.
const BYTES_IN_PROGRESS: u32 = 8 * 1024 * 1024;
/// Memory of a request with a small answer, in bytes.
const SMALL_ANSWER_BYTES: usize = 4 * 1024;
/// Copies of a text that exist at once while it becomes an answer: the text, its JSON value, the serialised answer.
const COPIES_OF_ANSWER: usize = 3;
/// Copies of the parameters: as received, and parsed.
const COPIES_OF_PARAMS: usize = 2;
/// Time limit of a file request, so that a network file system that hangs is reported as such instead of looking like
/// a silent agent.
const FILE_TIMEOUT: Duration = Duration::from_secs(60);

/// Selects the client requests of an agent that the runtime answers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServedRequests {
    /// True if `fs/*` is served.
    pub fs: bool,
    /// True if `terminal/*` is served.
    pub terminal: bool,
}

impl ServedRequests {
    /// Returns ACP `clientCapabilities.fs`.
    pub(crate) fn fs_capability(self) -> serde_json::Value {
        json!({"readTextFile": self.fs, "writeTextFile": self.fs})
    }

    /// Returns ACP `clientCapabilities` for these requests alone.
    pub(crate) fn capabilities(self) -> serde_json::Value {
        json!({"fs": self.fs_capability(), "terminal": self.terminal})
    }
}

/// Limits and permissions of the client requests of one agent.
#[derive(Clone)]
pub(crate) struct ClientRequestSettings {
    /// Requests that are served; the others are answered with -32601 (method not found).
    pub serves: ServedRequests,
    pub terminals: TerminalSettings,
    /// Largest text that one `fs/read_text_file` returns, in bytes.
    pub file_bytes: usize,
}

/// Starts a task that answers the client requests of one agent. The task ends with the agent's connection, and then
/// kills the commands that it started.
pub(crate) fn open(settings: ClientRequestSettings, folders: SessionFolders, limits: PipeLimits) -> Interceptor {
    let (requests, queue) = mpsc::channel(REQUESTS_IN_QUEUE);
    let (answer, answers) = pipe::bounded(limits);
    let terminals = Terminals::new(settings.terminals.clone(), folders.clone());
    let client_requests = ClientRequests { settings, folders, terminals };
    tokio::spawn(Arc::new(client_requests).serve(queue, answer));
    Interceptor { takes: is_served_here, requests, answers }
}

fn is_served_here(method: &str) -> bool {
    method.starts_with("fs/") || method.starts_with("terminal/")
}

struct ClientRequests {
    settings: ClientRequestSettings,
    folders: SessionFolders,
    terminals: Terminals,
}

impl ClientRequests {
    async fn serve(self: Arc<Self>, mut queue: mpsc::Receiver<ClientRequest>, answer: FrameSender) {
        let mut running = JoinSet::new();
        let room = Arc::new(Semaphore::new(BYTES_IN_PROGRESS as usize));
        loop {
            let request = tokio::select! {
                request = queue.recv() => request,
                () = answer.reader_dropped() => None,
                // Finished requests are removed, so that only those in progress count towards the limit.
                Some(_) = running.join_next() => continue,
            };
            let Some(request) = request else { break };
            // Refused and not queued, so that the agent can react.
            if running.len() >= ANSWERS_AT_ONCE {
                let refused = RpcError::new(jsonrpc::INTERNAL_ERROR, "too many requests are in progress");
                if answer.send(jsonrpc::response(&request.id, Err::<(), _>(&refused))).await.is_err() {
                    break;
                }
                continue;
            }
            let reserved = tokio::select! {
                reserved = room.clone().acquire_many_owned(self.memory_of(&request)) => reserved,
                () = answer.reader_dropped() => break,
            };
            let client_requests = self.clone();
            let answer = answer.clone();
            running.spawn(async move {
                let _reserved = reserved;
                let id = request.id.clone();
                let result = client_requests.answer(request).await;
                let text = jsonrpc::response(&id, result.as_ref());
                // Freed before the wait for the agent's queue, which can be long.
                drop(result);
                // Fails only if the agent's connection is closed, and then nobody needs the answer.
                let _ = answer.send(text).await;
            });
        }
        // Aborting the requests drops their clones of `self`; the last clone ends every command of the agent.
        running.shutdown().await;
    }

    /// Returns the most memory that a request and its answer take, in bytes, up to [`BYTES_IN_PROGRESS`].
    fn memory_of(&self, request: &ClientRequest) -> u32 {
        let answer = match request.method.as_str() {
            client_method::FS_READ_TEXT_FILE => COPIES_OF_ANSWER * self.settings.file_bytes,
            client_method::TERMINAL_OUTPUT => COPIES_OF_ANSWER * MAX_OUTPUT_BYTES,
            _ => SMALL_ANSWER_BYTES,
        };
        let bytes = answer + COPIES_OF_PARAMS * request.params.get().len();
        u32::try_from(bytes).unwrap_or(BYTES_IN_PROGRESS).min(BYTES_IN_PROGRESS)
    }

    async fn answer(self: Arc<Self>, request: ClientRequest) -> Result<serde_json::Value, RpcError> {
        let serves = self.settings.serves;
        let method = request.method.as_str();
        let open = if method.starts_with("fs/") { serves.fs } else { serves.terminal };
        if !open {
            return Err(no_such_method(method));
        }
        match method {
            client_method::FS_READ_TEXT_FILE => {
                let asked = read_params(&request)?;
                let content = self
                    .on_files(move |client_requests| {
                        let settings = &client_requests.settings;
                        files::read(&client_requests.folders, &asked, settings.file_bytes, settings.terminals.run_as)
                    })
                    .await?;
                write_result(&ReadTextFileResponse::new(content))
            }
            client_method::FS_WRITE_TEXT_FILE => {
                let asked = read_params(&request)?;
                self.on_files(move |client_requests| {
                    files::write(&client_requests.folders, &asked, client_requests.settings.terminals.run_as)
                })
                .await?;
                Ok(json!({}))
            }
            client_method::TERMINAL_CREATE => {
                let asked: CreateTerminalRequest = read_params(&request)?;
                Ok(json!({"terminalId": self.terminals.create(asked).await?}))
            }
            client_method::TERMINAL_OUTPUT => {
                let asked: TerminalOutputRequest = read_params(&request)?;
                write_result(&self.terminals.output(&asked.terminal_id.to_string())?)
            }
            client_method::TERMINAL_WAIT_FOR_EXIT => {
                let asked: WaitForTerminalExitRequest = read_params(&request)?;
                write_result(&self.terminals.wait_for_exit(&asked.terminal_id.to_string()).await?)
            }
            client_method::TERMINAL_KILL => {
                let asked: KillTerminalRequest = read_params(&request)?;
                self.terminals.kill(&asked.terminal_id.to_string()).map(|()| json!({}))
            }
            client_method::TERMINAL_RELEASE => {
                let asked: ReleaseTerminalRequest = read_params(&request)?;
                self.terminals.release(&asked.terminal_id.to_string()).map(|()| json!({}))
            }
            _ => Err(no_such_method(method)),
        }
    }

    /// Runs file work on a blocking thread, within [`FILE_TIMEOUT`]. Work that times out keeps its thread until the
    /// file system answers.
    async fn on_files<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, RpcError> + Send + 'static,
    ) -> Result<T, RpcError> {
        let client_requests = self.clone();
        let work = tokio::task::spawn_blocking(move || work(&client_requests));
        match tokio::time::timeout(FILE_TIMEOUT, work).await {
            Ok(Ok(result)) => result,
            Ok(Err(cause)) => Err(RpcError::new(jsonrpc::INTERNAL_ERROR, cause.to_string())),
            Err(_) => Err(RpcError::new(jsonrpc::INTERNAL_ERROR, "the file system did not answer in time")),
        }
    }
}

fn no_such_method(method: &str) -> RpcError {
    RpcError::new(jsonrpc::METHOD_NOT_FOUND, format!("`{method}` is not supported"))
}

fn read_params<T: DeserializeOwned>(request: &ClientRequest) -> Result<T, RpcError> {
    serde_json::from_str(request.params.get())
        .map_err(|cause| RpcError::new(jsonrpc::INVALID_PARAMS, format!("{}: {cause}", request.method)))
}

fn write_result(result: &impl Serialize) -> Result<serde_json::Value, RpcError> {
    serde_json::to_value(result).map_err(|cause| RpcError::new(jsonrpc::INTERNAL_ERROR, cause.to_string()))
}
