//! Holds the source to the invariants of the house, and prints its figures.
//!
//! `cargo test --test architecture figures -- --no-capture` prints the figures, and `plain_words` in place of `figures`
//! every word to replace. With the environment variable `ARCHITECTURE_TREE`, the tests inspect the crate in that folder
//! instead of this one.

mod figures;
mod glossary;
mod imports;
mod lexer;
mod rules;
mod source;

use std::{collections::BTreeSet, sync::LazyLock};

use glossary::{DIALECT, DROPPED, LINES};
use rules::{undeclared_files, violations};
use source::Tree;

const MANIFEST: &str = "[dependencies]\nserde = \"1\"\ntokio = \"1\"\ndiesel = \"2\"\nprometheus = \"0\"\n\
    actix-web = \"4\"\nactix-web-actors = \"4\"\nclap = \"4\"\nmystery = \"1\"\nactix = \"0\"\nactix-http = \"3\"\n\
    parking_lot = \"0\"\nstrum = \"0\"\nhyper = \"1\"\n[dev-dependencies]\nhdrhistogram = \"7\"\n";

/// The tree under test, read once.
static TREE: LazyLock<Tree> = LazyLock::new(Tree::load);

/// A tree of files that do not exist. Paths that start with `tests/` are outside of `src/`.
fn planted(files: &[(&str, &str)]) -> Tree {
    let owned = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
    let (tests, files) = owned.partition(|(path, _)| path.starts_with("tests/"));
    Tree::new(files, tests, MANIFEST.to_owned())
}

fn found_in(files: &[(&str, &str)]) -> Vec<String> {
    violations(&planted(files))
}

fn words_in(path: &str, text: &str) -> Vec<String> {
    glossary::hits(&planted(&[(path, text)])).iter().map(ToString::to_string).collect()
}

#[test]
fn the_source_follows_the_house_rules() {
    assert!(TREE.files.len() > 20, "the source is there");
    let found = violations(&TREE);
    assert!(found.is_empty(), "{} violations:\n  {}", found.len(), found.join("\n  "));
}

#[test]
fn the_source_uses_plain_words() {
    let hits = glossary::hits(&TREE);
    for hit in &hits {
        println!("{hit}");
    }
    let failing = hits.iter().filter(|hit| hit.fails()).count();
    assert_eq!(failing, 0, "words to replace; the output lists them, and those that do not fail yet");
}

#[test]
fn figures_of_the_house_are_printed() {
    let figures = figures::figures(&TREE);
    println!("{figures}");
    assert!(figures.lines().count() > 20, "the figures are there");
}

#[test]
fn every_file_is_compiled() {
    let undeclared = undeclared_files(&TREE);
    assert!(undeclared.is_empty(), "no module declares these files: {undeclared:?}");
    let tree = planted(&[
        ("lib.rs", "mod a;"),
        ("a/mod.rs", "mod b;"),
        ("a/b.rs", "#[cfg(test)]\nmod tests;"),
        ("a/b/tests.rs", ""),
        ("a/c.rs", "mod b;"),
        ("b.rs", ""),
        ("tests/it/main.rs", "mod one;\n// mod two;"),
        ("tests/it/one.rs", ""),
        ("tests/it/two.rs", ""),
    ]);
    let mut undeclared = undeclared_files(&tree);
    undeclared.sort_unstable();
    assert_eq!(undeclared, ["a/c.rs", "b.rs", "tests/it/two.rs"]);
}

#[test]
fn no_test_is_ignored() {
    let ignored = TREE.tests.iter().filter(|file| file.all.contains("#[ignore")).map(|file| &file.path);
    let ignored: Vec<_> = ignored.collect();
    assert!(ignored.is_empty(), "tests that do not run: {ignored:?}");
}

#[test]
fn each_planted_violation_is_found_and_named() {
    let long_function = format!("fn long() {{\n{}}}\n", "    step();\n".repeat(70));
    let long_file = "struct A;\n".repeat(401);
    for (path, text, said) in [
        (
            "domain/a.rs",
            "use crate::store::Pool;",
            "domain/a.rs:1: imports up: `domain` (floor 1) names `store::Pool`",
        ),
        ("acp/a.rs", "\nfn f() { crate::domain::g() }", "acp/a.rs:2: imports up"),
        ("domain/a.rs", "use super::super::contract::X;", "imports up"),
        ("http/a.rs", "use crate::{acp::X, client::{self, Y}};", "imports sideways: `http` (floor 6) names `client"),
        ("config/a.rs", "use crate::telemetry::X;", "imports sideways"),
        (
            "transport/a.rs",
            "use crate::process::X;",
            "imports up: `transport` (floor 3) names `process::X` (floor 4)",
        ),
        ("process/a.rs", "use crate::transport::X;", ""),
        ("process/a.rs", "use crate::cluster::X;", "imports sideways"),
        ("process/a.rs", "use crate::actors::X;", "imports up"),
        ("runtime/a.rs", "use crate::actors::X;", ""),
        ("domain/a.rs", "use crate::{\n    acp::X,\n    store::Y,\n};", "domain/a.rs:3: imports up"),
        ("main.rs", "use lumilink::commands; fn f() { lumilink::utils::x() }", "names `lumilink::commands` only"),
        ("main.rs", "use lumilink::{app, commands};", "main.rs:1: `lumilink::app`: main.rs names"),
        ("main.rs", "use clap::Parser;\nuse lumilink::commands::{self, Cli};", ""),
        ("utils/a.rs", "", "`utils` has no floor"),
        ("bench/a.rs", "", "`bench` has no floor"),
        ("domain/a.rs", "use tokio::sync::mpsc;", "crate `tokio` may be used from floor 3 on, here is 1"),
        ("domain/a.rs", "fn f() { ::tokio::spawn(x) }", "crate `tokio` may be used from floor 3 on"),
        ("http/a.rs", "use diesel::prelude::*;", "crate `diesel` may be used only in store/"),
        ("config/a.rs", "fn f() { prometheus::gather(); }", "crate `prometheus` may be used only in telemetry/"),
        (
            "http/sessions/mod.rs",
            "use actix_web_actors::ws;",
            "only in http/notifications/socket.rs, runtime/socket/mod.rs",
        ),
        ("http/notifications/socket.rs", "use actix_web_actors::ws;", ""),
        ("http/notifications/socket.rs", "use actix_http::ws;", "only in runtime/socket/mod.rs"),
        ("runtime/socket/mod.rs", "use actix_http::ws; use actix_web_actors::ws as sockets;", ""),
        ("actors/a.rs", "use actix_web::web;", "may be used from floor 6 on"),
        ("process/a.rs", "#[actix::main]\nasync fn f() {}", "crate `actix` may be used from floor 5 on"),
        ("app/a.rs", "use clap::Parser;", "may be used from floor 8 on"),
        ("app/a.rs", "use mystery::X;", "crate `mystery` has no place"),
        ("commands/a.rs", "use hyper::client;", "crate `hyper` has no place"),
        ("domain/a.rs", "use parking_lot::Mutex;", "crate `parking_lot` may be used from floor 2 on"),
        ("acp/a.rs", "use strum::AsRefStr;", ""),
        ("domain/a.rs", "use std::time::{Duration, Instant};", "`std::time::Instant`: domain is pure"),
        ("domain/a.rs", "use std::fs;", "`std::fs`: domain is pure"),
        ("domain/a.rs", "fn f() { Uuid::now_v7(); }", "`Uuid::now_v7`: domain is pure"),
        ("app/a.rs", "fn f() { std::env::var(\"X\"); }", "the environment is read only in config/"),
        ("app/a.rs", "use std::env;", "the environment is read only in config/"),
        ("http/a.rs", "fn f() { HttpResponse::NotFound(); }", "chosen only in contract/problem.rs"),
        ("http/a.rs", "const S: StatusCode = StatusCode::BAD_GATEWAY;", "chosen only in contract/problem.rs"),
        (
            "http/a.rs",
            "fn f() { services.store.session(id) }",
            "http/a.rs:1: `store.session(`: rows are looked up in",
        ),
        ("http/a.rs", "fn f() { state.workspaces.live(id) }", "rows are looked up in http/rows.rs"),
        ("http/rows.rs", "fn f() { store(state).session(id) }", ""),
        (
            "http/a.rs",
            "#[get(\"/a\")]\npub(crate) async fn a(id: Path) -> X {}",
            "http/a.rs:1: `a`: a handler takes the",
        ),
        ("http/a.rs", "#[get(\"/a\")]\npub(crate) async fn a(caller: Caller) -> X {}", ""),
        ("actors/a.rs", "\nfn f() { q(\"DELETE FROM sessions\") }", "actors/a.rs:2: SQL belongs in store/"),
        ("actors/a.rs", "fn f() { q(r#\"SELECT \"id\" FROM t\"#) }", "SQL belongs in store/"),
        ("actors/a.rs", "fn f() { a.do_send(M) }", "`do_send`: do_send ignores"),
        ("actors/a.rs", "fn f() { mpsc::unbounded_channel() }", "an unbounded channel"),
        ("actors/a.rs", "fn f() { std::sync::mpsc::channel() }", "an unbounded channel"),
        ("actors/a.rs", "fn f() { x.unwrap() }", "answers with an error instead"),
        ("actors/a.rs", "fn f() { todo!() }", "unfinished code"),
        ("actors/a.rs", "#[cfg(test)]\nmod tests {\n#[test]\n#[ignore]\nfn t() {}\n}", "actors/a.rs:4: `#[ignore`"),
        ("app/a.rs", &long_function, "app/a.rs:1: fn long has 72 lines, at most 70"),
        ("app/a.rs", &long_file, ""),
        ("client/a.rs", "#[cfg(test)]\n#[path = \"b.rs\"]\nmod b;", "client/a.rs:2: `#[path]`"),
        ("client/a.rs", "#[cfg_attr(test, path = \"b.rs\")]\nmod b;", "client/a.rs:1: `#[path]`"),
        ("tests/it/main.rs", "#[path = \"b.rs\"]\nmod b;", "tests/it/main.rs:1: `#[path]`"),
        ("client/a.rs", "#[serde(rename_all = \"x\")]\nstruct A;\nfn f() { let path = 1; g(a, path == b) }", ""),
        ("tests/it/main.rs", "\nuse lumilink::app::App;", "tests/it/main.rs:2: `lumilink::app` is private"),
        ("tests/bench/main.rs", "use lumilink::commands::run;", ""),
        ("lib.rs", "pub mod commands;\npub mod store;\npub(crate) mod http;", "lib.rs:2: `pub mod store`: only"),
        ("lib.rs", "mod store;\npub mod commands;", ""),
    ] {
        let found = found_in(&[(path, text)]);
        if said.is_empty() {
            assert_eq!(found, [""; 0], "{path}: {text}");
        } else {
            assert!(found.iter().any(|it| it.contains(said)), "{said:?} is not among {found:?}");
        }
    }
    let manifest = "[dependencies]\n[profile.release]\npanic = \"abort\"\n".to_owned();
    let abort = violations(&Tree::new(vec![], vec![], manifest));
    assert!(abort[0].contains("disables supervision"), "{abort:?}");
}

#[test]
fn a_cycle_between_files_is_found_and_a_reexport_makes_none() {
    let cycle = found_in(&[
        ("domain/mod.rs", "pub mod a;\npub mod b;"),
        ("domain/a.rs", "use super::b::B;"),
        ("domain/b.rs", "fn f() { crate::domain::a::g() }"),
    ]);
    assert_eq!(cycle, ["domain::a: imports form a cycle: domain::a -> domain::b -> domain::a"]);
    let none = found_in(&[
        ("domain/mod.rs", "pub mod a;\npub mod b;\npub use a::A;\npub use b::B;"),
        ("domain/a.rs", "pub struct A;"),
        ("domain/b.rs", "use super::A;\npub struct B(A);"),
    ]);
    assert_eq!(none, [""; 0]);
}

#[test]
fn a_cycle_through_names_that_others_bind_is_found() {
    for (mod_file, a) in [
        ("pub mod a;\npub mod b;\npub use self::b::B;", "use super::B;"),
        ("pub mod a;\npub mod b;\npub use self::b::*;", "use super::B;"),
        ("pub mod a;\npub mod b;\npub use b::B as C;", "use crate::domain::C;"),
        ("pub mod a;\npub mod b;", "use super::b as other;\nfn f() -> other::B {}"),
        ("pub mod a;\npub mod b;", "use crate::domain;\nfn f() -> domain::b::B {}"),
    ] {
        let b = "use super::a::A;\npub struct B;";
        let found = found_in(&[("domain/mod.rs", mod_file), ("domain/a.rs", a), ("domain/b.rs", b)]);
        assert!(found.iter().any(|it| it.contains("imports form a cycle")), "{mod_file}\n{a}\n{found:?}");
    }
}

#[test]
fn a_cycle_between_folders_is_found() {
    let parts = [
        ("actors/mod.rs", "pub mod session;\npub mod workspaces;\nuse session::Session; use workspaces::W;"),
        ("actors/session/mod.rs", "pub mod start;\npub struct Session;"),
        ("actors/session/start.rs", "use crate::actors::workspaces::open::O;"),
        ("actors/workspaces/mod.rs", "pub mod close;\npub mod open;\npub struct W;"),
        ("actors/workspaces/close.rs", "use crate::actors::session::Session;"),
        ("actors/workspaces/open.rs", "pub struct O;"),
    ];
    assert_eq!(
        found_in(&parts),
        ["actors: folders import each other: session -> workspaces -> session \
          (actors/session/start.rs names actors/workspaces/open.rs, \
          actors/workspaces/close.rs names actors/session/mod.rs)"]
    );
    let one_way: Vec<_> = parts.into_iter().filter(|part| part.0 != "actors/workspaces/close.rs").collect();
    assert_eq!(found_in(&one_way), [""; 0]);
}

#[test]
fn a_cycle_of_a_folder_and_a_file_beside_it_is_found() {
    let found = found_in(&[
        ("actors/services.rs", "use super::session::a::A;"),
        ("actors/session/a.rs", "pub struct A;"),
        ("actors/session/b.rs", "use crate::actors::services::S;"),
    ]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("actors: folders import each other: services -> session -> services"), "{found:?}");
}

#[test]
fn comments_literals_and_tests_break_no_rule() {
    let text = r##"
        //! use crate::store::Pool; todo!() .unwrap()
        /* std::env::var /* nested */ do_send */
        use crate::acp::jsonrpc;
        const TEXT: &str = "crate::store::x .unwrap() \" do_send // not a comment";
        const RAW: &str = r#"todo!("x") { "#;
        const QUOTE: char = '"';
        const BRACE: char = '{';
        const BYTES: &[u8] = b"x.unwrap()";
        fn f<'a>(text: &'a str, list: [u8; 3]) -> &'a str { text }
        #[cfg(test)]
        mod tests {
            use std::{env, fs};
            use crate::http::X;
            fn t() { x.unwrap(); q("DELETE FROM x"); }
        }
    "##;
    assert_eq!(found_in(&[("domain/a.rs", text)]), [""; 0]);
    let outside = "use std::env;\nfn t() { x.unwrap(); }\n".to_owned() + &"t();\n".repeat(500);
    for path in ["domain/a_tests.rs", "domain/a/tests.rs", "store/tests/fixture.rs"] {
        assert_eq!(found_in(&[(path, &outside)]), [""; 0]);
    }
    let declared = [("transport/mod.rs", "#[cfg(test)]\nmod frame_fuzz;"), ("transport/frame_fuzz.rs", &outside)];
    assert_eq!(found_in(&declared), [""; 0]);
}

/// One sentence for each entry of `DIALECT`, in its order.
const DIALECT_SAMPLES: &[&str] = &[
    "Operators are told of the flip.",
    "A pin that stands.",
    "Goes on where it was paused.",
    "Informs whoever asked.",
    "Lets go of the agent.",
    "The URL is none.",
    "Notices are sent unasked.",
    "Every how manieth turn is a canary.",
    "Forgets a peer that is gone.",
    "ACP is well again.",
    "The way to the agent changed.",
    "The session came to be.",
    "The door to the runtime.",
    "The cable broke.",
    "The actor's wish.",
];

#[test]
fn each_planted_phrase_is_found_in_comments_and_texts() {
    assert_eq!(DIALECT_SAMPLES.len(), DIALECT.len());
    for (sample, (rule, instead)) in DIALECT_SAMPLES.iter().zip(DIALECT) {
        let texts = [
            format!("\n/// Closes. {sample}\nfn f() {{}}"),
            format!("\nfn f() {{\n    g(); // {sample}\n}}"),
            format!("\nfn f() {{ g(\"{sample}\") }}"),
            format!("\nfn f() {{ g(\"\\\n    {}\") }}", sample.replace(' ', " \\\n    ")),
        ];
        for text in texts {
            let hits = words_in("domain/a.rs", &text);
            assert_eq!(hits.len(), 1, "{rule}: {text}: {hits:?}");
            assert!(hits[0].contains(instead), "{rule}: {hits:?}");
        }
    }
    assert_eq!(words_in("domain/a.rs", "\n//! Evicts a session, then\n//! lets\n//! go of it.").len(), 1);
    assert!(words_in("domain/a.rs", "\n\n/// A.\n/// It was told.")[0].starts_with("domain/a.rs:4: comment:"));
}

#[test]
fn sentences_without_a_subject_are_found() {
    for text in [
        "/// Who wants it.",
        "/// Whose turn it is.",
        "/// What came back.",
        "//! What signs, the newest first.",
        "/// That client is back.",
        "/// Those that are being moved.",
        "/// It did not begin.",
        "/// How long a post may take.",
        "/// Whether that option allows.",
        "/// So many deliveries there are.",
        "/// Drops stalled subscribers. Who falls behind is evicted.",
        "// Drops them. What arrives later is ignored.",
    ] {
        assert_eq!(words_in("domain/a.rs", text).len(), 1, "{text}");
    }
}

#[test]
fn each_planted_name_is_found() {
    for (path, text, name) in [
        ("transport/a.rs", "struct HttpDoor;", "`HttpDoor`: client, requests or listener"),
        ("transport/a.rs", "const DOOR_QUEUE: u8 = 1;", "`DOOR_QUEUE`"),
        ("runtime/doors.rs", "", "runtime/doors.rs:1: file: `doors`"),
        ("store/tellings.rs", "", "`tellings`: notice or notification"),
        ("store/a.rs", "\nfn telling_of() {}", "store/a.rs:2: name: `telling_of`"),
        ("domain/a.rs", "fn f(wish: X) {}", "`wish`: initiator"),
        ("http/cable.rs", "", "`cable`: connection"),
        ("http/a.rs", "fn f(_cable: Cable) {}", "`Cable`: connection"),
        ("http/a.rs", "enum Frame { Toast }", "`Toast`: notification"),
        ("http/toasts_cli.rs", "", "http/toasts_cli.rs:1: file: `toasts_cli`"),
        ("store/a.rs", "fn create_session_and_tell() {}", "`create_session_and_tell`: notify"),
        ("runtime/a.rs", "enum End { LetGo }", "`LetGo`: release"),
        ("runtime/a.rs", "const LEFT_OUT: u8 = 1;", "`LEFT_OUT`: dropped"),
        ("transport/a.rs", "fn shake_hands() {}", "`shake_hands`: handshake"),
        ("client/line.rs", "", "client/line.rs:1: file: `line`: connection"),
        ("client/a.rs", "struct Line;", "`Line`: connection"),
        ("runtime/a.rs", "fn change_line() {}", "`change_line`: connection"),
    ] {
        let hits = words_in(path, text);
        assert!(hits.iter().any(|it| it.contains(name)), "{name:?} is not among {hits:?}");
    }
    for name in DROPPED.iter().map(|it| it.0).chain(LINES.iter().map(|it| it.0)) {
        assert_eq!(words_in("http/a.rs", &format!("fn {name}() {{}}")).len(), 1, "{name}");
    }
}

#[test]
fn each_planted_test_name_is_found() {
    let long = format!("a_session_{}_closes", "x".repeat(80));
    for name in ["who_answers_is_evicted", "it_closes", "a_caller_is_told", "an_agent_that_is_gone_closes", &long] {
        for path in ["domain/a_tests.rs", "tests/it/sessions.rs"] {
            let hits = words_in(path, &format!("#[test]\nfn {name}() {{}}"));
            let of_tests = hits.iter().filter(|hit| hit.contains(": test name: "));
            assert_eq!(of_tests.count(), 1, "{path}: {name}: {hits:?}");
        }
    }
    let attributes = ["#[tokio::test]", "#[actix_web::test]", "#[tokio::test(flavor = \"x\")]\n#[should_panic]"];
    for attribute in attributes {
        assert_eq!(
            words_in("domain/a.rs", &format!("{attribute}\nasync fn it_closes() {{}}")).len(),
            1,
            "{attribute}"
        );
    }
}

#[test]
fn plain_english_and_wire_names_break_no_rule() {
    for text in [
        "/// Absent where there is none. The cause is none of theirs, and `x` is None.",
        "/// ACP stands for Agent Client Protocol; a stand-in must not stand in the way.",
        "/// The header is well formed and well known.",
        "/// Understands the standard; foretells nothing. Wishful: doorbell, cablegram.",
        "/// Reads `told` and `wish`.\n/// ```text\n/// what was told\n/// ```",
        "/// Converts. Is it done? What happens when the queue is full?",
        "// It was sent before.",
        "#[serde(rename = \"wish\")]\nstruct A { #[serde(rename = \"told\")] reported: bool }",
        "const STREAM: &str = \"toasts\"; const COLUMN: &str = \"telling\"; const KIND: &str = \"stands\";",
        "fn f() { q(\"SELECT told, stands FROM doors\") }",
        "fn f(line: &str) { for line in text.lines() { read_line(line); } }",
        "struct A { toast_message: String } enum B { #[serde(rename = \"toast\")] Notification }",
        "fn perform_handshake() {} fn intellect() {} fn toaster() {} fn outlet_goal() {}",
        "struct Table; struct StrayLine; struct TurnLine; fn json_lines() {} fn one_line() {} fn baseline() {}",
        "fn whatever() {}\n#[test]\nfn a_session_hibernates_when_idle() {}\n#[cfg(test)]\nfn it_helps() {}",
    ] {
        assert_eq!(words_in("store/a.rs", text), [""; 0], "{text}");
    }
    assert_eq!(words_in("store/engine/schema.rs", "table! { doors { wish -> Text } }"), [""; 0]);
    assert_eq!(words_in("process/stdio.rs", "enum Line { Text }"), [""; 0]);
}

#[test]
fn figures_count_rooms_levels_and_arrows() {
    let tree = planted(&[
        ("actors/mod.rs", "pub mod a;\npub mod b;\npub struct Shared;\nuse session::S;"),
        ("actors/a.rs", "use super::b::B;\nuse super::session::S;"),
        ("actors/b.rs", "use super::{Shared, session::S};\npub struct B;"),
        ("actors/session/mod.rs", "pub struct S;"),
        ("actors/session/tests.rs", "use crate::actors::a::A;"),
    ]);
    let imports = imports::Imports::of(&tree);
    let rooms = imports.rooms(&["actors".to_owned()]);
    assert_eq!(rooms.names, BTreeSet::from(["a", "b", "mod", "session"].map(str::to_owned)));
    // a -> b, a -> session, b -> session, b -> mod, mod -> session.
    assert_eq!((rooms.count(), rooms.levels(), rooms.count_of_arrows(), rooms.back_up.len()), (4, 3, 5, 1));
    let figures = figures::figures(&tree);
    let line = figures.lines().find(|line| line.starts_with("actors: 3, 4")).unwrap();
    assert!(line.contains("4 / 3 / 5 (1)"), "{line}");
}
