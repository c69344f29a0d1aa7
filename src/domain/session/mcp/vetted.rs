use serde_json::Value;

/// Members of a server that is a program, and of one at a URL.
const OF_PROGRAMS: [&str; 5] = ["type", "name", "command", "args", "env"];
const OF_URLS: [&str; 4] = ["type", "name", "url", "headers"];

/// Ends of the names of variables that hold a credential and select no code.
const CREDENTIALS: [&str; 4] = ["KEY", "TOKEN", "SECRET", "PASSWORD"];

/// True if a server that is admitted by its command, or by its URL, can run or be nothing else: it has no further member,
/// and its variables hold credentials alone. A variable such as `PATH` or `LD_PRELOAD` would select another program.
pub(crate) fn has_vetted_form(server: &Value) -> bool {
    let Some(members) = server.as_object() else { return false };
    let only = |known: &[&str]| members.keys().all(|name| known.contains(&name.as_str()));
    let is_credential = |pair: &Value| {
        let name = pair["name"].as_str().unwrap_or_default();
        CREDENTIALS.iter().any(|end| name.ends_with(end)) && !name.starts_with("LD_")
    };
    let variables = server["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    match server["type"].as_str().unwrap_or("stdio") {
        "stdio" => {
            let env = &server["env"];
            server["command"].is_string()
                && only(&OF_PROGRAMS)
                && (env.is_null() || env.is_array())
                && variables.iter().all(is_credential)
        }
        "http" | "sse" => server["url"].is_string() && only(&OF_URLS),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn member_or_variable_that_selects_other_code_is_no_vetted_form() {
        let local = |more: &str, value: Value| {
            let mut server = json!({"name": "a", "command": "npx", "args": ["-y", "x"], "env": []});
            server[more] = value;
            has_vetted_form(&server)
        };
        let env = |name: &str| json!([{"name": name, "value": "v"}]);
        assert!(local("env", env("GITHUB_TOKEN")) && local("env", env("API_KEY")) && local("type", json!("stdio")));
        for name in ["PATH", "LD_PRELOAD", "NODE_OPTIONS", "npm_config_registry", "LD_KEY", ""] {
            assert!(!local("env", env(name)), "{name}");
        }
        for (more, value) in [
            ("cwd", json!("/tmp")),
            ("Command", json!("sh")),
            ("transport", json!({})),
            ("command", json!(["sh"])),
            ("type", json!("acp")),
            ("env", json!({"PATH": "/tmp"})),
            ("url", json!("https://listed.example")),
        ] {
            assert!(!local(more, value.clone()), "{more} {value}");
        }
        let remote =
            json!({"type": "http", "name": "a", "url": "https://h", "headers": [{"name": "A", "value": "b"}]});
        assert!(has_vetted_form(&remote));
    }
}
