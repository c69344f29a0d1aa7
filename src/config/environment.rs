//! The environment of the process, as a value: read once, here and nowhere else.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use secrecy::SecretString;

use super::sections::Agent;

/// Prefix of variables that name settings.
pub(crate) const PREFIX: &str = "LUMILINK_";
/// Separates section and key in the name of a variable.
const SEPARATOR: &str = "__";
/// Variables that every agent inherits, beside `LC_*`: those a program needs to find its home, tools and language; none
/// is a secret by convention.
pub(crate) const ALWAYS_INHERITED: [&str; 9] =
    ["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER"];

/// Names and values of variables. Values may be secrets and are never printed.
#[derive(Clone, Default)]
pub(crate) struct Environment {
    variables: BTreeMap<String, String>,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self { variables: pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect() }
    }
}

/// The current folder of the process.
///
/// # Errors
/// The folder was removed or cannot be read.
pub(crate) fn current_folder() -> std::io::Result<PathBuf> {
    std::env::current_dir()
}

/// Path of the running program, which also starts the built-in demo agent.
///
/// # Errors
/// The system cannot resolve the path.
pub(crate) fn current_program() -> std::io::Result<PathBuf> {
    std::env::current_exe()
}

impl Environment {
    /// Reads the environment of this process, without variables that are not UTF-8: no setting and no agent can use them.
    #[expect(clippy::disallowed_methods, reason = "the only reader of the environment")]
    pub(crate) fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// The value of a variable; an empty value counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The variables that name a setting: (variable, `section.key` in parts, value). A variable with the prefix but
    /// without `__` is ignored: orchestrators make such names for every service (`LUMILINK_PORT_8080_TCP`).
    pub(super) fn settings(&self) -> impl Iterator<Item = (&str, Vec<String>, &str)> {
        self.variables.iter().filter_map(|(name, value)| {
            let path = name.strip_prefix(PREFIX)?;
            if !path.contains(SEPARATOR) {
                return None;
            }
            let mut parts: Vec<String> = Vec::new();
            for part in path.split(SEPARATOR) {
                // Parts below `env` are names of variables, whose case matters.
                let literal = parts.last().is_some_and(|last| last == "env");
                parts.push(if literal { part.to_owned() } else { part.to_ascii_lowercase() });
            }
            Some((name.as_str(), parts, value.as_str()))
        })
    }

    /// The complete environment of an agent: inherited variables, then those of its settings.
    pub(crate) fn of_agent(&self, agent: &Agent) -> BTreeMap<String, SecretString> {
        let inherited = self.variables.iter().filter(|(name, _)| {
            ALWAYS_INHERITED.contains(&name.as_str())
                || name.starts_with("LC_")
                || agent.inherit_env.iter().any(|wanted| wanted == *name)
        });
        let mut variables: BTreeMap<_, _> =
            inherited.map(|(name, value)| (name.clone(), SecretString::from(value.clone()))).collect();
        variables.extend(agent.env.iter().map(|(name, value)| (name.clone(), value.clone())));
        variables
    }
}

/// Makes a path absolute and resolves `.` and `..` lexically; the path need not exist.
pub(super) fn absolute(path: &Path, current: &Path) -> PathBuf {
    let mut whole = PathBuf::new();
    for part in current.join(path).components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                whole.pop();
            }
            other => whole.push(other),
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn an_agent_inherits_only_the_fixed_list_and_named_variables() {
        let environment: Environment =
            [("PATH", "/bin"), ("LC_ALL", "C"), ("SECRET", "s"), ("OPENAI_API_KEY", "k"), ("LUMILINK_X", "x")]
                .into_iter()
                .collect();
        let agent = Agent {
            inherit_env: vec!["OPENAI_API_KEY".into(), "ABSENT".into()],
            env: [("PATH".to_owned(), SecretString::from("/opt"))].into(),
            ..Agent::default()
        };
        let variables = environment.of_agent(&agent);
        let inherited: Vec<_> =
            variables.iter().map(|(name, value)| (name.as_str(), value.expose_secret())).collect();
        assert_eq!(inherited, [("LC_ALL", "C"), ("OPENAI_API_KEY", "k"), ("PATH", "/opt")]);
        assert!(!format!("{environment:?}").contains("\"s\""));
    }

    #[test]
    fn only_names_with_a_section_are_settings() {
        let environment: Environment = [
            ("LUMILINK_PORT_8080_TCP", "tcp://10.0.0.1"),
            ("LUMILINK_SERVER__LISTEN", "a"),
            ("LUMILINK_AGENTS__GOOSE__ENV__Mixed_Case", "b"),
        ]
        .into_iter()
        .collect();
        let paths: Vec<_> = environment.settings().map(|(_, path, _)| path.join(".")).collect();
        assert_eq!(paths, ["agents.goose.env.Mixed_Case", "server.listen"]);
    }

    #[test]
    fn paths_become_absolute_without_touching_the_disk() {
        assert_eq!(absolute(Path::new("a/../b/./c"), Path::new("/x")), Path::new("/x/b/c"));
        assert_eq!(absolute(Path::new("/y"), Path::new("/x")), Path::new("/y"));
    }
}
