//! The same scenario on SQLite and `PostgreSQL`, and the start of the program on either database.

use crate::harness::{Program, json, program::PostgresDatabase};

fn main_script(program: &Program) {
    let session = program.api.open("ws");
    session.completes("write a.txt content ; echo written");
    let key = |prompt: &str| session.call(prompt).header("idempotency-key", "key").send();
    assert_eq!(key("count").expect(200), key("count").expect(200));
    key("echo other").problem(422, "idempotency_mismatch");
    let (prompt_id, mut stream) = session.is_busy_with("echo started ; sleep 60");
    assert!(session.cancel());
    stream.rest();
    assert_eq!(session.ends(&prompt_id)["state"], "cancelled");
    session.prompt("crash").problem(502, "agent_crashed");
    session.becomes("idle");
    let unicode = "naïve 日本語 🦀 \u{202e}";
    assert!(session.says(&format!("echo {unicode}")).contains("日本語 🦀"));
    let kinds: Vec<_> = session.conversation().into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds.iter().filter(|kind| *kind == "user_message").count(), 5, "{kinds:?}");
    assert!(session.conversation().iter().any(|(_, text)| text.contains("日本語 🦀")));
    let listed = program.api.get("/acp/sessions?installationId=tenant-1").expect(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    session.post("close", json!({})).expect(200);
    assert_eq!(session.state()["state"], "closed");
}

#[test]
fn main_script_passes_on_sqlite() {
    main_script(&Program::start());
}

#[test]
fn main_script_passes_on_postgresql() {
    main_script(&Program::builder().postgres().start());
}

#[test]
fn sessions_survive_a_restart_on_postgresql() {
    let database = PostgresDatabase::create();
    let start = || Program::builder().set("database.url", database.url());
    let program = start().start();
    let session = program.api.open("ws");
    session.completes("echo kept");
    let folder = program.stop();
    let program = start().folder(&folder).start();
    let again = crate::harness::Session { api: program.api.clone(), ..session };
    assert_eq!(again.conversation().len(), 2);
    assert_eq!(again.says("echo on"), "on");
}

#[test]
fn two_programs_start_on_one_empty_database_concurrently() {
    let database = PostgresDatabase::create();
    let start = || Program::builder().set("database.url", database.url());
    // Both upgrade the schema; the second one is ready when the first has stopped.
    let (started, programs) = std::sync::mpsc::sync_channel(2);
    for builder in [start(), start()] {
        let started = started.clone();
        std::thread::spawn(move || drop(started.send(builder.start())));
    }
    for name in ["one", "two"] {
        let program = programs.recv_timeout(crate::harness::DEADLINE).expect("both start");
        assert_eq!(program.api.open(name).says(&format!("echo {name}")), name);
    }
}

#[test]
fn migrate_command_prepares_the_database_and_can_be_repeated() {
    let database = PostgresDatabase::create();
    let folder = crate::harness::program::Folder::new();
    for _ in 0..2 {
        let output = std::process::Command::new(crate::harness::lumilink())
            .arg("migrate")
            .env("LUMILINK_DATABASE__URL", database.url())
            .current_dir(folder.path())
            .output()
            .expect("the program runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let program = Program::builder().set("database.url", database.url()).start();
    assert_eq!(program.api.open("ws").says("echo ready"), "ready");
}

#[test]
fn unreachable_database_stops_the_start_with_a_reason() {
    let folder = crate::harness::program::Folder::new();
    let url = format!("postgres://nobody:secret-password@127.0.0.1:{}/none", crate::harness::free_port());
    let output = std::process::Command::new(crate::harness::lumilink())
        .args(["serve", "--listen", "127.0.0.1:0"])
        .env("LUMILINK_DATABASE__URL", &url)
        .current_dir(folder.path())
        .output()
        .expect("the program runs");
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.to_lowercase().contains("database") && !stderr.contains("secret-password"), "{stderr}");
}

#[test]
fn second_supervisor_on_the_same_sqlite_file_is_refused_harmlessly() {
    let program = Program::start();
    let session = program.api.open("ws");
    let (prompt_id, mut stream) = session.is_busy_with("echo started ; sleep 60");
    let second = std::process::Command::new(crate::harness::lumilink())
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(program.folder.path().join("data"))
        .env("HOME", program.folder.path())
        .output()
        .expect("the program runs");
    let stderr = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("another lumilink") && stderr.contains("--data-dir"), "{stderr}");
    assert!(stderr.contains(&program.address.to_string()), "{stderr}");
    let turn = program.api.get(&format!("/acp/prompt/{prompt_id}")).expect(200);
    assert_eq!(turn["state"], "running");
    assert!(session.cancel());
    stream.rest();
}
