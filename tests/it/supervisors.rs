//! Two supervisors on one database: one works, the other one waits, and takes over when the first has ended.

use std::{
    fs,
    net::SocketAddr,
    process::{Command, Output},
    time::{Duration, Instant},
};

use crate::harness::{
    Api, DEADLINE, Program, Session, Value, eventually, free_port, json, lumilink,
    process::{Folder, Process},
    processes,
    program::PostgresDatabase,
    wait_for,
};

/// The token of the second supervisor.
const TOKEN: &str = "token-of-the-second-0123456789";
/// Life of a supervisor's row without a renewal.
const LIFE: Duration = Duration::from_secs(15);

/// A supervisor that may have to wait, on an address of its own.
struct Second {
    process: Process,
    api: Api,
    _folder: Folder,
}

fn second(database: &PostgresDatabase, lock_wait_s: u64) -> Second {
    let (folder, address) = (Folder::new(), SocketAddr::from(([127, 0, 0, 1], free_port())));
    let (listen, wait) = (address.to_string(), format!("database.lock_wait_s={lock_wait_s}"));
    let arguments = ["serve", "--listen", &listen, "--data-dir", "data", "--set", &wait].map(str::to_owned);
    let variables = [
        ("LUMILINK_SERVER__TOKEN".to_owned(), TOKEN.to_owned()),
        ("LUMILINK_DATABASE__URL".to_owned(), database.url()),
    ];
    let process = Process::start("serve", &folder, &arguments, &variables);
    Second { process, api: Api::new(&format!("http://{address}"), Some(TOKEN.to_owned())), _folder: folder }
}

impl Second {
    /// Waits for an answer with this status.
    fn answers(&mut self, path: &str, status: u16) -> Value {
        wait_for(DEADLINE, path, || {
            self.process.assert_running();
            let answer = self.api.call("GET", path).try_send().ok()?;
            (answer.status == status).then_some(answer.body)
        })
    }
}

fn first(database: &PostgresDatabase) -> Program {
    Program::builder().set("database.url", database.url()).start()
}

#[test]
fn second_supervisor_on_postgresql_waits_unready_and_takes_over() {
    let database = PostgresDatabase::create();
    let one = first(&database);
    let session = one.api.open("ws");
    let (prompt_id, mut stream) = session.is_busy_with("echo started ; sleep 2 ; echo finished");
    let mut two = second(&database, 60);
    two.answers("/livez", 200);
    let problem = two.answers("/readyz", 503);
    assert_eq!(problem["code"], "database_unavailable", "{problem}");
    assert!(problem["detail"].as_str().unwrap_or_default().contains(&one.address.to_string()), "{problem}");
    two.api
        .post("/acp/session/new", json!({"workspaceId": "ws", "installationId": "t"}))
        .problem(503, "database_unavailable");
    assert!(crate::harness::sse::message_of(&stream.rest()).contains("finished"), "the turn is not interrupted");
    assert_eq!(session.ends(&prompt_id)["state"], "completed");
    drop(one);
    let begin = Instant::now();
    two.answers("/readyz", 200);
    assert!(begin.elapsed() < LIFE, "an orderly end gives the database back: {:?}", begin.elapsed());
    let session = Session { api: two.api.clone(), ..session };
    let conversation = session.conversation();
    assert!(conversation.iter().any(|(_, text)| text.contains("finished")), "{conversation:?}");
    assert_eq!(session.says("echo on"), "on");
    processes::signal(two.process.pid(), libc::SIGTERM);
    assert_eq!(two.process.wait(DEADLINE).code(), Some(0), "{}", two.process.log());
}

#[test]
fn second_supervisor_exits_with_the_address_of_the_first() {
    let database = PostgresDatabase::create();
    let one = first(&database);
    let session = one.api.open("ws");
    let (prompt_id, mut stream) = session.is_busy_with("echo started ; sleep 60");
    let mut two = second(&database, 1);
    let status = two.process.wait(DEADLINE);
    let log = two.process.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        log.contains("another lumilink works with the database") && log.contains(&one.address.to_string()),
        "{log}"
    );
    let turn = one.api.get(&format!("/acp/prompt/{prompt_id}")).expect(200);
    assert_eq!(turn["state"], "running", "{turn}");
    assert!(session.cancel());
    stream.rest();
}

#[test]
fn successor_of_a_killed_supervisor_on_postgresql_does_not_wait() {
    let mut program = Program::builder().postgres().start();
    let session = program.api.open("ws");
    session.completes("echo a");
    for _ in 0..2 {
        program.kill_supervisor();
        let begin = Instant::now();
        program.start_supervisor_again();
        assert!(begin.elapsed() < LIFE / 2, "{:?}", begin.elapsed());
    }
    assert_eq!(session.conversation().len(), 2);
}

#[test]
fn frozen_supervisor_is_replaced_after_its_time_and_takes_no_more_work() {
    let database = PostgresDatabase::create();
    let mut one = first(&database);
    one.expect_error("another supervisor has taken over the database");
    one.turns_may_run();
    let session = one.api.open("ws");
    session.completes("echo before");
    let mut two = second(&database, 60);
    two.answers("/readyz", 503);
    one.signal(libc::SIGSTOP);
    let begin = Instant::now();
    two.answers("/readyz", 200);
    assert!(begin.elapsed() > LIFE / 2, "a frozen process may continue, so its time is waited for");
    one.signal(libc::SIGCONT);
    let asked = session.call("echo after").try_send();
    if let Ok(answer) = asked {
        assert_eq!(answer.status, 503, "{}", answer.text);
    }
    assert_eq!(one.ends(DEADLINE), Some(1), "{}", one.log());
    assert!(one.log().contains("has taken over the database"));
    let session = Session { api: two.api.clone(), ..session };
    assert_eq!(session.says("echo after"), "after");
    assert_eq!(session.conversation().len(), 4);
    processes::signal(two.process.pid(), libc::SIGTERM);
    assert_eq!(two.process.wait(DEADLINE).code(), Some(0));
}

#[test]
fn taken_address_stops_the_start_before_the_database_is_touched() {
    let program = Program::start();
    let (prompt_id, mut stream) = program.api.open("ws").is_busy_with("echo started ; sleep 60");
    let folder = Folder::new();
    let listen = program.address.to_string();
    let start = |data: &std::path::Path| -> Output {
        let mut command = Command::new(lumilink());
        command.args(["serve", "--listen", &listen, "--data-dir"]).arg(data).env("HOME", folder.path());
        command.output().expect("the program runs")
    };
    let output = start(&folder.path().join("data"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&listen) && said.contains("--listen 127.0.0.1:0"), "{said}");
    assert!(fs::read_dir(folder.path()).expect("the folder").next().is_none(), "nothing was created");
    let turn = program.api.get(&format!("/acp/prompt/{prompt_id}")).expect(200);
    assert_eq!(turn["state"], "running");
    program.api.post("/acp/session/cancel", json!({"sessionId": turn["sessionId"]}));
    stream.rest();
}

#[test]
fn restore_on_postgresql_is_refused_beside_a_supervisor() {
    let database = PostgresDatabase::create();
    let one = first(&database);
    let restored = || {
        let mut command = Command::new(lumilink());
        command.args(["migrate", "--restored"]).env("LUMILINK_DATABASE__URL", database.url());
        command.current_dir(one.folder.path());
        command.env("HOME", one.folder.path()).output().expect("the program runs")
    };
    let refused = restored();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains(&one.address.to_string()), "{said}");
    let folder = one.folder.clone();
    drop(one);
    let done = Command::new(lumilink())
        .args(["migrate", "--restored"])
        .env("LUMILINK_DATABASE__URL", database.url())
        .current_dir(folder.path())
        .output()
        .expect("the program runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn renewed_membership_outlives_its_first_expiry() {
    let database = PostgresDatabase::create();
    let one = first(&database);
    let mut two = second(&database, 60);
    let begin = Instant::now();
    while begin.elapsed() < LIFE + Duration::from_secs(2) {
        assert_eq!(two.answers("/readyz", 503)["code"], "database_unavailable");
        assert_eq!(one.api.get("/readyz").status, 200);
        // Paces the checks; the condition is the passing of time itself.
        std::thread::park_timeout(Duration::from_millis(500));
    }
    processes::signal(two.process.pid(), libc::SIGKILL);
    two.process.wait(DEADLINE);
    eventually("the first one is not affected", || one.api.get("/readyz").status == 200);
}
