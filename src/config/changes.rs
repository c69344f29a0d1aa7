//! The difference between two loads of the configuration, by names of settings.

use std::collections::BTreeSet;

use secrecy::ExposeSecret;
use serde_json::Value;

use super::{layers::is_secret, load::Loaded};

/// The settings whose values differ, in alphabetical order. A default that was written out is no change.
pub(crate) fn changes(before: &Loaded, after: &Loaded) -> Vec<String> {
    let names: BTreeSet<&String> = before.given.keys().chain(after.given.keys()).collect();
    let given = |loaded: &Loaded, name: &str| loaded.given.get(name).map(|it| it.expose_secret().to_owned());
    // Secrets are hidden in this form, so that all of them are equal.
    let [old, new] = [before, after].map(|loaded| serde_json::to_value(&loaded.config).unwrap_or_default());
    let differs = |name: &&String| {
        given(before, name) != given(after, name)
            && (is_secret(name) || effective(&old, name) != effective(&new, name))
    };
    names.into_iter().filter(differs).cloned().collect()
}

fn effective<'a>(config: &'a Value, name: &str) -> Option<&'a Value> {
    name.split('.').try_fold(config, |value, part| value.get(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flag, Sources, load};

    fn loaded(flags: &[(&str, &str)]) -> Loaded {
        let flags = flags.iter().map(|(name, value)| Flag::new("--set", name, *value)).collect();
        load(&Sources { flags, current_folder: "/".into(), ..Sources::default() }).unwrap()
    }

    #[test]
    fn changes_name_settings_and_secrets_and_no_written_out_default() {
        let before = loaded(&[("server.token", "old-token"), ("turn.cancel_grace_s", "7"), ("agent.env.KEY", "old")]);
        let after = loaded(&[
            ("server.token", "new-token"),
            ("drain.timeout_s", "20"),
            ("github.blocked_repositories", "[\"a/b\"]"),
            ("agent.env.KEY", "new"),
        ]);
        let names = ["agent.env.KEY", "github.blocked_repositories", "server.token", "turn.cancel_grace_s"];
        assert_eq!(changes(&before, &after), names);
        assert_eq!(changes(&after, &after), [""; 0]);
        assert!(!format!("{after:?}").contains("new-token"));
    }
}
