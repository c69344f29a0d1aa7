//! Operators' alerts at a webhook: signed, at least once under one id, given up and replayed, without a secret anywhere.

use std::{
    collections::BTreeSet,
    fs,
    process::Command,
    time::{Duration, Instant},
};

use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, connection::SimpleConnection, sql_types};
use standardwebhooks::Webhook;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::harness::{
    DEADLINE, Program, Session, Value, eventually, json, lumilink,
    program::{Builder, Folder},
    receiver::{Post, Receiver, Reply},
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const PREVIOUS: &str = "correct-horse-battery-staple-424242";
const PATH: &str = "/hooks/T0ken424242?key=Qu3ry424242";

/// Long before the program looks without being woken.
const PROMPT: Duration = Duration::from_secs(15);

/// A program that posts there, tries again soon, and alerts when one of its two seats is taken. A post waits longer for its
/// answer than a busy machine takes to give one: another try would be one too many.
pub(crate) fn posting(url: &str) -> Builder {
    let mut builder = Program::builder().env("LUMILINK_WEBHOOK__SECRET", SECRET);
    for (key, value) in [
        ("webhook.url", url),
        ("webhook.timeout_s", "10"),
        ("webhook.max_retry_s", "1"),
        ("capacity.max_sessions", "2"),
        ("capacity.resolve_bp", "4000"),
        ("capacity.warn_bp", "5000"),
        ("capacity.critical_bp", "10000"),
        ("capacity.resolve_after_s", "0"),
    ] {
        builder = builder.set(key, value);
    }
    builder
}

/// Takes a seat: one alert. Given back, it is resolved: another one.
fn alerts(program: &Program) -> Session {
    program.api.open("ws")
}

fn resolves(session: &Session) {
    session.post("close", json!({})).expect(200);
}

fn deliveries(program: &Program, query: &str) -> Vec<Value> {
    let page = program.api.get(&format!("/acp/webhooks/deliveries{query}")).expect(200);
    page["items"].as_array().expect("items").clone()
}

fn are(program: &Program, state: &str, count: usize) -> Vec<Value> {
    eventually(&format!("{count} are {state}"), || deliveries(program, &format!("?state={state}")).len() == count);
    deliveries(program, &format!("?state={state}"))
}

fn tried(program: &Program, outcome: &str) -> f64 {
    program.metrics().sum("lumilink_webhook_attempts_total", &[("outcome", outcome)])
}

fn ids(posts: &[Post]) -> BTreeSet<String> {
    posts.iter().map(|post| post.header("webhook-id").to_owned()).collect()
}

/// What the specification's library says to the bytes as they came.
fn verifies(post: &Post, receiver: &Webhook) {
    receiver.verify(&post.body, &post.headers).unwrap_or_else(|cause| panic!("{cause}: {post:?}"));
    let mut other = post.body.clone();
    *other.last_mut().expect("a body") = b' ';
    assert!(receiver.verify(&other, &post.headers).is_err(), "it covers the body");
}

/// The receiver got one message, whole and signed, however often.
fn is_one(posts: &[Post]) -> &Post {
    let receiver = Webhook::new(SECRET).expect("a secret");
    for post in posts {
        verifies(post, &receiver);
        assert_eq!((post.header("webhook-id"), &post.body), (posts[0].header("webhook-id"), &posts[0].body));
        assert!(post.line.starts_with("POST ") && post.header("content-type") == "application/json");
        assert!(post.header("user-agent").starts_with("lumilink/"));
    }
    &posts[0]
}

/// How long after an audit row a post came.
fn after(row: &Value, post: &Post) -> Duration {
    let created = OffsetDateTime::parse(row["createdAt"].as_str().expect("a time"), &Rfc3339).expect("a time");
    let since = OffsetDateTime::now_utc() - created;
    Duration::try_from(since).unwrap_or_default().saturating_sub(post.at.elapsed())
}

fn command(program: &Program, arguments: &[&str]) -> String {
    let output = Command::new(lumilink())
        .arg("webhook")
        .args(arguments)
        .env("LUMILINK_URL", program.api.base())
        .env("HOME", program.folder.path())
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[derive(Debug, QueryableByName)]
struct Kept {
    #[diesel(sql_type = sql_types::Text)]
    delivery_id: String,
    #[diesel(sql_type = sql_types::Text)]
    state: String,
    #[diesel(sql_type = sql_types::Integer)]
    attempts: i32,
}

/// The rows, whether the program runs or not.
fn kept(folder: &Folder) -> Vec<Kept> {
    let path = folder.path().join("data/lumilink.db");
    let mut connection = SqliteConnection::establish(path.to_str().expect("UTF-8")).expect("the database is there");
    connection.batch_execute("PRAGMA busy_timeout = 5000").expect("a pragma");
    let query = "SELECT delivery_id, state, attempts FROM webhook_deliveries ORDER BY created_us, delivery_id";
    diesel::sql_query(query).load(&mut connection).expect("the rows")
}

#[test]
fn fr_010_an_alert_is_posted_signed_and_again_under_its_id_where_it_was_not_taken() {
    is_posted_on(|builder| builder);
}

#[test]
fn fr_010_on_postgresql_as_well() {
    is_posted_on(Builder::postgres);
}

fn is_posted_on(database: fn(Builder) -> Builder) {
    let receiver = Receiver::start([Reply::Status(500)]);
    let program = database(posting(&receiver.url())).start();
    let _session = alerts(&program);
    let posts = receiver.gets(2);
    let post = is_one(&posts);
    let event = post.json();
    program.api.contract().check_component("WebhookEvent", &event);
    assert_eq!((&event["type"], &event["notification"]["trigger"]), (&json!("notification"), &json!("capacity")));
    assert_eq!(event["notification"]["body"], "Capacity is near its limit: 1 of 2 seats are taken.");
    let told = program.api.get("/acp/audit/notifications").expect(200)["items"][0].clone();
    assert!(after(&told, post) < PROMPT, "the commit wakes who posts: {told}");
    let delivery = are(&program, "delivered", 1).remove(0);
    assert_eq!(delivery["deliveryId"], post.header("webhook-id"));
    assert_eq!(delivery["notificationId"], event["notification"]["id"]);
    assert_eq!(told["notificationId"], event["notification"]["id"], "{told}");
    assert_eq!((&delivery["attempts"], &delivery["lastStatus"]), (&json!(2), &json!(200)));
    assert_eq!((tried(&program, "delivered"), tried(&program, "retried"), tried(&program, "dead")), (1.0, 1.0, 0.0));
    assert_eq!(receiver.posts().len(), 2);
}

#[test]
fn every_way_to_lose_an_answer_leads_to_another_try_under_the_same_id() {
    let elsewhere = Receiver::start([]);
    let script = [
        Reply::Lost,
        Reply::With(307, format!("Location: {}/", elsewhere.url())),
        Reply::With(503, "Retry-After: 3".into()),
    ];
    let receiver = Receiver::start(script);
    let program = posting(&receiver.url()).start();
    let _session = alerts(&program);
    let posts = receiver.gets(4);
    is_one(&posts);
    let waited = posts[3].at - posts[2].at;
    assert!(waited >= Duration::from_millis(2900), "it asked for 3 s and got {waited:?}");
    let delivery = are(&program, "delivered", 1).remove(0);
    assert_eq!((&delivery["attempts"], receiver.posts().len()), (&json!(4), 4));
    assert!(elsewhere.posts().is_empty(), "a redirect is not followed");
    assert_eq!(tried(&program, "retried"), 3.0);
}

#[test]
fn an_answer_that_comes_too_late_leads_to_another_try_under_the_same_id() {
    let receiver = Receiver::start([Reply::Late]);
    let program = posting(&receiver.url()).set("webhook.timeout_s", 2).start();
    let _session = alerts(&program);
    let delivery = are(&program, "delivered", 1).remove(0);
    let posts = receiver.posts();
    is_one(&posts);
    let waited = posts[1].at - posts[0].at;
    assert!(waited >= Duration::from_millis(1900), "it has 2 s and got {waited:?}");
    // Of those that are answered at once, one may be late too where the machine is busy.
    let attempts = delivery["attempts"].as_f64().expect("a number");
    assert!(attempts >= 2.0, "{delivery}");
    assert_eq!((tried(&program, "retried"), tried(&program, "delivered")), (attempts - 1.0, 1.0));
}

#[test]
fn a_slow_or_endless_answer_is_taken_by_its_status() {
    let receiver = Receiver::start([Reply::Drip, Reply::Huge]);
    let program = posting(&receiver.url()).start();
    let begin = Instant::now();
    resolves(&alerts(&program));
    are(&program, "delivered", 2);
    assert!(begin.elapsed() < DEADLINE, "it was not read to its end");
    assert_eq!((receiver.posts().len(), ids(&receiver.posts()).len()), (2, 2));
    assert!(receiver.taken() < 32 << 20, "{} bytes were taken", receiver.taken());
}

#[test]
fn what_is_refused_for_good_is_given_up_at_once_listed_and_replayed_by_the_command() {
    let receiver = Receiver::start([Reply::Status(410)]);
    let mut program = posting(&receiver.url()).start();
    program.expect_error("a post to the operators' webhook was given up");
    let _session = alerts(&program);
    let dead = are(&program, "dead", 1).remove(0);
    assert_eq!((&dead["attempts"], &dead["lastStatus"]), (&json!(1), &json!(410)));
    assert_eq!(receiver.posts().len(), 1);
    let gauge = |state| program.metrics().sum("lumilink_webhook_deliveries", &[("state", state)]);
    eventually("it is counted", || gauge("dead") == 1.0);
    let id = dead["deliveryId"].as_str().expect("an id");
    let listed = command(&program, &["list", "--state", "dead"]);
    assert!(listed.starts_with(&format!("{id}  dead  ")) && listed.ends_with("  status 410\n"), "{listed}");
    assert_eq!(command(&program, &["list", "--state", "pending"]), "");
    let said = command(&program, &["replay", id, "--json"]);
    let replayed = Instant::now();
    assert_eq!(serde_json::from_str::<Value>(&said).expect("JSON")["state"], "pending");
    let posts = receiver.gets(2);
    is_one(&posts);
    assert!(posts[1].at.saturating_duration_since(replayed) < PROMPT, "a replay wakes who posts");
    assert_eq!(are(&program, "delivered", 1)[0]["attempts"], 1);
    eventually("it is counted no more", || gauge("dead") == 0.0);
    let unknown = program.api.post(&format!("/acp/webhooks/deliveries/{}/replay", uuid::Uuid::now_v7()), json!({}));
    unknown.problem(404, "not_found");
    program.api.post("/acp/webhooks/deliveries/nonsense/replay", json!({})).problem(404, "not_found");
    program.api.get("/acp/webhooks/deliveries?state=lost").problem(400, "invalid_request");
}

#[test]
fn after_the_last_try_it_is_given_up_and_all_of_those_are_replayed_at_once() {
    let receiver = Receiver::start(vec![Reply::Status(503); 4]);
    let mut program = posting(&receiver.url()).set("webhook.max_attempts", 2).start();
    program.expect_error("a post to the operators' webhook was given up");
    resolves(&alerts(&program));
    let dead = are(&program, "dead", 2);
    assert!(dead.iter().all(|dead| dead["attempts"] == 2 && dead["lastStatus"] == 503), "{dead:?}");
    let before = receiver.posts();
    assert_eq!((before.len(), ids(&before).len()), (4, 2));
    let page = program.api.get("/acp/webhooks/deliveries?state=dead&limit=1").expect(200);
    let next = page["nextCursor"].as_str().expect("another page");
    let rest = program.api.get(&format!("/acp/webhooks/deliveries?state=dead&limit=1&cursor={next}")).expect(200);
    assert_eq!(json!([page["items"][0], rest["items"][0]]), json!(dead));
    assert_eq!(command(&program, &["replay", "--dead"]), "replayed: 2\n");
    are(&program, "delivered", 2);
    assert_eq!((receiver.posts().len(), ids(&receiver.posts())), (6, ids(&before)));
    assert_eq!((tried(&program, "dead"), tried(&program, "delivered")), (2.0, 2.0));
}

#[test]
fn what_a_killed_program_had_not_posted_is_posted_by_the_next_one() {
    // All that may be out are out, so that what comes is on disk and nowhere else.
    let receiver = Receiver::start(vec![Reply::Held; 4]);
    let start = || posting(&receiver.url()).set("webhook.timeout_s", 60);
    let mut program = start().start();
    for _ in 0..2 {
        resolves(&alerts(&program));
    }
    let out = ids(&receiver.gets(4));
    resolves(&alerts(&program));
    let folder = program.folder.clone();
    eventually("the rows are written", || kept(&folder).len() == 6);
    program.kill();
    drop(program);
    let rows = kept(&folder);
    let unposted: BTreeSet<_> =
        rows.iter().filter(|row| row.attempts == 0).map(|row| row.delivery_id.clone()).collect();
    assert_eq!((unposted.len(), out.is_disjoint(&unposted)), (2, true), "{rows:?}");
    assert!(rows.iter().all(|row| row.state == "pending"), "{rows:?}");
    let _program = start().folder(&folder).start();
    let posts = receiver.gets(6);
    assert_eq!(ids(&posts[4..]), unposted);
}

#[test]
fn what_was_out_when_the_program_was_killed_is_posted_again_under_its_id() {
    let receiver = Receiver::start([Reply::Late]);
    // What this one has taken is its own until shortly after that.
    let mut program = posting(&receiver.url()).set("webhook.timeout_s", 2).start();
    let _session = alerts(&program);
    receiver.gets(1);
    program.kill();
    let folder = program.folder.clone();
    drop(program);
    let program = posting(&receiver.url()).folder(&folder).start();
    let posts = receiver.gets(2);
    // The start found the seat free again, and told that too.
    let again: Vec<_> =
        posts.iter().filter(|post| post.header("webhook-id") == posts[0].header("webhook-id")).cloned().collect();
    is_one(&again);
    eventually("all are delivered", || kept(&folder).iter().all(|row| row.state == "delivered"));
    let posts = receiver.posts();
    let again: Vec<_> =
        posts.iter().filter(|post| post.header("webhook-id") == posts[0].header("webhook-id")).cloned().collect();
    assert_eq!(again.len(), 2);
    is_one(&again);
    assert!(!deliveries(&program, "").is_empty());
}

#[test]
fn a_drain_waits_for_the_post_that_is_out() {
    let receiver = Receiver::start([Reply::Held]);
    let mut program = posting(&receiver.url()).set("webhook.timeout_s", 60).start();
    resolves(&alerts(&program));
    receiver.gets(2);
    eventually("one is delivered", || deliveries(&program, "?state=delivered").len() == 1);
    program.signal(libc::SIGTERM);
    eventually("it serves no more", || std::net::TcpStream::connect(program.address).is_err());
    assert!(kept(&program.folder).iter().any(|row| row.state == "pending"));
    receiver.release();
    assert_eq!(program.ends(DEADLINE), Some(0));
    assert!(kept(&program.folder).iter().all(|row| row.state == "delivered" && row.attempts == 1));
}

#[test]
fn fr_008_both_secrets_sign_and_neither_they_nor_the_address_are_anywhere_to_be_seen() {
    let receiver = Receiver::start([Reply::Lost, Reply::Status(401), Reply::Status(302)]);
    let url = receiver.url().replace("http://", "http://user:Passw0rd424242@") + PATH;
    let mut program =
        posting(&url).env("LUMILINK_WEBHOOK__PREVIOUS_SECRET", PREVIOUS).set("log.level", "debug").start();
    program.expect_error("a post to the operators' webhook was given up");
    resolves(&alerts(&program));
    let posts = receiver.gets(3);
    for post in &posts {
        assert_eq!(post.header("webhook-signature").split(' ').count(), 2);
        verifies(post, &Webhook::new(SECRET).expect("a secret"));
        verifies(post, &Webhook::from_bytes(PREVIOUS.into()).expect("a secret"));
        assert!(
            post.line.starts_with(&format!("POST {PATH} ")) && post.header("authorization").starts_with("Basic ")
        );
    }
    eventually("nothing is pending", || deliveries(&program, "?state=pending").is_empty());
    let mut shown = program.log();
    for path in ["/acp/webhooks/deliveries", "/acp/health", "/acp/audit/notifications", "/metrics"] {
        shown += &program.api.get(path).text;
    }
    shown += &command(&program, &["list"]);
    for entry in fs::read_dir(program.folder.path().join("data")).expect("the data folder") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            shown += &String::from_utf8_lossy(&fs::read(path).expect("a file"));
        }
    }
    assert!(shown.contains(&receiver.url()), "the origin is shown");
    for secret in
        [SECRET, SECRET.trim_start_matches("whsec_"), PREVIOUS, "T0ken424242", "Qu3ry424242", "Passw0rd424242"]
    {
        assert!(!shown.contains(secret), "{secret} is to be seen");
    }
}

#[test]
fn without_a_webhook_nothing_is_kept_for_one_and_nothing_can_be_replayed() {
    let program = Program::builder().set("capacity.max_sessions", 1).start();
    let _session = program.api.open("ws");
    eventually("operators are told", || {
        !program.api.get("/acp/audit/notifications").expect(200)["items"].as_array().expect("items").is_empty()
    });
    assert!(deliveries(&program, "").is_empty());
    let refused = program.api.post("/acp/webhooks/deliveries/replay", json!({}));
    assert!(
        refused.problem(400, "invalid_request")["detail"].as_str().is_some_and(|it| it.contains("[webhook] url"))
    );
}
