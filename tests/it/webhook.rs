//! Delivery of operator alerts to a webhook: signed, at least once under one id, dead letters and replay, and no
//! exposed secrets.

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
    tokens,
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const PREVIOUS: &str = "correct-horse-battery-staple-424242";
const PATH: &str = "/hooks/T0ken424242?key=Qu3ry424242";

/// Shorter than the interval at which the program polls for deliveries without a wake-up.
const PROMPT: Duration = Duration::from_secs(15);

/// A program that posts to `url`, retries within 1 s, and raises an alert when one of its two sessions is open. The
/// timeout of a post is longer than a busy machine takes to respond, so that no test sees an extra attempt.
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

/// Opens a session, which raises one alert. Closing it raises another one; see [`resolve_alert`].
fn raise_alert(program: &Program) -> Session {
    program.api.open("ws")
}

fn resolve_alert(session: &Session) {
    session.post("close", json!({})).expect(200);
    // The alert ends after the answer; a session that opens before it would keep the alert.
    eventually("the alert is resolved", || session.api.get("/acp/health").expect(200)["capacity"]["level"] == "ok");
}

fn deliveries(program: &Program, query: &str) -> Vec<Value> {
    let page = program.api.get(&format!("/acp/webhooks/deliveries{query}")).expect(200);
    page["items"].as_array().expect("items").clone()
}

/// Waits until exactly `count` deliveries are in `state`; returns them.
fn deliveries_in(program: &Program, state: &str, count: usize) -> Vec<Value> {
    eventually(&format!("{count} deliveries are {state}"), || {
        deliveries(program, &format!("?state={state}")).len() == count
    });
    deliveries(program, &format!("?state={state}"))
}

fn attempt_count(program: &Program, outcome: &str) -> f64 {
    program.metrics().sum("lumilink_webhook_attempts_total", &[("outcome", outcome)])
}

fn ids(posts: &[Post]) -> BTreeSet<String> {
    posts.iter().map(|post| post.header("webhook-id").to_owned()).collect()
}

/// Verifies the received bytes with the library of the Standard Webhooks specification.
fn verify(post: &Post, receiver: &Webhook) {
    receiver.verify(&post.body, &post.headers).unwrap_or_else(|cause| panic!("{cause}: {post:?}"));
    let mut other = post.body.clone();
    *other.last_mut().expect("a body") = b' ';
    assert!(receiver.verify(&other, &post.headers).is_err(), "the signature covers the body");
}

/// Fails the test unless all posts are the same complete, signed message; returns the first.
fn assert_same_message(posts: &[Post]) -> &Post {
    let receiver = Webhook::new(SECRET).expect("a secret");
    for post in posts {
        verify(post, &receiver);
        assert_eq!((post.header("webhook-id"), &post.body), (posts[0].header("webhook-id"), &posts[0].body));
        assert!(post.line.starts_with("POST ") && post.header("content-type") == "application/json");
        assert!(post.header("user-agent").starts_with("lumilink/"));
    }
    &posts[0]
}

/// The time from the creation of an audit row to a post.
fn after(row: &Value, post: &Post) -> Duration {
    let created = OffsetDateTime::parse(row["createdAt"].as_str().expect("a time"), &Rfc3339).expect("a time");
    let since = OffsetDateTime::now_utc() - created;
    Duration::try_from(since).unwrap_or_default().saturating_sub(post.at.elapsed())
}

fn command(program: &Program, arguments: &[&str]) -> String {
    let output = Command::new(lumilink())
        .arg("webhook")
        .args(arguments)
        .envs(tokens::variables(&program.api.base()))
        .env("HOME", program.folder.path())
        .output()
        .expect("the program runs");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    stdout
}

#[derive(Debug, QueryableByName)]
struct DeliveryRow {
    #[diesel(sql_type = sql_types::Text)]
    delivery_id: String,
    #[diesel(sql_type = sql_types::Text)]
    state: String,
    #[diesel(sql_type = sql_types::Integer)]
    attempts: i32,
}

/// The rows in the database, whether the program runs or not.
fn delivery_rows(folder: &Folder) -> Vec<DeliveryRow> {
    let path = folder.path().join("data/lumilink.db");
    let mut connection = SqliteConnection::establish(path.to_str().expect("UTF-8")).expect("the database is there");
    connection.batch_execute("PRAGMA busy_timeout = 5000").expect("a pragma");
    let query = "SELECT delivery_id, state, attempts FROM webhook_deliveries ORDER BY created_us, delivery_id";
    diesel::sql_query(query).load(&mut connection).expect("the rows")
}

#[test]
fn fr_010_alert_is_posted_signed_and_retried_under_the_same_id() {
    alert_is_posted_and_retried(|builder| builder);
}

#[test]
fn fr_010_alert_is_posted_and_retried_on_postgresql() {
    alert_is_posted_and_retried(Builder::postgres);
}

fn alert_is_posted_and_retried(database: fn(Builder) -> Builder) {
    let receiver = Receiver::start([Reply::Status(500)]);
    let program = database(posting(&receiver.url())).start();
    let _session = raise_alert(&program);
    let posts = receiver.gets(2);
    let post = assert_same_message(&posts);
    let event = post.json();
    program.api.contract().check_component("WebhookEvent", &event);
    assert_eq!((&event["type"], &event["notification"]["trigger"]), (&json!("notification"), &json!("capacity")));
    assert_eq!(event["notification"]["body"], "Capacity nears its limit: 1 of 2 seats are taken.");
    let figures = json!({"event": "capacity.raised", "kind": "raised", "level": "warning", "taken": 1, "limit": 2});
    assert_eq!((&event["version"], &event["data"]), (&json!(1), &figures), "the figures are data too: {event}");
    assert_eq!(event["timestamp"], event["notification"]["createdAt"]);
    let row = program.api.get("/acp/audit/notifications").expect(200)["items"][0].clone();
    assert!(after(&row, post) < PROMPT, "the commit wakes the poster: {row}");
    let delivery = deliveries_in(&program, "delivered", 1).remove(0);
    assert_eq!(delivery["deliveryId"], post.header("webhook-id"));
    assert_eq!(delivery["notificationId"], event["notification"]["id"]);
    assert_eq!(row["notificationId"], event["notification"]["id"], "{row}");
    assert_eq!((&delivery["attempts"], &delivery["lastStatus"]), (&json!(2), &json!(200)));
    assert_eq!(
        (attempt_count(&program, "delivered"), attempt_count(&program, "retried"), attempt_count(&program, "dead")),
        (1.0, 1.0, 0.0)
    );
    assert_eq!(receiver.posts().len(), 2);
}

#[test]
fn lost_redirected_or_refused_post_is_retried_under_the_same_id() {
    let elsewhere = Receiver::start([]);
    let script = [
        Reply::Lost,
        Reply::With(307, format!("Location: {}/", elsewhere.url())),
        Reply::With(503, "Retry-After: 3".into()),
    ];
    let receiver = Receiver::start(script);
    let program = posting(&receiver.url()).start();
    let _session = raise_alert(&program);
    let posts = receiver.gets(4);
    assert_same_message(&posts);
    let waited = posts[3].at - posts[2].at;
    assert!(waited >= Duration::from_millis(2900), "Retry-After was 3 s, the retry came after {waited:?}");
    let delivery = deliveries_in(&program, "delivered", 1).remove(0);
    assert_eq!((&delivery["attempts"], receiver.posts().len()), (&json!(4), 4));
    assert!(elsewhere.posts().is_empty(), "a redirect is not followed");
    assert_eq!(attempt_count(&program, "retried"), 3.0);
}

#[test]
fn late_response_causes_a_retry_under_the_same_id() {
    let receiver = Receiver::start([Reply::Late]);
    let program = posting(&receiver.url()).set("webhook.timeout_s", 2).start();
    let _session = raise_alert(&program);
    let delivery = deliveries_in(&program, "delivered", 1).remove(0);
    let posts = receiver.posts();
    assert_same_message(&posts);
    let waited = posts[1].at - posts[0].at;
    assert!(waited >= Duration::from_millis(1900), "the timeout is 2 s, the retry came after {waited:?}");
    // On a busy machine a later response may miss the timeout too.
    let attempts = delivery["attempts"].as_f64().expect("a number");
    assert!(attempts >= 2.0, "{delivery}");
    assert_eq!((attempt_count(&program, "retried"), attempt_count(&program, "delivered")), (attempts - 1.0, 1.0));
}

#[test]
fn slow_or_endless_response_body_counts_by_its_status() {
    let receiver = Receiver::start([Reply::Drip, Reply::Huge]);
    let program = posting(&receiver.url()).start();
    let begin = Instant::now();
    resolve_alert(&raise_alert(&program));
    deliveries_in(&program, "delivered", 2);
    assert!(begin.elapsed() < DEADLINE, "the program stops reading the bodies");
    assert_eq!((receiver.posts().len(), ids(&receiver.posts()).len()), (2, 2));
    assert!(receiver.taken() < 32 << 20, "{} bytes were read", receiver.taken());
}

#[test]
fn permanently_refused_post_is_dead_at_once_and_replayed_by_the_command() {
    let receiver = Receiver::start([Reply::Status(410)]);
    let mut program = posting(&receiver.url()).start();
    program.expect_error("webhook post was given up");
    let _session = raise_alert(&program);
    let dead = deliveries_in(&program, "dead", 1).remove(0);
    assert_eq!((&dead["attempts"], &dead["lastStatus"]), (&json!(1), &json!(410)));
    assert_eq!(receiver.posts().len(), 1);
    let gauge = |state| program.metrics().sum("lumilink_webhook_deliveries", &[("state", state)]);
    eventually("the dead delivery is counted", || gauge("dead") == 1.0);
    let id = dead["deliveryId"].as_str().expect("an id");
    let listed = command(&program, &["list", "--state", "dead"]);
    assert!(listed.starts_with(&format!("{id}  dead  ")) && listed.ends_with("  status 410\n"), "{listed}");
    assert_eq!(command(&program, &["list", "--state", "pending"]), "");
    let output = command(&program, &["replay", id, "--json"]);
    let replayed = Instant::now();
    assert_eq!(serde_json::from_str::<Value>(&output).expect("JSON")["state"], "pending");
    let posts = receiver.gets(2);
    assert_same_message(&posts);
    assert!(posts[1].at.saturating_duration_since(replayed) < PROMPT, "a replay wakes the poster");
    assert_eq!(deliveries_in(&program, "delivered", 1)[0]["attempts"], 1);
    eventually("no dead delivery is counted", || gauge("dead") == 0.0);
    let unknown = program.api.post(&format!("/acp/webhooks/deliveries/{}/replay", uuid::Uuid::now_v7()), json!({}));
    unknown.problem(404, "not_found");
    program.api.post("/acp/webhooks/deliveries/nonsense/replay", json!({})).problem(404, "not_found");
    program.api.get("/acp/webhooks/deliveries?state=lost").problem(400, "invalid_request");
}

#[test]
fn exhausted_posts_become_dead_and_are_replayed_together() {
    let receiver = Receiver::start(vec![Reply::Status(503); 4]);
    let mut program = posting(&receiver.url()).set("webhook.max_attempts", 2).start();
    program.expect_error("webhook post was given up");
    resolve_alert(&raise_alert(&program));
    let dead = deliveries_in(&program, "dead", 2);
    assert!(dead.iter().all(|dead| dead["attempts"] == 2 && dead["lastStatus"] == 503), "{dead:?}");
    let before = receiver.posts();
    assert_eq!((before.len(), ids(&before).len()), (4, 2));
    let page = program.api.get("/acp/webhooks/deliveries?state=dead&limit=1").expect(200);
    let next = page["nextCursor"].as_str().expect("another page");
    let rest = program.api.get(&format!("/acp/webhooks/deliveries?state=dead&limit=1&cursor={next}")).expect(200);
    assert_eq!(json!([page["items"][0], rest["items"][0]]), json!(dead));
    assert_eq!(command(&program, &["replay", "--dead"]), "replayed: 2\n");
    deliveries_in(&program, "delivered", 2);
    assert_eq!((receiver.posts().len(), ids(&receiver.posts())), (6, ids(&before)));
    assert_eq!((attempt_count(&program, "dead"), attempt_count(&program, "delivered")), (2.0, 2.0));
}

#[test]
fn posts_left_by_a_killed_program_are_sent_after_restart() {
    // The maximum number of posts is in flight, so that further ones are only on disk.
    let receiver = Receiver::start(vec![Reply::Held; 4]);
    let start = || posting(&receiver.url()).set("webhook.timeout_s", 60);
    let mut program = start().start();
    for _ in 0..2 {
        resolve_alert(&raise_alert(&program));
    }
    let in_flight = ids(&receiver.gets(4));
    resolve_alert(&raise_alert(&program));
    let folder = program.folder.clone();
    eventually("the rows are written", || delivery_rows(&folder).len() == 6);
    program.kill();
    drop(program);
    let rows = delivery_rows(&folder);
    let unposted: BTreeSet<_> =
        rows.iter().filter(|row| row.attempts == 0).map(|row| row.delivery_id.clone()).collect();
    assert_eq!((unposted.len(), in_flight.is_disjoint(&unposted)), (2, true), "{rows:?}");
    assert!(rows.iter().all(|row| row.state == "pending"), "{rows:?}");
    let _program = start().folder(&folder).start();
    let posts = receiver.gets(6);
    assert_eq!(ids(&posts[4..]), unposted);
}

#[test]
fn post_in_flight_at_a_kill_is_sent_again_under_its_id() {
    let receiver = Receiver::start([Reply::Late]);
    // The killed program's lease on the delivery ends shortly after the timeout.
    let mut program = posting(&receiver.url()).set("webhook.timeout_s", 2).start();
    let _session = raise_alert(&program);
    receiver.gets(1);
    program.kill();
    let folder = program.folder.clone();
    drop(program);
    let program = posting(&receiver.url()).folder(&folder).start();
    let posts = receiver.gets(2);
    // The restart found the capacity available again, which is another alert.
    let again: Vec<_> =
        posts.iter().filter(|post| post.header("webhook-id") == posts[0].header("webhook-id")).cloned().collect();
    assert_same_message(&again);
    eventually("all alerts are delivered", || delivery_rows(&folder).iter().all(|row| row.state == "delivered"));
    let posts = receiver.posts();
    let again: Vec<_> =
        posts.iter().filter(|post| post.header("webhook-id") == posts[0].header("webhook-id")).cloned().collect();
    assert_eq!(again.len(), 2);
    assert_same_message(&again);
    assert!(!deliveries(&program, "").is_empty());
}

#[test]
fn drain_waits_for_the_post_in_flight() {
    let receiver = Receiver::start([Reply::Held]);
    let mut program = posting(&receiver.url()).set("webhook.timeout_s", 60).start();
    resolve_alert(&raise_alert(&program));
    receiver.gets(2);
    eventually("one alert is delivered", || deliveries(&program, "?state=delivered").len() == 1);
    program.signal(libc::SIGTERM);
    eventually("the program no longer accepts connections", || {
        std::net::TcpStream::connect(program.address).is_err()
    });
    assert!(delivery_rows(&program.folder).iter().any(|row| row.state == "pending"));
    receiver.release();
    assert_eq!(program.ends(DEADLINE), Some(0));
    assert!(delivery_rows(&program.folder).iter().all(|row| row.state == "delivered" && row.attempts == 1));
}

#[test]
fn fr_008_both_secrets_sign_and_neither_secrets_nor_url_path_are_exposed() {
    let receiver = Receiver::start([Reply::Lost, Reply::Status(401), Reply::Status(302)]);
    let url = receiver.url().replace("http://", "http://user:Passw0rd424242@") + PATH;
    let mut program =
        posting(&url).env("LUMILINK_WEBHOOK__PREVIOUS_SECRET", PREVIOUS).set("log.level", "debug").start();
    program.expect_error("webhook post was given up");
    resolve_alert(&raise_alert(&program));
    let posts = receiver.gets(3);
    for post in &posts {
        assert_eq!(post.header("webhook-signature").split(' ').count(), 2);
        verify(post, &Webhook::new(SECRET).expect("a secret"));
        verify(post, &Webhook::from_bytes(PREVIOUS.into()).expect("a secret"));
        assert!(
            post.line.starts_with(&format!("POST {PATH} ")) && post.header("authorization").starts_with("Basic ")
        );
    }
    eventually("nothing is pending", || deliveries(&program, "?state=pending").is_empty());
    let mut exposed = program.log();
    for path in ["/acp/webhooks/deliveries", "/acp/health", "/acp/audit/notifications", "/metrics"] {
        exposed += &program.api.get(path).text;
    }
    exposed += &command(&program, &["list"]);
    for entry in fs::read_dir(program.folder.path().join("data")).expect("the data folder") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            exposed += &String::from_utf8_lossy(&fs::read(path).expect("a file"));
        }
    }
    assert!(exposed.contains(&receiver.url()), "the origin is not secret");
    for secret in
        [SECRET, SECRET.trim_start_matches("whsec_"), PREVIOUS, "T0ken424242", "Qu3ry424242", "Passw0rd424242"]
    {
        assert!(!exposed.contains(secret), "{secret} is exposed");
    }
}

#[test]
fn nothing_is_queued_or_replayable_without_a_webhook() {
    let program = Program::builder().set("capacity.max_sessions", 1).start();
    let _session = program.api.open("ws");
    eventually("the alert is recorded", || {
        !program.api.get("/acp/audit/notifications").expect(200)["items"].as_array().expect("items").is_empty()
    });
    assert!(deliveries(&program, "").is_empty());
    let refused = program.api.post("/acp/webhooks/deliveries/replay", json!({}));
    assert!(refused.problem(400, "invalid_request")["detail"].as_str().is_some_and(|it| it.contains("webhook.url")));
}
