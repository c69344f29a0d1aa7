//! The token that a server makes for itself, and commands that find it.

use std::{
    fs,
    io::Read,
    net::TcpListener,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    process::{Command, Output},
};

use crate::harness::{
    Api, DEADLINE, Program, Value, eventually,
    hostile::{RawRequest, exchange},
    json, lumilink, tokens,
};

fn data(program: &Program) -> PathBuf {
    program.folder.path().join("data")
}

/// `lumilink session list` with nothing but the data folder.
fn list(program: &Program, variables: &[(&str, &str)]) -> Output {
    Command::new(lumilink())
        .args(["session", "list", "--json", "--data-dir"])
        .arg(data(program))
        .envs(variables.iter().copied())
        .env("HOME", program.folder.path())
        .current_dir(program.folder.path())
        .output()
        .expect("the program runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The status without a token.
fn status_without(program: &Program) -> u16 {
    Api::new(&program.api.base(), None).get("/acp/sessions").status
}

#[test]
fn first_start_makes_a_private_token_without_which_requests_are_refused() {
    let mut program = Program::start();
    assert_eq!(status_without(&program), 401);
    assert_eq!(Api::new(&program.api.base(), Some("guessed".into())).get("/acp/sessions").status, 401);
    let token = tokens::of_folder(&data(&program)).expect("a token");
    assert_eq!(token.len(), 64);
    for file in ["token", "address"] {
        assert_eq!(fs::metadata(data(&program).join(file)).expect("a file").mode() & 0o777, 0o600, "{file}");
    }
    assert_eq!(program.api.get("/acp/sessions").status, 200);
    assert!(!program.log().contains(&token) && program.log().contains("data/token"), "the log names the file only");
    assert_eq!(program.terminate(DEADLINE), Some(0));
    assert!(!data(&program).join("address").exists(), "a stopped server has no address");
    program.start_supervisor_again();
    assert_eq!(tokens::of_folder(&data(&program)), Some(token), "the token stays");
}

#[test]
fn command_line_finds_address_and_token_of_the_data_folder() {
    let program = Program::start();
    let session = program.api.open("ws");
    let listed = list(&program, &[]);
    assert!(listed.status.success() && text(&listed).contains(&session.id), "{}", text(&listed));
    let refused = list(&program, &[("LUMILINK_TOKEN", "another-token-0123456789")]);
    assert!(!refused.status.success() && text(&refused).contains("unauthorized"), "{}", text(&refused));
    // Another name of the same address is another address.
    let url = format!("http://localhost:{}", program.address.port());
    let elsewhere = list(&program, &[("LUMILINK_URL", &url)]);
    assert!(!elsewhere.status.success() && text(&elsewhere).contains("LUMILINK_DATA_DIR"), "{}", text(&elsewhere));
}

#[test]
fn command_line_sends_no_token_to_a_program_that_took_the_port_of_a_killed_server() {
    let mut program = Program::start();
    let address = program.address;
    program.kill();
    assert!(data(&program).join("address").exists(), "a killed server leaves its address");
    let token = tokens::of(address).expect("a token");
    let listener = TcpListener::bind(address).expect("the port is free");
    let thief = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the command calls");
        stream.set_read_timeout(Some(DEADLINE)).expect("an option");
        let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read(&mut buffer) {
                Ok(read @ 1..) => request.extend_from_slice(&buffer[..read]),
                _ => break,
            }
        }
        String::from_utf8_lossy(&request).into_owned()
    });
    let output = list(&program, &[("LUMILINK_URL", &format!("http://{address}"))]);
    assert!(!output.status.success(), "{}", text(&output));
    let request = thief.join().expect("no panic");
    assert!(request.starts_with("GET /acp/sessions") && !request.contains(&token), "{request}");
}

#[test]
fn several_authorization_headers_are_refused() {
    let program = Program::start();
    let token = tokens::of(program.address).expect("a token");
    let host = program.address.to_string();
    let bearer = format!("Bearer {token}");
    for (first, second) in [(bearer.as_str(), "Bearer x"), ("Bearer x", bearer.as_str()), (&bearer, &bearer)] {
        let answer = RawRequest::new("GET", "/acp/sessions")
            .header("Host", &host)
            .header("Authorization", first)
            .header("Authorization", second)
            .send(program.address);
        assert_eq!(answer.status, 400, "{}", answer.body);
    }
    let bytes = format!(
        "GET /acp/sessions HTTP/1.1\r\nHost: {host}\r\nauthorization: bearer {token}\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(exchange(program.address, bytes.as_bytes()).status, 200, "the scheme may be in lower case");
}

#[test]
fn token_of_the_data_folder_is_replaced_by_sighup_once_its_file_is_removed() {
    let mut program = Program::start();
    program.turns_may_run();
    let old = program.api.clone();
    fs::remove_file(data(&program).join("token")).expect("the file");
    program.signal(libc::SIGHUP);
    eventually("the old token is refused", || old.get("/acp/sessions").status == 401);
    let fresh = tokens::of_folder(&data(&program)).expect("a new token");
    assert_eq!(Api::new(&program.api.base(), Some(fresh.clone())).get("/acp/sessions").status, 200);
    let reloaded = |line: &Value| line["message"] == "configuration reloaded" && line["reloaded"] == "server.token";
    eventually("the log names the setting", || {
        program.log().lines().filter_map(|line| serde_json::from_str(line).ok()).any(|line: Value| reloaded(&line))
    });
    assert!(!program.log().contains(&fresh));
}

#[test]
fn token_file_that_other_users_can_read_stops_the_start() {
    let mut program = Program::start();
    assert_eq!(program.terminate(DEADLINE), Some(0));
    let file = data(&program).join("token");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("a mode");
    let output = Command::new(lumilink())
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(data(&program))
        .env("HOME", program.folder.path())
        .output()
        .expect("the program runs");
    let said = text(&output);
    assert!(!output.status.success() && said.contains("data/token") && said.contains("chmod 600"), "{said}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("a mode");
}

#[test]
fn server_starts_although_its_address_cannot_be_recorded() {
    let mut program = Program::builder().token("a-token-of-some-length-0123").start();
    assert_eq!(program.terminate(DEADLINE), Some(0));
    // A folder in place of the file, because no mode stops root.
    fs::create_dir_all(data(&program).join("address/in-the-way")).expect("a folder");
    program.start_supervisor_again();
    assert_eq!(program.api.get("/acp/sessions").status, 200);
    assert!(program.log().contains("address not recorded"), "{}", program.log());
}

#[test]
fn server_without_a_token_has_to_be_asked_for_and_stays_on_loopback() {
    let program = Program::builder().set("server.token", "none").start();
    assert_eq!(status_without(&program), 200);
    assert!(!data(&program).join("token").exists());
    assert_eq!(program.api.post("/acp/session/new", json!({"workspaceId": "w", "installationId": "t"})).status, 201);
    let output = Command::new(lumilink())
        .args(["serve", "--listen", "0.0.0.0:0", "--set", "server.token=none", "--data-dir"])
        .arg(program.folder.path().join("other"))
        .env("HOME", program.folder.path())
        .output()
        .expect("the program runs");
    assert_eq!(output.status.code(), Some(78), "{}", text(&output));
    assert!(text(&output).contains("server.token"), "{}", text(&output));
}
