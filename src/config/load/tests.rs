use proptest::prelude::*;
use secrecy::ExposeSecret;

use super::*;
use crate::config::{
    render::render,
    sections::{Listener, LogFormat},
    sources::Flag,
};

fn sources(environment: &[(&str, &str)], flags: &[&str]) -> Sources {
    Sources {
        environment: environment.iter().copied().collect(),
        flags: flags.iter().map(|flag| Flag::parse_set(flag).unwrap()).collect(),
        current_folder: "/here".into(),
        listeners: vec![Listener::Server, Listener::Runtime],
        ..Sources::default()
    }
}

fn refused(environment: &[(&str, &str)], flags: &[&str]) -> String {
    load(&sources(environment, flags)).expect_err("refused").to_string()
}

#[test]
fn defaults_apply_without_sources_and_paths_are_absolute() {
    let loaded = load(&sources(&[], &[])).unwrap();
    assert_eq!(loaded.data_dir, Path::new("/here/.lumilink"));
    assert_eq!(loaded.config.workspaces.root.as_deref(), Some(Path::new("/here/.lumilink/workspaces")));
    assert_eq!(loaded.config.database.url.unwrap().expose_secret(), "sqlite:/here/.lumilink/lumilink.db");
    assert_eq!(loaded.agent_environments.keys().collect::<Vec<_>>(), [DEFAULT_AGENT]);
    assert!(loaded.origins.is_empty());
}

#[test]
fn flags_override_environment_overrides_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lumilink.toml");
    std::fs::write(&file, "[turn]\ncancel_grace_s = 1\ninactivity_timeout_s = 1\n[drain]\ntimeout_s = 1\n").unwrap();
    let mut sources = sources(
        &[("LUMILINK_TURN__CANCEL_GRACE_S", "2"), ("LUMILINK_DRAIN__TIMEOUT_S", "2")],
        &["drain.timeout_s=3"],
    );
    sources.file = Some(file.clone());
    let loaded = load(&sources).unwrap();
    let config = &loaded.config;
    assert_eq!((config.turn.inactivity_timeout_s, config.turn.cancel_grace_s, config.drain.timeout_s), (1, 2, 3));
    assert_eq!(loaded.origins["turn.inactivity_timeout_s"], Origin::File(file));
    assert_eq!(loaded.origins["turn.cancel_grace_s"], Origin::Environment("LUMILINK_TURN__CANCEL_GRACE_S".into()));
    assert_eq!(loaded.origins["drain.timeout_s"], Origin::Flag("--set".into()));
}

#[test]
fn text_is_parsed_by_the_type_of_its_setting() {
    let loaded = load(&sources(
        &[
            ("LUMILINK_SERVER__TOKEN", "12345"),
            ("LUMILINK_SERVER__LISTEN", "[::1]:0"),
            ("LUMILINK_AGENT__COMMAND", r#"["goose", "acp"]"#),
            ("LUMILINK_AGENT__ENV", r#"{"A": "1"}"#),
            ("LUMILINK_AGENT__ENV__Bb", "true"),
            ("LUMILINK_AGENT__FS", "false"),
            ("LUMILINK_AGENT__RUN_AS", "1000"),
            ("LUMILINK_AGENTS__CODEX__COMMAND", r#"["codex-acp"]"#),
            ("LUMILINK_LOG__FORMAT", "text"),
        ],
        &["agents.goose.env.X.Y=z", "permission.policy=ask"],
    ))
    .unwrap();
    let config = &loaded.config;
    assert_eq!(config.server.token.as_ref().unwrap().expose_secret(), "12345");
    assert_eq!(config.server.listen.to_string(), "[::1]:0");
    assert_eq!(config.agent.command, ["goose", "acp"]);
    assert_eq!(config.agent.env["A"].expose_secret(), "1");
    assert_eq!(config.agent.env["Bb"].expose_secret(), "true");
    assert!(!config.agent.fs);
    assert_eq!(config.agent.run_as.as_deref(), Some("1000"));
    assert_eq!(config.agents["codex"].command, ["codex-acp"]);
    assert_eq!(loaded.agent_environments["goose"]["X.Y"].expose_secret(), "z");
    assert_eq!(config.log.format, LogFormat::Text);
}

#[test]
fn secret_is_read_from_the_file_that_its_variable_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let write = |name: &str, bytes: &[u8]| std::fs::write(path(name), bytes).unwrap();
    write("token", b"{\"0123456789\"}\r\n");
    write("url", b"postgres://u:p@h/db");
    write("secret", b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n");
    write("hook", b"https://example.com/hook\n");
    let mut files = vec![
        ("LUMILINK_SERVER__TOKEN_FILE", path("token")),
        ("LUMILINK_RUNTIME__TOKEN_FILE", path("token")),
        ("LUMILINK_DATABASE__URL_FILE", path("url")),
        ("LUMILINK_WEBHOOK__URL_FILE", path("hook")),
        ("LUMILINK_WEBHOOK__SECRET_FILE", path("secret")),
        ("LUMILINK_WEBHOOK__PREVIOUS_SECRET_FILE", path("secret")),
        ("LUMILINK_AGENT__ENV__KEY_FILE", "/run/key".to_owned()),
    ];
    let pairs = |files: &[(&'static str, String)]| files.to_vec();
    let load_with = |files: &[(&'static str, String)]| {
        let environment = pairs(files).into_iter().collect();
        load(&Sources { environment, ..sources(&[], &[]) })
    };
    let loaded = load_with(&files).unwrap();
    let config = &loaded.config;
    let shown = |secret: &Option<SecretString>| secret.as_ref().unwrap().expose_secret().to_owned();
    assert_eq!(shown(&config.server.token), "{\"0123456789\"}");
    assert_eq!(shown(&config.runtime.token), "{\"0123456789\"}");
    assert_eq!(shown(&config.database.url), "postgres://u:p@h/db");
    assert_eq!(shown(&config.webhook.url), "https://example.com/hook");
    assert_eq!(shown(&config.webhook.secret), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    assert_eq!(shown(&config.webhook.previous_secret), shown(&config.webhook.secret));
    assert_eq!(config.agent.env["KEY_FILE"].expose_secret(), "/run/key", "a variable of an agent is its own");
    assert_eq!(loaded.origins["server.token"], Origin::Environment("LUMILINK_SERVER__TOKEN_FILE".into()));
    for name in ["token", "url", "secret", "hook"] {
        assert!(loaded.own_files.contains(&std::path::PathBuf::from(path(name))), "{name} is hidden from agents");
    }
    assert!(!loaded.own_files.contains(&std::path::PathBuf::from("/run/key")));
    // The file is read again by each load.
    write("token", b"rotated-0123456789\n");
    assert_eq!(shown(&load_with(&files).unwrap().config.server.token), "rotated-0123456789");
    files.push(("LUMILINK_SERVER__TOKEN", "twice-0123456789".to_owned()));
    let twice = load_with(&files).unwrap_err().to_string();
    let parts = ["server.token", "LUMILINK_SERVER__TOKEN_FILE", "LUMILINK_SERVER__TOKEN too"];
    assert!(parts.iter().all(|part| twice.contains(part)) && !twice.contains("twice-"), "{twice}");
}

#[test]
fn secret_is_read_from_the_file_that_its_toml_setting_names() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("token", "a-token-of-a-file-0123456789\n");
    write("value", "value-of-a-named-secret");
    let named = "[secrets.TOOL]\nvalue_file = \"value\"\ntenants = [\"acme\"]\nmcp_command = [\"mcp-tool\"]\n";
    write("ok.toml", &format!("[server]\ntoken_file = \"token\"\n{named}"));
    write("both.toml", "[server]\ntoken = \"a-token-0123456789\"\ntoken_file = \"token\"\n");
    write("missing.toml", "[server]\ntoken_file = \"none\"\n");
    write("unbound.toml", "[secrets.TOOL1]\nvalue = \"value\"\nmcp_origin = \"https://a.example/x\"\n");
    let load = |name: &str| {
        let current_folder = folder.path().to_owned();
        load(&Sources { file: Some(name.into()), current_folder, ..Sources::default() })
    };
    let loaded = load("ok.toml").unwrap();
    assert_eq!(loaded.config.server.token.as_ref().unwrap().expose_secret(), "a-token-of-a-file-0123456789");
    assert!(loaded.own_files.contains(&folder.path().join("token")), "the file is hidden from agents");
    assert!(loaded.secrets().any(|secret| secret == "value-of-a-named-secret"));
    let printed = crate::config::render::render(&loaded);
    assert!(printed.contains("[secrets.TOOL]") && !printed.contains("value-of-a-named"), "{printed}");
    let error = |name: &str| load(name).unwrap_err().to_string();
    assert!(error("both.toml").contains("server.token_file") && error("both.toml").contains("only one of both"));
    assert!(error("missing.toml").contains("cannot be read"), "{}", error("missing.toml"));
    for part in ["digits", "tenants", "mcp_origin"] {
        assert!(error("unbound.toml").contains(part), "{part}: {}", error("unbound.toml"));
    }
}

#[test]
fn key_of_the_github_app_is_read_from_a_file_that_is_hidden_from_agents() {
    let folder = tempfile::tempdir().unwrap();
    let line = "MIIEpAIBAAKCAQEA0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKL";
    let pem = format!("-----BEGIN RSA PRIVATE KEY-----\n{line}\nabc=\n-----END RSA PRIVATE KEY-----\n");
    let file = folder.path().join("app.pem");
    std::fs::write(&file, &pem).unwrap();
    std::fs::write(folder.path().join("l.toml"), "[github]\napp_id = 4711\nprivate_key_file = \"app.pem\"\n")
        .unwrap();
    let of_toml = Sources { file: Some("l.toml".into()), current_folder: folder.path().into(), ..Sources::default() };
    let variables =
        [("LUMILINK_GITHUB__APP_ID", "4711"), ("LUMILINK_GITHUB__PRIVATE_KEY_FILE", file.to_str().unwrap())];
    for loaded in [load(&of_toml).unwrap(), load(&sources(&variables, &[])).unwrap()] {
        let (id, key) = loaded.config.github.app().unwrap();
        assert_eq!((id, key.expose_secret()), ("4711", pem.trim_end()));
        assert!(loaded.own_files.contains(&file));
        let secrets: Vec<_> = loaded.secrets().collect();
        assert!(secrets.contains(&line.to_owned()) && secrets.contains(&pem.trim_end().to_owned()));
        assert!(!crate::config::render::render(&loaded).contains(line));
    }
    let client_id = [("LUMILINK_GITHUB__APP_ID", "Iv23liABC"), variables[1]];
    assert_eq!(load(&sources(&client_id, &[])).unwrap().config.github.app_id.as_deref(), Some("Iv23liABC"));
}

#[test]
fn github_app_without_id_or_usable_key_is_refused_by_name() {
    let key = ("LUMILINK_GITHUB__PRIVATE_KEY", "-----BEGIN RSA PRIVATE KEY-----\nA\n-----END RSA PRIVATE KEY-----");
    assert!(refused(&[key], &[]).contains("github.app_id: is not set"));
    assert!(refused(&[], &["github.app_id=4711"]).contains("github.private_key: is not set"));
    for bad in ["", "a b"] {
        assert!(refused(&[key], &[&format!("github.app_id={bad}")]).contains("github.app_id"), "{bad:?}");
    }
    for bad in ["/etc/app.pem", "-----BEGIN OPENSSH PRIVATE KEY-----\nA\n-----END OPENSSH PRIVATE KEY-----"] {
        let message = refused(&[("LUMILINK_GITHUB__PRIVATE_KEY", bad)], &["github.app_id=4711"]);
        assert!(
            message.contains("github.private_key: is not an RSA private key") && !message.contains(bad),
            "{message}"
        );
    }
    let long = serde_json::json!(["a".repeat(256)]).to_string();
    assert!(refused(&[], &[&format!("github.protected_paths={long}")]).contains("github.protected_paths"));
    assert!(refused(&[], &["github.protection=ignore"]).contains("draft, refuse"));
}

#[test]
fn key_for_signatures_is_checked_at_start_and_hidden() {
    use crate::domain::automation::ssh_key::tests::new_key;
    let folder = tempfile::tempdir().unwrap();
    let (key, _) = new_key(folder.path(), &["-t", "ed25519", "-N", ""]);
    let file = folder.path().join("key").display().to_string();
    let loaded = load(&sources(&[("LUMILINK_GITHUB__SIGNING_KEY_FILE", &file)], &["github.signing=always"])).unwrap();
    assert!(loaded.config.github.signing_key.is_some() && loaded.own_files.contains(&folder.path().join("key")));
    let line = key.lines().nth(2).unwrap();
    assert!(loaded.secrets().any(|secret| secret == line));
    assert!(!crate::config::render::render(&loaded).contains(line));
    let message = refused(&[("LUMILINK_GITHUB__SIGNING_KEY", "ssh-ed25519 AAAA")], &[]);
    assert!(message.contains("github.signing_key: is not a private key") && !message.contains("AAAA"), "{message}");
    assert!(refused(&[], &["github.signing=sometimes"]).contains("auto, always, never"));
}

#[test]
fn unreadable_file_of_a_secret_is_reported_with_variable_and_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("empty"), "\n").unwrap();
    std::fs::write(path("bytes"), [0xff, 0xfe]).unwrap();
    std::fs::write(path("large"), "x".repeat(70_000)).unwrap();
    for (name, what) in
        [("none", "cannot be read"), ("empty", "is empty"), ("bytes", "cannot be read"), ("large", "larger")]
    {
        let message = refused(&[("LUMILINK_WEBHOOK__SECRET_FILE", &path(name))], &[]);
        let parts = ["webhook.secret", "LUMILINK_WEBHOOK__SECRET_FILE", &path(name), what];
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    load(&sources(&[("LUMILINK_WEBHOOK__SECRET_FILE", "")], &[])).unwrap();
    // A flag overrides the environment, and no other setting is read from a file.
    let message = refused(&[("LUMILINK_SERVER__LISTEN_FILE", "/x")], &[]);
    assert!(message.contains("server.listen_file"), "{message}");
}

#[test]
fn an_invalid_value_is_reported_with_source_and_allowed_values() {
    for (environment, flags, parts) in [
        (
            vec![("LUMILINK_TURN__CANCEL_GRACE_S", "soon")],
            vec![],
            ["turn.cancel_grace_s", "environment variable LUMILINK_TURN__CANCEL_GRACE_S", "whole number"],
        ),
        (vec![], vec!["log.format=xml"], ["log.format", "flag --set", "json, text"]),
        (vec![], vec!["permission.policy=maybe"], ["permission.policy", "flag --set", "allow-once, allow-always"]),
        (vec![], vec!["server.listen=here"], ["server.listen", "flag --set", "127.0.0.1:8080"]),
        (vec![], vec!["turn.patience=1"], ["turn.patience", "flag --set", "inactivity_timeout_s"]),
        (vec![("LUMILINK_TRUN__X", "1")], vec![], ["trun", "LUMILINK_TRUN__X", "sections are server"]),
        (vec![], vec!["agent.command=goose"], ["agent.command", "flag --set", "a list"]),
        (vec![], vec!["agent.fs=perhaps"], ["agent.fs", "flag --set", "true or false"]),
        (vec![], vec!["drain.timeout_s=-1"], ["drain.timeout_s", "flag --set", "whole number"]),
        (vec![], vec!["agents.goose.comand=[]"], ["agents.goose.comand", "flag --set", "command"]),
    ] {
        let message = refused(&environment, &flags);
        for part in parts {
            assert!(message.contains(part), "{part:?} in: {message}");
        }
    }
}

#[test]
fn rules_beyond_types_are_checked_all_at_once() {
    let all = refused(
        &[],
        &[
            "limits.write_queue=1000",
            "limits.frame_bytes=65535",
            "turn.cancel_grace_s=0",
            "runtime.url=http://host/acp",
            "database.url=mysql://host",
            "log.level=lumilink=shout",
            "workspaces.git_hosts=[]",
            r#"agent.command=[""]"#,
        ],
    );
    for setting in [
        "limits.write_queue",
        "limits.frame_bytes",
        "turn.cancel_grace_s",
        "runtime.url",
        "database.url",
        "log.level",
        "workspaces.git_hosts",
        "agent.command",
    ] {
        assert!(all.contains(&format!("{setting}: ")), "{setting} in:\n{all}");
    }
    assert!(refused(&[], &["agents.default.fs=true"]).contains("[agent] configures the default agent"));
    assert!(refused(&[], &["agents.Goose.fs=true"]).contains("agents.Goose: the name must be"));
    assert!(refused(&[], &["server.allowed_origins=[\"https://a.example/\"]"]).contains("exact origin"));
}

#[test]
fn an_address_beyond_loopback_needs_a_long_token_if_served() {
    for section in ["server", "runtime"] {
        let listen = format!("{section}.listen=0.0.0.0:0");
        let token = |token: &str| format!("{section}.token={token}");
        let long = token("012345678901234567890123");
        load(&sources(&[], &[&listen, &long])).unwrap();
        let short = token("01234567890123456789012");
        let message = refused(&[], &[&listen, &short]);
        assert!(message.contains(&format!("{section}.token")) && message.contains("must have 24"), "{message}");
        load(&sources(&[], &[&short])).unwrap();
        let mut closed = sources(&[], &[&listen, &short]);
        closed.listeners.clear();
        load(&closed).unwrap();
    }
    assert!(refused(&[], &["runtime.listen=0.0.0.0:0"]).contains("set runtime.token"));
    assert!(refused(&[], &["server.token="]).contains("left out"));
}

#[test]
fn server_without_a_token_is_refused_beyond_loopback() {
    let token_of = |flags: &[&str]| format!("{:?}", load(&sources(&[], flags)).unwrap().config.server.client_token());
    assert_eq!(token_of(&["server.listen=0.0.0.0:0"]), "OfDataFolder");
    assert_eq!(token_of(&["server.token=none"]), "None");
    assert_eq!(token_of(&["server.token=none", "server.listen=[::ffff:127.0.0.1]:0"]), "None");
    let message = refused(&[], &["server.token=none", "server.listen=0.0.0.0:0"]);
    assert!(message.contains("server.token") && message.contains("other machines"), "{message}");
}

#[test]
fn pool_of_users_is_refused_if_it_is_malformed_or_shares_a_home() {
    for (flags, named) in [
        (&["agent.run_as=pool:0-10"][..], "agent.run_as"),
        (&["agents.x.run_as=pool:70000"], "agents.x.run_as"),
        (&["agent.run_as=pool:70000-70999", "agent.home=shared"], "agent.home"),
        (&["agent.max_memory_bytes=1000"], "agent.max_memory_bytes"),
        (&["agent.max_processes=1000001"], "agent.max_processes"),
    ] {
        let message = refused(&[], flags);
        assert!(message.contains(named), "{named}: {message}");
    }
    let loaded = load(&sources(&[], &["agent.run_as=pool:70000-70999", "agent.max_processes=0"])).unwrap();
    assert_eq!(loaded.config.agent.max_processes, 0);
}

#[test]
fn errors_and_rendered_configuration_contain_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lumilink.toml");
    for bad in ["[server]\ntoken = 424242\n", "[server]\ntoken = \"424242\n", "[agent.env]\nKEY = [424242]\n"] {
        std::fs::write(&file, bad).unwrap();
        let sources = Sources { file: Some(file.clone()), ..sources(&[], &[]) };
        let message = load(&sources).unwrap_err().to_string();
        assert!(message.contains("lumilink.toml") && !message.contains("424242"), "{message}");
    }
    assert!(!refused(&[], &["database.url=mysql://u:424242@host"]).contains("424242"));

    let loaded = load(&sources(
        &[("LUMILINK_DATABASE__URL", "postgres://u:424242@host/db?password=424242")],
        &["server.token=424242", "runtime.token=424242", "agents.a.env.KEY=424242"],
    ))
    .unwrap();
    let printed = render(&loaded);
    assert!(!printed.contains("424242") && !format!("{loaded:?}").contains("424242"), "{printed}");
    assert!(printed.contains("postgres://u:hidden@host/db"), "{printed}");
}

#[test]
fn webhook_requires_tls_and_a_secret_and_hides_both() {
    const URL: &str = "webhook.url=https://u:424242@hooks.example.com/424242?k=424242";
    let secret = |secret: &str| format!("webhook.secret={secret}");
    let long = "424242424242424242424242";
    assert!(refused(&[], &[URL]).contains("webhook.secret: is not set"));
    assert!(refused(&[], &[URL, &secret("short")]).contains("webhook.secret: must be 24 or more"));
    assert!(refused(&[], &[URL, &secret("whsec_c2hvcnQ=")]).contains("webhook.secret: must be"));
    let message = refused(&[], &["webhook.url=http://hooks.example.com/424242", &secret(long)]);
    assert!(message.contains("webhook.url: must be https") && !message.contains("424242"), "{message}");
    for bad in
        ["timeout_s=0", "timeout_s=61", "max_attempts=0", "first_retry_s=0", "first_retry_s=301", "max_retry_s=0"]
    {
        let setting = bad.split('=').next().unwrap();
        assert!(refused(&[], &[&format!("webhook.{bad}")]).contains(&format!("webhook.{setting}: is")), "{bad}");
    }
    let previous = format!("webhook.previous_secret={long}x");
    let loaded = load(&sources(&[("LUMILINK_WEBHOOK__SECRET", long)], &[URL, &previous])).unwrap();
    assert_eq!(loaded.config.webhook.secret.as_ref().unwrap().expose_secret(), long);
    let printed = render(&loaded);
    assert!(!printed.contains("424242") && !format!("{loaded:?}").contains("424242"), "{printed}");
    assert!(printed.contains("url = \"https://hooks.example.com/[hidden]\"  # flag --set"), "{printed}");
    load(&sources(&[], &["webhook.url=http://localhost:9/hook", &secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]))
        .unwrap();
}

#[test]
fn rendered_configuration_is_toml_with_sources() {
    let printed =
        render(&load(&sources(&[("LUMILINK_LOG__LEVEL", "debug")], &["agent.command=[\"a b\", \"c\"]"])).unwrap());
    assert!(printed.contains("level = \"debug\"  # environment variable LUMILINK_LOG__LEVEL"), "{printed}");
    assert!(printed.contains("command = [\"a b\", \"c\"]  # flag --set"), "{printed}");
    assert!(printed.contains("listen = \"127.0.0.1:8080\"  # default"), "{printed}");
    assert!(printed.contains("# token is not set"), "{printed}");
    toml::from_str::<Config>(&printed).unwrap();
}

#[test]
fn a_missing_file_is_an_error_that_names_it() {
    let sources = Sources { file: Some("nowhere.toml".into()), ..sources(&[], &[]) };
    assert!(load(&sources).unwrap_err().to_string().starts_with("file:/here/nowhere.toml: cannot be read"));
}

#[test]
fn every_source_overrides_preferences() {
    let preferring = |environment| Sources {
        preferences: vec![Flag::new("demo", "log.level", "error")],
        ..sources(environment, &[])
    };
    assert_eq!(load(&preferring(&[])).unwrap().config.log.level, "error");
    assert_eq!(load(&preferring(&[("LUMILINK_LOG__LEVEL", "debug")])).unwrap().config.log.level, "debug");
}

/// Names of settings, right and wrong.
fn setting() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("turn.cancel_grace_s".to_owned()),
        Just("server.listen".to_owned()),
        Just("server.token".to_owned()),
        Just("agent.command".to_owned()),
        Just("agent.env".to_owned()),
        Just("database.url".to_owned()),
        Just("limits.write_queue".to_owned()),
        Just("log.level".to_owned()),
        Just("permission.policy".to_owned()),
        "agents\\.[a-z.]{0,5}",
        "[a-z_]{1,8}(\\.[a-z_]{0,8}){0,3}",
    ]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        "-?[0-9]{0,22}(\\.[0-9])?",
        "[a-z=,*]{0,12}",
        "\\[(\"[a-z]{0,3}\",?){0,3}\\]?",
        "\\{(\"[A-Z]{1,2}\": ?(\"[a-z]\"|[0-9]|null),?){0,2}\\}?",
        "(sqlite|postgres|ws)(:|://)[a-z:@/\\[\\]0-9]{0,12}",
        "[0-9\\[\\].:]{0,20}",
        "\\PC{0,8}",
    ]
}

fn has_problems(cause: &ConfigError) -> Result<(), TestCaseError> {
    prop_assert!(!cause.problems.is_empty());
    prop_assert!(cause.problems.iter().all(|problem| !problem.what.is_empty()), "{}", cause);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn no_environment_or_flag_panics(
        environment in prop::collection::vec((setting(), value()), 0..4),
        flags in prop::collection::vec((setting(), value()), 0..3),
    ) {
        let variables: Vec<_> = environment
            .into_iter()
            .map(|(name, value)| (format!("LUMILINK_{}", name.replace('.', "__").to_ascii_uppercase()), value))
            .collect();
        let borrowed: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut sources = sources(&borrowed, &[]);
        sources.flags = flags.iter().filter_map(|(name, value)| Flag::parse_set(&format!("{name}={value}")).ok()).collect();
        match load(&sources) {
            Ok(loaded) => prop_assert!(!render(&loaded).is_empty()),
            Err(cause) => has_problems(&cause)?,
        }
    }

    #[test]
    fn no_file_panics(
        lines in prop::collection::vec(
            prop_oneof![
                3 => (setting(), value()).prop_map(|(name, value)| format!("{name} = {value}")),
                2 => (setting(), value()).prop_map(|(name, value)| format!("{name} = {value:?}")),
                1 => "\\[{1,2}[a-z.]{0,12}\\]{0,2}",
                1 => "\\PC{0,12}",
            ],
            0..6,
        ),
        bytes in prop::collection::vec(any::<u8>(), 0..3),
        is_text in prop::bool::weighted(0.9),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("lumilink.toml");
        let mut text = lines.join("\n").into_bytes();
        if !is_text {
            text.extend(bytes);
        }
        std::fs::write(&file, text).unwrap();
        let mut sources = sources(&[], &[]);
        sources.file = Some(file);
        match load(&sources) {
            Ok(loaded) => prop_assert!(!render(&loaded).is_empty()),
            Err(cause) => has_problems(&cause)?,
        }
    }
}
