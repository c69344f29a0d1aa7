//! Restores a database from a backup: clients that read newer notifications are reset, so that they miss none.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use diesel::{Connection, SqliteConnection, connection::SimpleConnection};

use crate::harness::{DEADLINE, Program, Value, json, lumilink, notifications::Subscriber};

const TENANT: &str = "installationId=tenant-1";

fn data(program: &Program) -> PathBuf {
    program.folder.path().join("data")
}

fn backup(program: &Program) {
    let mut database =
        SqliteConnection::establish(&data(program).join("lumilink.db").display().to_string()).expect("the database");
    let copy = program.folder.path().join("copy.db");
    database.batch_execute(&format!("VACUUM INTO '{}'", copy.display())).expect("a copy");
}

fn restore(program: &Program) {
    for side in ["-wal", "-shm"] {
        let _ = fs::remove_file(data(program).join(format!("lumilink.db{side}")));
    }
    fs::copy(program.folder.path().join("copy.db"), data(program).join("lumilink.db")).expect("a copy");
}

fn migrate_restored(program: &Program) -> Output {
    Command::new(lumilink())
        .args(["migrate", "--restored", "--data-dir"])
        .arg(data(program))
        .env("HOME", program.folder.path())
        .output()
        .expect("the program runs")
}

/// Flips the workspace's route `count` times: one notification each.
fn flips(program: &Program, count: usize) {
    for _ in 0..count {
        let route = program.api.get(&format!("/acp/workspaces/ws/protocol?{TENANT}")).expect(200);
        let verb = if route["route"] == "acp" { "rollback" } else { "restore" };
        let why = json!({"actor": "ada", "reason": "drill"});
        program.api.post(&format!("/acp/workspaces/ws/{verb}"), why).expect(200);
    }
}

#[test]
fn migrate_restored_resets_old_cursors_that_would_otherwise_miss_notifications() {
    let mut program = Program::start();
    program.api.open("ws");
    flips(&program, 2);
    assert_eq!(program.terminate(DEADLINE), Some(0));
    backup(&program);
    // A client reads three more notifications, which are not in the backup.
    program.start_supervisor_again();
    flips(&program, 3);
    let welcome = Subscriber::open(&program.api.base(), TENANT, &[]).unwrap().hello(json!({}));
    assert_eq!(welcome["cursor"], 5, "{welcome}");
    let with_cursor = json!({"epoch": welcome["epoch"], "cursor": 5});
    let reconnect = |program: &Program| {
        let mut client = Subscriber::open(&program.api.base(), TENANT, &[]).unwrap();
        let welcome = client.hello(with_cursor.clone());
        (welcome, client.next())
    };
    let refused = migrate_restored(&program);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "a supervisor holds the database: {stderr}");
    assert!(stderr.contains("another lumilink works with the database"), "{stderr}");
    assert_eq!(program.terminate(DEADLINE), Some(0));

    // Without the command, the client receives only the last of the notifications 3 to 6 of the restored database, and no
    // reset.
    restore(&program);
    program.start_supervisor_again();
    flips(&program, 4);
    let (same, next) = reconnect(&program);
    assert_eq!((&same["epoch"], &next["type"], &next["seq"]), (&welcome["epoch"], &json!("toast"), &json!(6)));
    assert_eq!(program.terminate(DEADLINE), Some(0));

    restore(&program);
    for _ in 0..2 {
        let done = migrate_restored(&program);
        let stdout = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success(), "{stdout}{}", String::from_utf8_lossy(&done.stderr));
        assert!(stdout.starts_with("epoch ") && stdout.contains("formerly"), "{stdout}");
    }
    program.start_supervisor_again();
    flips(&program, 4);
    let (new, reset) = reconnect(&program);
    assert_ne!(new["epoch"], welcome["epoch"]);
    assert_eq!((&reset["type"], &reset["reason"]), (&json!("reset"), &json!("otherEpoch")), "{reset}");
    assert_eq!((&reset["epoch"], &reset["cursor"]), (&new["epoch"], &json!(6)), "{reset}");
    let list = program.api.get(&format!("/acp/notifications?{TENANT}")).expect(200);
    let seqs: Vec<&Value> = list["items"].as_array().unwrap().iter().map(|item| &item["toast"]["seq"]).collect();
    assert_eq!(seqs, [6, 5, 4, 3, 2, 1], "the inbox lists all of them");
}
