//! `lumilink backup`: copies of the live database.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::harness::{Program, lumilink, program::Folder, program::PostgresDatabase};

fn command(folder: &Folder, file: &Path) -> Command {
    let mut command = Command::new(lumilink());
    command.arg("backup").arg("--data-dir").arg(folder.path().join("data")).arg(file).env("HOME", folder.path());
    command
}

fn backup(folder: &Folder, file: &Path) -> Output {
    command(folder, file).output().expect("the program runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The names of the files in a folder that begin with `copy`.
fn copies(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).expect("a folder").flatten().map(|it| it.file_name().display().to_string());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("copy")).collect();
    names.sort();
    names
}

#[test]
fn backup_under_write_load_has_every_turn_acknowledged_before_it() {
    let mut program = Program::start();
    let sessions: Vec<_> = (0..3).map(|n| program.api.open(&format!("ws-{n}"))).collect();
    let file = program.folder.path().join("copy.db");
    let is_done = AtomicBool::new(false);
    let acknowledged: Vec<_> = std::thread::scope(|scope| {
        let load: Vec<_> = sessions
            .iter()
            .map(|session| {
                let is_done = &is_done;
                scope.spawn(move || {
                    let mut turns = 0;
                    while !is_done.load(Ordering::Relaxed) {
                        session.completes("ticks 20 1 ; echo under load");
                        turns += 1;
                    }
                    turns
                })
            })
            .collect();
        let acknowledged: Vec<_> = (0..10).map(|n| sessions[0].api.open(&format!("kept-{n}"))).collect();
        acknowledged.iter().for_each(|session| assert_eq!(session.says("echo acknowledged"), "acknowledged"));
        let output = backup(&program.folder, &file);
        is_done.store(true, Ordering::Relaxed);
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{printed}{}", stderr(&output));
        assert!(printed.contains("copy.db: ") && printed.contains("MiB") && printed.contains("checked"), "{printed}");
        let turns: usize = load.into_iter().map(|thread| thread.join().expect("every turn completes")).sum();
        assert!(turns > 0, "there was load");
        acknowledged
    });
    assert_eq!(copies(program.folder.path()), ["copy.db"]);
    assert_eq!(file.metadata().expect("the copy").permissions().mode() & 0o777, 0o600);
    // Neither this nor another command of ours takes the live files from the server: it still writes where the next
    // start reads.
    let migrate = Command::new(lumilink())
        .args(["migrate", "--data-dir"])
        .arg(program.folder.path().join("data"))
        .env("HOME", program.folder.path())
        .output()
        .expect("the program runs");
    assert!(migrate.status.success(), "{}", stderr(&migrate));
    let late = program.api.open("late");
    late.says("echo late");
    program.kill_supervisor();
    program.start_supervisor_again();
    assert_eq!(late.conversation().len(), 2);

    let restored = Folder::new();
    fs::create_dir(restored.path().join("data")).expect("a folder");
    fs::copy(&file, restored.path().join("data/lumilink.db")).expect("a copy");
    let copy = Program::builder().folder(&restored).start();
    for session in acknowledged {
        let session = crate::harness::Session { api: copy.api.clone(), ..session };
        assert!(
            session.conversation().iter().any(|(_, text)| text == "acknowledged"),
            "{:?}",
            session.conversation()
        );
    }
}

#[test]
fn backup_refuses_a_file_that_exists() {
    let program = Program::start();
    program.api.open("ws");
    let file = program.folder.path().join("copy.db");
    fs::write(&file, "precious").expect("a file");
    let output = backup(&program.folder, &file);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("copy.db exists"), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(&file).expect("the file"), "precious");
    let live = program.folder.path().join("data/lumilink.db");
    assert_eq!(backup(&program.folder, &live).status.code(), Some(1), "the database itself");
    assert_eq!(copies(program.folder.path()), ["copy.db"]);
}

#[test]
fn failed_backup_leaves_no_file() {
    let program = Program::start();
    program.api.open("ws").completes("echo a");
    let file = program.folder.path().join("copy.db");
    let mut command = command(&program.folder, &file);
    // A copy has more than 64 KiB: writing it fails as on a full disk.
    let limit = libc::rlimit { rlim_cur: 64 * 1024, rlim_max: 64 * 1024 };
    let prepare = move || {
        // SAFETY: both calls are async-signal-safe, and `limit` is a valid struct.
        let is_set = unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN) != libc::SIG_ERR
                && libc::setrlimit(libc::RLIMIT_FSIZE, &limit) == 0
        };
        if is_set { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec, the closure only makes system calls and does not allocate.
    unsafe { command.pre_exec(prepare) };
    let output = command.output().expect("the program runs");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(copies(program.folder.path()), [""; 0], "{}", stderr(&output));
    let missing = backup(&Folder::new(), &file);
    assert!(stderr(&missing).contains("there is no database"), "{}", stderr(&missing));
    assert_eq!(copies(program.folder.path()), [""; 0]);
}

#[test]
fn backup_of_postgresql_names_the_command_and_not_the_password() {
    let database = PostgresDatabase::create();
    let folder = Folder::new();
    let mut url = url::Url::parse(&database.url()).expect("a URL");
    url.set_password(Some("secret-password")).expect("a password");
    url.query_pairs_mut().append_pair("sslpassword", "secret-password");
    let output = command(&folder, Path::new("it's.dump"))
        .env("LUMILINK_DATABASE__URL", url.as_str())
        .current_dir(folder.path())
        .output()
        .expect("the program runs");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(r"pg_dump --format=custom --file='it'\''s.dump' 'postgres"), "{said}");
    let name = url.path().trim_start_matches('/');
    assert!(said.contains(name) && !said.contains("secret-password") && !said.contains("sslpassword"), "{said}");
}
