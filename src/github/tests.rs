use std::time::{Duration, Instant};

use secrecy::SecretString;
use serde_json::{Value, json};

use super::{
    stub::{Answering, Received, Stub},
    *,
};
use crate::domain::automation::github_answer::{Cause, Refusal};

const LIMITS: GithubLimits = GithubLimits { connect: Duration::from_secs(5), request: Duration::from_secs(20) };

fn client_with(github: &Github, api_url: &str, token: &str, max_wait: Duration) -> GithubClient {
    let token = SecretString::from(token);
    GithubClient::new(github, Access { api_url, token: &token, installation: None, max_wait }).unwrap()
}

fn client(stub: &Stub) -> GithubClient {
    client_with(&Github::new(LIMITS), &stub.url, "token-of-a-user", Duration::from_secs(20))
}

/// A server whose answers follow each other; the last one is repeated.
async fn stub_of(mut answers: Vec<Answering>) -> Stub {
    answers.reverse();
    Stub::start(move |_| match answers.len() {
        1 => match &answers[0] {
            Answering::Whole(status, headers, body) => Answering::Whole(*status, headers.clone(), body.clone()),
            Answering::Lost => Answering::Lost,
            Answering::Slow => Answering::Slow,
        },
        _ => answers.pop().unwrap(),
    })
    .await
}

fn ok(body: &Value) -> Answering {
    Answering::json(200, body)
}

#[tokio::test]
async fn request_has_the_headers_that_github_asks_for_and_a_token_of_520_characters() {
    let token = format!("ghs_1234567_eyJ{}.{}", "aB3_-~+/=".repeat(50), "x".repeat(54));
    assert_eq!(token.len(), 520);
    let stub = stub_of(vec![ok(&json!({}))]).await;
    let mut client = client_with(&Github::new(LIMITS), &stub.url, &token, Duration::ZERO);
    client.get::<Value>(&["repos", "octo", "hello"]).await.unwrap();
    let request = stub.received().remove(0);
    assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", "/repos/octo/hello"));
    assert_eq!(request.header("authorization"), format!("Bearer {token}"));
    assert_eq!(request.header("accept"), "application/vnd.github+json");
    assert_eq!(request.header("x-github-api-version"), "2022-11-28");
    assert!(request.header("user-agent").starts_with("lumilink/"));
    assert!(!format!("{client:?}").contains(&token[20..40]));
    let mut bad = client_with(&Github::new(LIMITS), &stub.url, "a\nb", Duration::ZERO);
    assert_eq!(bad.get::<Value>(&[]).await.unwrap_err().cause, Cause::Unusable);
}

#[tokio::test]
async fn reading_is_repeated_after_a_lost_answer_and_an_error_of_the_server() {
    let stub = stub_of(vec![Answering::Lost, Answering::json(502, &json!({})), ok(&json!({"a": 1}))]).await;
    assert_eq!(client(&stub).get::<Value>(&["x"]).await.unwrap(), json!({"a": 1}));
    let stub = stub_of(vec![Answering::json(500, &json!({"message": "Server Error"}))]).await;
    let refusal = client(&stub).get::<Value>(&["x"]).await.unwrap_err();
    assert_eq!((refusal.cause, stub.received().len()), (Cause::Unavailable, 3));
    let stub = stub_of(vec![Answering::json(404, &json!({"message": "Not Found"}))]).await;
    assert_eq!(client(&stub).get::<Value>(&["x"]).await.unwrap_err().cause, Cause::NotFound);
    assert_eq!(stub.received().len(), 1, "a definite answer is not asked for again");
}

#[tokio::test]
async fn error_text_names_scheme_and_host_and_no_path_and_no_token() {
    let lost = client_with(&Github::new(LIMITS), "http://127.0.0.1:1", "hunter2hunter2", Duration::ZERO)
        .get::<Value>(&["path-secret"])
        .await
        .unwrap_err();
    let text = lost.failure(false).message;
    assert!(text.starts_with("no connection to http://127.0.0.1:1: "), "{text}");
    assert!(!text.contains("path-secret") && !text.contains("hunter2"), "{text}");
    let echo = json!({"message": "the token hunter2hunter2 is bad"});
    let stub = stub_of(vec![Answering::json(401, &echo)]).await;
    let mut client = client_with(&Github::new(LIMITS), &stub.url, "hunter2hunter2", Duration::ZERO);
    let refusal = client.get::<Value>(&["x"]).await.unwrap_err();
    assert_eq!(refusal.to_string(), "GitHub answered 401: the token [redacted] is bad");
}

#[tokio::test]
async fn slow_body_ends_at_the_time_limit() {
    let stub = stub_of(vec![Answering::Slow]).await;
    let limits = GithubLimits { request: Duration::from_millis(300), ..LIMITS };
    let mut client = client_with(&Github::new(limits), &stub.url, "token", Duration::ZERO);
    let begun = Instant::now();
    let refusal = client.create::<Value>(&["x"], &json!({})).await.unwrap_err();
    assert!(refusal.is_uncertain() && begun.elapsed() < Duration::from_secs(10));
    assert!(refusal.message.ends_with("within the time limit"), "{}", refusal.message);
}

#[tokio::test]
async fn redirects_of_reads_stay_on_the_host_and_writes_follow_none() {
    let to = |status: u16, target: &str| Answering::Whole(status, vec![format!("Location: {target}")], "{}".into());
    let stub = stub_of(vec![to(301, "/repositories/7"), ok(&json!({"id": 7}))]).await;
    assert_eq!(client(&stub).get::<Value>(&["repos", "old", "name"]).await.unwrap(), json!({"id": 7}));
    assert_eq!(stub.received()[1].target, "/repositories/7");
    let other = stub_of(vec![ok(&json!({}))]).await;
    let stub = stub_of(vec![to(302, &format!("{}/x", other.url))]).await;
    assert_eq!(client(&stub).get::<Value>(&["x"]).await.unwrap_err().cause, Cause::Moved);
    assert!(other.received().is_empty(), "the token is not sent to another host");
    let stub = stub_of(vec![to(301, "/again")]).await;
    assert_eq!(client(&stub).get::<Value>(&["x"]).await.unwrap_err().cause, Cause::Moved);
    assert_eq!(stub.received().len(), 4, "three redirects");
    let stub = stub_of(vec![to(307, "/repositories/7/issues")]).await;
    assert_eq!(client(&stub).create::<Value>(&["x"], &json!({})).await.unwrap_err().cause, Cause::Moved);
    assert_eq!(stub.received().len(), 1);
}

/// Pages of a list of numbers, with links that name another host.
fn pages(last: usize) -> impl FnMut(&Received) -> Answering {
    move |request: &Received| {
        let query = |name: &str| {
            let (_, value) =
                request.target.split(['?', '&']).filter_map(|it| it.split_once('=')).find(|it| it.0 == name)?;
            value.parse::<usize>().ok()
        };
        let page = query("page").unwrap_or(1);
        let size = query("per_page").unwrap_or(30);
        let link = |number: usize, relation: &str| {
            format!("<http://localhost:1/list?per_page={size}&page={number}>; rel=\"{relation}\"")
        };
        let links =
            if page < last { format!("{}, {}", link(page + 1, "next"), link(last, "last")) } else { String::new() };
        Answering::Whole(200, vec![format!("Link: {links}")], json!([page, "odd", null]).to_string())
    }
}

#[tokio::test]
async fn pages_are_followed_on_the_host_of_the_api_up_to_their_bound() {
    let stub = Stub::start(pages(3)).await;
    assert_eq!(client(&stub).list::<u64>(&["list"], &[("state", "all")], 10).await.unwrap(), [1, 2, 3]);
    assert_eq!(stub.received()[0].target, "/list?state=all&per_page=100");
    let stub = Stub::start(pages(1000)).await;
    assert_eq!(client(&stub).list::<u64>(&["list"], &[], usize::MAX).await.unwrap().len(), 10);
    assert_eq!(client(&stub).list::<u64>(&["list"], &[], 2).await.unwrap(), [1, 2]);
    assert_eq!(client(&stub).list_end::<u64>(&["list"]).await.unwrap(), [1, 999, 1000]);
    let stub = Stub::start(pages(1)).await;
    assert_eq!(client(&stub).list_end::<u64>(&["list"]).await.unwrap(), [1]);
    let stub = Stub::start(pages(2)).await;
    assert_eq!(client(&stub).list_end::<u64>(&["list"]).await.unwrap(), [1, 2]);
}

#[tokio::test]
async fn page_larger_than_the_bound_is_read_in_smaller_pages() {
    let stub = Stub::start(|request: &Received| match request.target.contains("per_page=100") {
        true => Answering::Whole(200, Vec::new(), format!("[{}1]", "1,".repeat(1_500_000))),
        false => ok(&json!([7])),
    })
    .await;
    assert_eq!(client(&stub).list::<u64>(&["list"], &[], 2).await.unwrap(), [7]);
    assert_eq!(stub.received().len(), 2, "what is too large is not read again");
}

fn limited(seconds: u64) -> Answering {
    let headers = vec![format!("Retry-After: {seconds}"), "x-ratelimit-remaining: 4999".to_owned()];
    let body = json!({"message": "You have exceeded a secondary rate limit. Please wait a few minutes."});
    Answering::Whole(403, headers, body.to_string())
}

#[tokio::test]
async fn retry_after_is_waited_for_within_the_patience_and_reported_beyond_it() {
    let stub = stub_of(vec![limited(1), ok(&json!({"a": 1}))]).await;
    let begun = Instant::now();
    let mut client = client(&stub);
    client.get::<Value>(&["x"]).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(990), "{:?}", begun.elapsed());
    assert_eq!(client.rate_remaining(), Some(4999));
    let stub = stub_of(vec![limited(600)]).await;
    let mut client = client_with(&Github::new(LIMITS), &stub.url, "token", Duration::from_secs(5));
    let refusal = client.get::<Value>(&["x"]).await.unwrap_err();
    let failure = refusal.failure(false);
    assert_eq!((failure.code.as_str(), stub.received().len()), ("secondary-limit", 1));
    assert!(failure.retry_at.is_some());
    let next = client.create::<Value>(&["x"], &json!({})).await.unwrap_err();
    assert!(next.limited_until().is_some() && stub.count("POST", "/x") == 1);
    let paused = client.create::<Value>(&["x"], &json!({})).await.unwrap_err();
    assert!(paused.limited_until().is_some() && stub.count("POST", "/x") == 1, "nothing is sent during the pause");
}

#[tokio::test]
async fn creations_of_one_token_are_a_second_apart_and_those_of_another_are_not_held_up() {
    let stub = stub_of(vec![ok(&json!({}))]).await;
    let github = Github::new(LIMITS);
    let create = |token: &'static str| {
        let mut client = client_with(&github, &stub.url, token, Duration::ZERO);
        async move { client.create::<Value>(&[token], &json!({})).await.unwrap() }
    };
    let begun = Instant::now();
    let other = async {
        create("b").await;
        begun.elapsed()
    };
    let ((), _, other) = tokio::join!(async { drop(create("a").await) }, create("a"), other);
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(other < begun.elapsed());
}

/// Something to create, of which the server keeps the names.
struct Thing(&'static str);

impl Creation for Thing {
    type Made = String;

    async fn find(&mut self, client: &mut GithubClient) -> Result<Option<String>, Refusal> {
        let names: Vec<String> = client.list(&["things"], &[], 1).await?;
        Ok(names.into_iter().find(|name| name == self.0))
    }

    async fn create(&mut self, client: &mut GithubClient) -> Result<String, Refusal> {
        client.create(&["things"], &json!(self.0)).await
    }

    async fn adapt(&mut self, _: &mut GithubClient, _: &Refusal) -> bool {
        false
    }
}

/// Keeps things; `fails` answers the creations one after another, `None` as GitHub does.
async fn things(mut fails: Vec<Option<Answering>>, commits: bool) -> Stub {
    let mut names: Vec<Value> = Vec::new();
    fails.reverse();
    Stub::start(move |request: &Received| {
        if request.method == "GET" {
            return ok(&json!(names));
        }
        let fail = fails.pop().flatten();
        if fail.is_none() || commits {
            names.push(request.json());
        }
        fail.unwrap_or_else(|| Answering::json(201, &request.json()))
    })
    .await
}

#[tokio::test]
async fn answer_that_is_lost_after_the_creation_makes_no_second_one() {
    let stub = things(vec![Some(Answering::Lost)], true).await;
    assert_eq!(create_once(&mut client(&stub), &mut Thing("a")).await, Ok(("a".to_owned(), false)));
    assert_eq!(stub.count("POST", "/things"), 1);
    assert_eq!(create_once(&mut client(&stub), &mut Thing("a")).await, Ok(("a".to_owned(), true)));
    assert_eq!(stub.count("POST", "/things"), 1);
}

#[tokio::test]
async fn request_that_is_lost_before_the_creation_is_sent_again_after_two_looks() {
    let stub = things(vec![Some(Answering::json(500, &json!({}))), None], false).await;
    assert_eq!(create_once(&mut client(&stub), &mut Thing("a")).await, Ok(("a".to_owned(), false)));
    let methods: Vec<_> = stub.received().into_iter().map(|it| it.method).collect();
    assert_eq!(methods, ["GET", "POST", "GET", "GET", "POST"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creation_that_was_abandoned_holds_the_run_until_its_answer() {
    let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
    let stub = Stub::start(move |_| {
        tokio::task::block_in_place(|| released.recv().ok());
        Answering::json(201, &json!({}))
    });
    let stub = stub.await;
    let github = Github::new(LIMITS);
    let mut client = client_with(&github, &stub.url, "token", Duration::ZERO);
    client.keep(github.hold_run("7").await);
    let creating = tokio::spawn(async move { client.create::<Value>(&["x"], &json!({})).await.map(drop) });
    while stub.count("POST", "/x") == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    creating.abort();
    assert!(creating.await.unwrap_err().is_cancelled());
    let mut next = Box::pin(github.hold_run("7"));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut next).await.is_err(), "the request is under way");
    release.send(()).unwrap();
    next.await;
}

#[tokio::test]
async fn mutation_is_sent_once_to_the_address_of_graphql_and_its_errors_are_refusals() {
    let stale = json!({"data": {"x": null}, "errors": [{"type": "STALE_DATA", "message": "Pull and try again."}]});
    let limited = json!({"errors": [{"type": "RATE_LIMITED", "message": "API rate limit exceeded"}]});
    let stub = stub_of(vec![ok(&json!({"data": {"x": 7}})), ok(&stale), ok(&limited), Answering::Lost]).await;
    let api = format!("{}/api/v3", stub.url);
    let mut client = client_with(&Github::new(LIMITS), &api, "token-of-an-app", Duration::ZERO);
    let variables = json!({"input": {"a": 1}});
    assert_eq!(client.mutate::<Value>("mutation", &variables).await.unwrap(), json!({"x": 7}));
    let sent = &stub.received()[0];
    assert_eq!((sent.method.as_str(), sent.target.as_str()), ("POST", "/api/graphql"));
    assert_eq!(sent.json(), json!({"query": "mutation", "variables": variables}));
    assert_eq!(client.mutate::<Value>("m", &variables).await.unwrap_err().cause, Cause::Stale);
    let refusal = client.mutate::<Value>("m", &variables).await.unwrap_err();
    assert!(matches!(refusal.cause, Cause::PrimaryLimit { .. }), "{refusal:?}");
    let paused = client.mutate::<Value>("m", &variables).await.unwrap_err();
    assert!(paused.limited_until().is_some(), "nothing is sent during the pause: {paused:?}");
    assert_eq!(stub.received().len(), 3);
}
