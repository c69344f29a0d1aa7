//! The only file that imports the official schema crate.
//!
//! Lists only the types that this crate acts on; everything else travels as raw JSON. Specification:
//! <https://agentclientprotocol.com/protocol/v1/schema>.

#[cfg(test)]
pub(crate) use agent_client_protocol_schema::v1::{AGENT_METHOD_NAMES, CLIENT_METHOD_NAMES};
pub(crate) use agent_client_protocol_schema::v1::{
    AgentCapabilities, ContentBlock, CreateTerminalRequest, KillTerminalRequest, PermissionOptionKind,
    ReadTextFileRequest, ReadTextFileResponse, ReleaseTerminalRequest, StopReason, TerminalExitStatus,
    TerminalOutputRequest, TerminalOutputResponse, WaitForTerminalExitRequest, WriteTextFileRequest,
};

pub(crate) use super::request_id::RequestId;

/// The only protocol version that this crate offers and accepts. The protocol has integer versions since version 1.
pub(crate) const PROTOCOL_VERSION: u16 = 1;

/// Methods that the agent answers.
pub(crate) mod agent_method {
    /// Negotiates version and capabilities; the first message of every connection.
    pub(crate) const INITIALIZE: &str = "initialize";
    /// Signs in with one of the methods that the agent offers.
    pub(crate) const AUTHENTICATE: &str = "authenticate";
    /// Creates a conversation.
    pub(crate) const SESSION_NEW: &str = "session/new";
    /// Restores a conversation and replays it before the answer.
    pub(crate) const SESSION_LOAD: &str = "session/load";
    /// Restores a conversation without a replay.
    pub(crate) const SESSION_RESUME: &str = "session/resume";
    /// Removes a conversation from the agent's history.
    pub(crate) const SESSION_DELETE: &str = "session/delete";
    /// Cancels a conversation and releases its resources.
    pub(crate) const SESSION_CLOSE: &str = "session/close";
    /// Selects one of the modes that the agent offers.
    pub(crate) const SESSION_SET_MODE: &str = "session/set_mode";
    /// Sets one of the options that the agent offers.
    pub(crate) const SESSION_SET_CONFIG_OPTION: &str = "session/set_config_option";
    /// Selects one of the models that the agent offers; not part of the stable protocol.
    pub(crate) const SESSION_SET_MODEL: &str = "session/set_model";
    /// Runs one turn.
    pub(crate) const SESSION_PROMPT: &str = "session/prompt";
    /// Notification: cancels the running turn.
    pub(crate) const SESSION_CANCEL: &str = "session/cancel";
}

/// Notification of both sides: withdraws a request of the sender.
pub(crate) const CANCEL_REQUEST: &str = "$/cancel_request";

/// Methods that the client answers.
pub(crate) mod client_method {
    /// Notification: progress of a turn.
    pub(crate) const SESSION_UPDATE: &str = "session/update";
    /// Asks the user for permission before a tool call.
    pub(crate) const SESSION_REQUEST_PERMISSION: &str = "session/request_permission";
    /// Reads a file of the workspace.
    pub(crate) const FS_READ_TEXT_FILE: &str = "fs/read_text_file";
    /// Writes a file of the workspace.
    pub(crate) const FS_WRITE_TEXT_FILE: &str = "fs/write_text_file";
    /// Starts a command in the workspace.
    pub(crate) const TERMINAL_CREATE: &str = "terminal/create";
    /// Reads the output of a command.
    pub(crate) const TERMINAL_OUTPUT: &str = "terminal/output";
    /// Ends a command and discards its output.
    pub(crate) const TERMINAL_RELEASE: &str = "terminal/release";
    /// Waits for the exit of a command.
    pub(crate) const TERMINAL_WAIT_FOR_EXIT: &str = "terminal/wait_for_exit";
    /// Ends a command and keeps its output.
    pub(crate) const TERMINAL_KILL: &str = "terminal/kill";
}

/// True for the methods of the protocol that have an answer.
pub(crate) fn is_request(method: &str) -> bool {
    use {agent_method::*, client_method::*};
    matches!(
        method,
        INITIALIZE
            | AUTHENTICATE
            | SESSION_NEW
            | SESSION_LOAD
            | SESSION_RESUME
            | SESSION_CLOSE
            | SESSION_SET_MODE
            | SESSION_SET_CONFIG_OPTION
            | SESSION_PROMPT
            | SESSION_REQUEST_PERMISSION
            | FS_READ_TEXT_FILE
            | FS_WRITE_TEXT_FILE
            | TERMINAL_CREATE
            | TERMINAL_OUTPUT
            | TERMINAL_RELEASE
            | TERMINAL_WAIT_FOR_EXIT
            | TERMINAL_KILL
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn method_names_match_the_official_schema() {
        let agent = AGENT_METHOD_NAMES;
        assert_eq!(agent_method::INITIALIZE, agent.initialize);
        assert_eq!(agent_method::AUTHENTICATE, agent.authenticate);
        assert_eq!(agent_method::SESSION_NEW, agent.session_new);
        assert_eq!(agent_method::SESSION_LOAD, agent.session_load);
        assert_eq!(agent_method::SESSION_RESUME, agent.session_resume);
        assert_eq!(agent_method::SESSION_CLOSE, agent.session_close);
        assert_eq!(agent_method::SESSION_DELETE, agent.session_delete);
        assert_eq!(agent_method::SESSION_SET_MODE, agent.session_set_mode);
        assert_eq!(agent_method::SESSION_SET_CONFIG_OPTION, agent.session_set_config_option);
        assert_eq!(agent_method::SESSION_PROMPT, agent.session_prompt);
        assert_eq!(agent_method::SESSION_CANCEL, agent.session_cancel);
        let client = CLIENT_METHOD_NAMES;
        assert_eq!(client_method::SESSION_UPDATE, client.session_update);
        assert_eq!(client_method::SESSION_REQUEST_PERMISSION, client.session_request_permission);
        assert_eq!(client_method::FS_READ_TEXT_FILE, client.fs_read_text_file);
        assert_eq!(client_method::FS_WRITE_TEXT_FILE, client.fs_write_text_file);
        assert_eq!(client_method::TERMINAL_CREATE, client.terminal_create);
        assert_eq!(client_method::TERMINAL_OUTPUT, client.terminal_output);
        assert_eq!(client_method::TERMINAL_RELEASE, client.terminal_release);
        assert_eq!(client_method::TERMINAL_WAIT_FOR_EXIT, client.terminal_wait_for_exit);
        assert_eq!(client_method::TERMINAL_KILL, client.terminal_kill);
    }
}
