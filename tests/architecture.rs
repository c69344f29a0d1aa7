//! Holds the source to the invariants of the house: floors, circles, purity, places, sizes, forbidden words.

#[path = "architecture/rules.rs"]
mod rules;
#[path = "architecture/source.rs"]
mod source;

use std::path::Path;

use rules::violations;
use source::{File, Tree};

const MANIFEST: &str = "[dependencies]\nserde = \"1\"\ntokio = \"1\"\ndiesel = \"2\"\nprometheus = \"0\"\n\
    actix-web = \"4\"\nactix-web-actors = \"4\"\nclap = \"4\"\nmystery = \"1\"\n";

fn found_in(files: &[(&str, &str)], manifest: &str) -> Vec<String> {
    let files = files.iter().map(|(path, text)| File::new(path, text)).collect();
    violations(&Tree { files, manifest: manifest.to_owned() })
}

#[test]
fn the_source_keeps_the_rules_of_the_house() {
    let tree = Tree::of_this_crate();
    assert!(tree.files.len() > 20, "the source is there");
    let found = violations(&tree);
    assert!(found.is_empty(), "{} violations:\n  {}", found.len(), found.join("\n  "));
}

#[test]
fn no_test_is_left_out() {
    let mut left_out = Vec::new();
    source::walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"), &mut |path| {
        let (code, _) = source::blank(&std::fs::read_to_string(path).unwrap());
        if code.contains("#[ignore") {
            left_out.push(path.display().to_string());
        }
    });
    assert!(left_out.is_empty(), "tests that do not run: {left_out:?}");
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
        ("http/a.rs", "use crate::{acp::X, client::{self, Y}};", "imports sideways: `http` (floor 5) names `client"),
        ("config/a.rs", "use crate::telemetry::X;", "imports sideways"),
        ("main.rs", "use lumilink::commands; fn f() { lumilink::utils::x() }", ""),
        ("utils/a.rs", "", "`utils` has no floor"),
        ("domain/a.rs", "use tokio::sync::mpsc;", "crate `tokio` may be used from floor 3 on, here is 1"),
        ("http/a.rs", "use diesel::prelude::*;", "crate `diesel` may be used only in store/"),
        ("config/a.rs", "fn f() { prometheus::gather(); }", "crate `prometheus` may be used only in telemetry/"),
        ("http/sessions.rs", "use actix_web_actors::ws;", "only in http/toast_socket.rs, runtime/acp_socket.rs"),
        ("actors/a.rs", "use actix_web::web;", "may be used from floor 5 on"),
        ("app/a.rs", "use clap::Parser;", "may be used from floor 7 on"),
        ("app/a.rs", "use mystery::X;", "crate `mystery` has no place"),
        ("domain/a.rs", "use std::time::{Duration, Instant};", "`std::time::Instant`: domain is pure"),
        ("domain/a.rs", "use std::fs;", "`std::fs`: domain is pure"),
        ("domain/a.rs", "fn f() { Uuid::now_v7(); }", "`Uuid::now_v7`: domain is pure"),
        ("app/a.rs", "fn f() { std::env::var(\"X\"); }", "the environment is read only in config/"),
        ("app/a.rs", "use std::env;", "the environment is read only in config/"),
        ("http/a.rs", "fn f() { HttpResponse::NotFound(); }", "chosen only in contract/problem.rs"),
        ("http/a.rs", "const S: StatusCode = StatusCode::BAD_GATEWAY;", "chosen only in contract/problem.rs"),
        ("actors/a.rs", "\nfn f() { q(\"DELETE FROM sessions\") }", "actors/a.rs:2: SQL stands only in store/"),
        ("actors/a.rs", "fn f() { q(r#\"SELECT \"id\" FROM t\"#) }", "SQL stands only in store/"),
        ("actors/a.rs", "fn f() { a.do_send(M) }", "`do_send`: do_send ignores"),
        ("actors/a.rs", "fn f() { mpsc::unbounded_channel() }", "an unbounded channel"),
        ("actors/a.rs", "fn f() { std::sync::mpsc::channel() }", "an unbounded channel"),
        ("actors/a.rs", "fn f() { x.unwrap() }", "answers with an error instead"),
        ("actors/a.rs", "fn f() { todo!() }", "unfinished code"),
        ("actors/a.rs", "#[cfg(test)]\nmod tests {\n#[test]\n#[ignore]\nfn t() {}\n}", "actors/a.rs:4: `#[ignore`"),
        ("app/a.rs", &long_function, "app/a.rs:1: fn long has 72 lines, at most 70"),
        ("app/a.rs", &long_file, "app/a.rs: 401 lines without tests, at most 400"),
    ] {
        let found = found_in(&[(path, text)], MANIFEST);
        if said.is_empty() {
            assert_eq!(found, [""; 0], "{path}: {text}");
        } else {
            assert!(found.iter().any(|it| it.contains(said)), "{said:?} is not among {found:?}");
        }
    }
    let abort = found_in(&[], "[dependencies]\n[profile.release]\npanic = \"abort\"\n");
    assert!(abort[0].contains("disables supervision"), "{abort:?}");
}

#[test]
fn a_circle_is_found_and_what_a_mod_file_passes_on_is_none() {
    let circle = found_in(
        &[
            ("domain/mod.rs", "pub mod a;\npub mod b;"),
            ("domain/a.rs", "use super::b::B;"),
            ("domain/b.rs", "fn f() { crate::domain::a::g() }"),
        ],
        MANIFEST,
    );
    assert_eq!(circle, ["domain::a: modules in a circle: domain::a -> domain::b -> domain::a"]);
    let none = found_in(
        &[
            ("domain/mod.rs", "pub mod a;\npub mod b;\npub use a::A;\npub use b::B;"),
            ("domain/a.rs", "pub struct A;"),
            ("domain/b.rs", "use super::A;\npub struct B(A);"),
        ],
        MANIFEST,
    );
    assert_eq!(none, [""; 0]);
}

#[test]
fn comments_literals_and_tests_break_no_rule() {
    let text = r##"
        //! use crate::store::Pool; todo!() .unwrap()
        /* std::env::var */
        use crate::acp::jsonrpc;
        const TEXT: &str = "crate::store::x .unwrap() \" do_send // not a comment";
        const RAW: &str = r#"todo!("x") { "#;
        const QUOTE: char = '"';
        const BRACE: char = '{';
        fn f<'a>(text: &'a str, list: [u8; 3]) -> &'a str { text }
        #[cfg(test)]
        mod tests {
            use std::{env, fs};
            use crate::http::X;
            fn t() { x.unwrap(); q("DELETE FROM x"); }
        }
    "##;
    assert_eq!(found_in(&[("domain/a.rs", text)], MANIFEST), [""; 0]);
    let outside = "use std::env;\nfn t() { x.unwrap(); }\n".to_owned() + &"t();\n".repeat(500);
    for path in ["domain/a_tests.rs", "store/tests/fixture.rs"] {
        assert_eq!(found_in(&[(path, &outside)], MANIFEST), [""; 0]);
    }
}
