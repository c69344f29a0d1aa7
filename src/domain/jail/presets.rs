//! Files that known agents and development tools write below `HOME`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// An agent whose needs are known. The tests run goose and Claude Code in the jail; the needs of the others were seen under
/// the same rules, with versions of 2026.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Preset {
    Claude,
    Codex,
    Gemini,
    Goose,
    Gptme,
    Kimi,
    OpenCode,
    Qwen,
    Vibe,
    /// No known agent: nothing below `HOME` but the caches of tools is writable.
    None,
}

/// Folder below which a state folder lies, with the variable that names it and its default below `HOME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    Home,
    Config,
    Data,
    State,
    Cache,
}

impl Base {
    fn variable(self) -> &'static str {
        match self {
            Self::Home => "HOME",
            Self::Config => "XDG_CONFIG_HOME",
            Self::Data => "XDG_DATA_HOME",
            Self::State => "XDG_STATE_HOME",
            Self::Cache => "XDG_CACHE_HOME",
        }
    }

    fn below_home(self) -> &'static str {
        match self {
            Self::Home => "",
            Self::Config => ".config",
            Self::Data => ".local/share",
            Self::State => ".local/state",
            Self::Cache => ".cache",
        }
    }
}

/// Something that an agent or a tool writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// A folder, below its base, with the variable that moves it elsewhere, if there is one.
    Folder { base: Base, below: &'static str, moved_by: Option<&'static str> },
    /// A file directly below `HOME`, and its text if it has to be made.
    File { name: &'static str, made_as: &'static str },
}

use Base::{Cache, Config, Data, Home};
use State::{File, Folder};

const fn folder(base: Base, below: &'static str) -> State {
    Folder { base, below, moved_by: None }
}

const fn movable(base: Base, below: &'static str, moved_by: &'static str) -> State {
    Folder { base, below, moved_by: Some(moved_by) }
}

/// A program of a preset, by the names of its commands and packages.
struct Known {
    preset: Preset,
    names: &'static [&'static str],
    states: &'static [State],
}

const KNOWN: [Known; 9] = [
    Known {
        preset: Preset::Claude,
        names: &["claude", "claude-agent-acp", "claude-code-acp", "claude-code"],
        states: &[
            movable(Home, ".claude", "CLAUDE_CONFIG_DIR"),
            File { name: ".claude.json", made_as: "{}" },
            folder(Base::State, "claude"),
            folder(Cache, "claude-cli-nodejs"),
        ],
    },
    Known { preset: Preset::Codex, names: &["codex", "codex-acp"], states: &[movable(Home, ".codex", "CODEX_HOME")] },
    Known { preset: Preset::Gemini, names: &["gemini", "gemini-cli"], states: &[folder(Home, ".gemini")] },
    Known {
        preset: Preset::Goose,
        names: &["goose", "goose-binary-linux-x64"],
        states: &[
            folder(Config, "goose"),
            folder(Data, "goose"),
            folder(Base::State, "goose"),
            folder(Cache, "goose"),
        ],
    },
    Known {
        preset: Preset::Gptme,
        names: &["gptme", "gptme-acp"],
        states: &[
            folder(Config, "gptme"),
            folder(Data, "gptme"),
            folder(Base::State, "gptme"),
            folder(Cache, "gptme"),
        ],
    },
    Known { preset: Preset::Kimi, names: &["kimi", "kimi-cli"], states: &[movable(Home, ".kimi", "KIMI_SHARE_DIR")] },
    Known {
        preset: Preset::OpenCode,
        names: &["opencode", "opencode-ai"],
        states: &[
            folder(Config, "opencode"),
            folder(Data, "opencode"),
            folder(Base::State, "opencode"),
            folder(Cache, "opencode"),
        ],
    },
    Known { preset: Preset::Qwen, names: &["qwen", "qwen-code"], states: &[folder(Home, ".qwen")] },
    Known { preset: Preset::Vibe, names: &["vibe", "vibe-acp"], states: &[movable(Home, ".vibe", "VIBE_HOME")] },
];

/// Caches of development tools, with the program that has them. Only caches: no folder from which a shell, an editor or
/// a git hook of the user runs programs (`~/.cache/pre-commit`), and no settings (`~/.npmrc`, `~/.cargo/config.toml`).
const TOOLS: [(&str, &[State]); 13] = [
    ("npm", &[movable(Home, ".npm", "npm_config_cache"), folder(Cache, "node-gyp")]),
    ("pnpm", &[folder(Cache, "pnpm"), folder(Data, "pnpm/store"), folder(Base::State, "pnpm")]),
    ("yarn", &[movable(Cache, "yarn", "YARN_CACHE_FOLDER"), folder(Home, ".yarn/berry")]),
    ("bun", &[folder(Home, ".bun/install/cache")]),
    ("deno", &[movable(Cache, "deno", "DENO_DIR")]),
    ("pip", &[movable(Cache, "pip", "PIP_CACHE_DIR")]),
    ("pip3", &[movable(Cache, "pip", "PIP_CACHE_DIR")]),
    ("uv", &[movable(Cache, "uv", "UV_CACHE_DIR")]),
    ("poetry", &[folder(Cache, "pypoetry")]),
    (
        "cargo",
        &[
            folder(Home, ".cargo/registry"),
            folder(Home, ".cargo/git"),
            File { name: ".cargo/.package-cache", made_as: "" },
            File { name: ".cargo/.package-cache-mutate", made_as: "" },
        ],
    ),
    ("go", &[movable(Cache, "go-build", "GOCACHE"), movable(Home, "go/pkg", "GOMODCACHE")]),
    ("mvn", &[folder(Home, ".m2/repository")]),
    ("gradle", &[folder(Home, ".gradle/caches"), folder(Home, ".gradle/daemon"), folder(Home, ".gradle/native")]),
];

impl Preset {
    /// The preset of a command: that of the first word whose path has the name of a known program or package, with or
    /// without its version (`node …/claude-agent-acp/dist/index.js`, `npx -y @google/gemini-cli@latest`).
    pub(crate) fn of_command(words: &[String]) -> Self {
        let of_part = |part: &str| {
            let name = part.split_once('@').map_or(part, |(name, _)| name);
            KNOWN.iter().find(|known| known.names.contains(&name)).map(|known| known.preset)
        };
        // A word may be a script (`sh -c '… goose acp'`). Of a path, the program and the packages count; a folder may have
        // any name.
        let of_word = |word: &String| {
            word.split_whitespace().find_map(|path| {
                let packages = path.split_once("node_modules/").map_or("", |(_, below)| below);
                path.rsplit('/').take(1).chain(packages.split('/')).find_map(of_part)
            })
        };
        words.iter().find_map(of_word).unwrap_or(Self::None)
    }

    /// Files and folders that the agent writes below `HOME`.
    pub(crate) fn states(self) -> &'static [State] {
        KNOWN.iter().find(|known| known.preset == self).map_or(&[], |known| known.states)
    }
}

/// The tools whose caches are writable: program, and what it writes.
pub(crate) fn tools() -> impl Iterator<Item = (&'static str, &'static [State])> {
    TOOLS.into_iter()
}

impl State {
    /// The absolute path in an environment. `None` without a `HOME`, or if a variable is no absolute path.
    pub(crate) fn path<'a>(self, variable: impl Fn(&str) -> Option<&'a str>) -> Option<PathBuf> {
        let absolute = |name: &str| variable(name).map(Path::new).filter(|path| path.is_absolute());
        match self {
            Self::File { name, .. } => Some(absolute("HOME")?.join(name)),
            Self::Folder { base, below, moved_by } => {
                if let Some(moved) = moved_by.and_then(absolute) {
                    return Some(moved.to_owned());
                }
                let default = || Some(absolute("HOME")?.join(base.below_home()));
                Some(absolute(base.variable()).map(Path::to_owned).or_else(default)?.join(below))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Preset {
        Preset::of_command(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn preset_is_recognised_by_program_package_and_script() {
        assert_eq!(of(&["/opt/x/bin/goose", "acp"]), Preset::Goose);
        assert_eq!(
            of(&["node", "/x/node_modules/@agentclientprotocol/claude-agent-acp/dist/index.js"]),
            Preset::Claude
        );
        assert_eq!(of(&["npx", "-y", "@google/gemini-cli@latest", "--acp"]), Preset::Gemini);
        assert_eq!(of(&["npx", "@zed-industries/codex-acp@0.9"]), Preset::Codex);
        assert_eq!(of(&["sh", "-c", "exec opencode acp"]), Preset::OpenCode);
        assert_eq!(of(&["/home/claude/run", "--mode", "x"]), Preset::None);
        assert_eq!(of(&[]), Preset::None);
    }

    #[test]
    fn paths_follow_the_variables_of_the_environment() {
        let environment =
            [("HOME", "/home/ann"), ("XDG_CONFIG_HOME", "/conf"), ("CODEX_HOME", "/codex"), ("GOCACHE", "off")];
        let variable = |name: &str| environment.iter().find(|it| it.0 == name).map(|it| it.1);
        let paths = |preset: Preset| -> Vec<_> {
            preset
                .states()
                .iter()
                .filter_map(|state| state.path(variable))
                .map(|path| path.display().to_string())
                .collect()
        };
        assert_eq!(paths(Preset::Codex), ["/codex"]);
        assert_eq!(
            paths(Preset::Goose),
            ["/conf/goose", "/home/ann/.local/share/goose", "/home/ann/.local/state/goose", "/home/ann/.cache/goose"]
        );
        assert_eq!(movable(Cache, "go-build", "GOCACHE").path(variable), Some("/home/ann/.cache/go-build".into()));
        assert_eq!(folder(Home, ".gemini").path(|_| None), None);
    }

    #[test]
    fn every_preset_has_the_name_of_its_program_in_settings() {
        for known in &KNOWN {
            assert_eq!(serde_json::to_value(known.preset).unwrap(), known.names[0]);
        }
    }
}
