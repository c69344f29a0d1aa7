//! Configuration: file, environment, flags, in rising priority.

use std::{fs, process::Output};

use crate::harness::{lumilink, program::Folder};

fn run(folder: &Folder, env: &[(&str, &str)], arguments: &[&str]) -> Output {
    std::process::Command::new(lumilink())
        .args(arguments)
        .envs(env.iter().copied())
        .env("HOME", folder.path())
        .current_dir(folder.path())
        .output()
        .expect("the program runs")
}

fn printed(folder: &Folder, env: &[(&str, &str)], arguments: &[&str]) -> String {
    let output = run(folder, env, &[&["config"], arguments].concat());
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    stdout
}

/// Returns the line that contains a setting's key.
fn line_with<'a>(printed: &'a str, key: &str) -> &'a str {
    printed.lines().find(|line| line.contains(key)).unwrap_or_else(|| panic!("no `{key}` in:\n{printed}"))
}

#[test]
fn flags_override_the_environment_which_overrides_the_file_and_the_defaults() {
    let folder = Folder::new();
    let file = folder.path().join("l.toml");
    fs::write(&file, "[session]\nidle_timeout_s = 111\n").unwrap();
    let file = file.to_str().unwrap();
    let env = [("LUMILINK_SESSION__IDLE_TIMEOUT_S", "222")];
    let flag = ["--config", file, "--set", "session.idle_timeout_s=333"];
    assert!(line_with(&printed(&folder, &[], &[]), "idle_timeout_s").contains("1800"));
    assert!(line_with(&printed(&folder, &[], &["--config", file]), "idle_timeout_s").contains("111"));
    assert!(line_with(&printed(&folder, &env, &["--config", file]), "idle_timeout_s").contains("222"));
    assert!(line_with(&printed(&folder, &env, &flag), "idle_timeout_s").contains("333"));
}

#[test]
fn each_value_is_printed_with_its_source() {
    let folder = Folder::new();
    let env = [("LUMILINK_TURN__CANCEL_GRACE_S", "7")];
    let printed = printed(&folder, &env, &["--set", "turn.inactivity_timeout_s=8"]);
    assert!(line_with(&printed, "cancel_grace_s").contains("LUMILINK_TURN__CANCEL_GRACE_S"), "{printed}");
    assert!(line_with(&printed, "inactivity_timeout_s").contains("--set"), "{printed}");
}

#[test]
fn fr_008_secrets_are_hidden() {
    let folder = Folder::new();
    let env = [
        ("LUMILINK_SERVER__TOKEN", "secret-token-value"),
        ("LUMILINK_DATABASE__URL", "postgres://u:secret-password@localhost/x"),
        ("LUMILINK_RUNTIME__TOKEN", "secret-runtime-token"),
    ];
    let printed = printed(&folder, &env, &[]);
    assert!(!printed.contains("secret-"), "{printed}");
    assert!(printed.contains("hidden"), "{printed}");
}

#[test]
fn secret_among_the_arguments_is_refused_with_advice() {
    let folder = Folder::new();
    for setting in [
        "runtime.token=secret-runtime-token",
        "webhook.secret=secret-webhook",
        "webhook.url=https://hooks.example.com/secret-0123456789abcdef",
        "agent.env.SOME_KEY=secret-of-agent",
        r#"agent.env={"PLAIN":"secret-of-agent"}"#,
        "secrets.TOOL.value=secret-of-tool",
        "github.private_key=secret-of-app",
    ] {
        let output = run(&folder, &[], &["config", "--set", setting]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{setting}: {stderr}");
        assert!(stderr.contains("read arguments") && !stderr.contains("secret-"), "{setting}: {stderr}");
    }
    let url = "postgres://lumilink:secret-password@127.0.0.1/lumilink";
    let output = run(&folder, &[], &["config", "--database-url", url]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(78) && stderr.contains("LUMILINK_DATABASE__URL"), "{stderr}");
    assert!(!stderr.contains("secret-"), "{stderr}");
    for setting in ["server.token=none", "webhook.url=http://127.0.0.1:1/hook", "agent.env.MODE=fast"] {
        let output = run(&folder, &[("LUMILINK_WEBHOOK__SECRET", &"s".repeat(32))], &["config", "--set", setting]);
        assert!(output.status.success(), "{setting}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn lists_are_json_in_the_environment_and_in_flags() {
    let folder = Folder::new();
    let env = [("LUMILINK_SERVER__ALLOWED_ORIGINS", r#"["https://a.example","https://b.example"]"#)];
    let printed = printed(&folder, &env, &["--set", r#"agent.command=["my-agent","--flag"]"#]);
    assert!(printed.contains("https://b.example") && printed.contains("my-agent"), "{printed}");
}

#[test]
fn invalid_value_exits_78_and_names_the_setting_or_the_allowed_values() {
    let folder = Folder::new();
    for (setting, name) in [
        ("log.format=xml", "json"),
        ("server.listen=somewhere", "server.listen"),
        ("turn.cancel_grace_s=soon", "turn.cancel_grace_s"),
        ("permission.policy=maybe", "allow-once"),
        ("server.no_such_setting=1", "no_such_setting"),
        ("no_such_section.x=1", "no_such_section"),
    ] {
        for command in ["config", "serve"] {
            let output = run(&folder, &[], &[command, "--set", setting]);
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(78), "{command} {setting}: {stderr}");
            assert!(stderr.contains(name), "{command} {setting} names the setting or the allowed values: {stderr}");
        }
    }
}

#[test]
fn missing_or_malformed_file_exits_78_and_is_named() {
    let folder = Folder::new();
    let bad = folder.path().join("bad.toml");
    fs::write(&bad, "[server\n").unwrap();
    for file in ["/nonexistent/lumilink.toml", bad.to_str().unwrap()] {
        let output = run(&folder, &[], &["config", "--config", file]);
        assert_eq!(output.status.code(), Some(78), "{file}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(file), "the error names the file");
    }
}

#[test]
fn migrate_creates_the_data_folder_and_can_be_repeated() {
    let folder = Folder::new();
    for _ in 0..2 {
        let output = run(&folder, &[], &["migrate", "--data-dir", "new/data"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(folder.path().join("new/data/lumilink.db").exists());
}
