//! The OpenAPI document matches the program's responses, and the tests call every operation in it.

use std::collections::BTreeSet;

use crate::{
    automation_runs,
    harness::{Api, Program, Value, github::GitHub, json, notifications::Subscriber, receiver::Receiver},
    triggers, webhook,
};

#[test]
fn document_is_openapi_3_1_and_every_operation_declares_errors() {
    let program = Program::start();
    let document = program.api.contract().document();
    assert!(document["openapi"].as_str().is_some_and(|it| it.starts_with("3.1")), "{}", document["openapi"]);
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let responses = operation["responses"].as_object().expect("responses");
            assert!(!responses.is_empty(), "{method} {path} has no responses");
            let is_api = path.starts_with("/acp/");
            let declares_error = responses.keys().any(|key| key.starts_with('4') || key == "default");
            assert!(!is_api || declares_error, "{method} {path} declares no error");
        }
    }
}

#[test]
fn every_reference_in_the_document_resolves() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(reference)) = members.get("$ref") {
                    found.insert(reference.clone());
                }
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let program = Program::start();
    let document = program.api.contract().document();
    let mut found = BTreeSet::new();
    references(document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} is not within the document"));
        assert!(document.pointer(pointer).is_some(), "{reference} does not resolve");
    }
}

#[test]
fn components_enforce_the_rules_of_the_contract() {
    let program = Program::start();
    let contract = program.api.contract();
    for name in ["ACPSessionResult", "GithubAutomation", "Toast", "TranscriptNote", "Problem"] {
        assert!(contract.document()["components"]["schemas"][name].is_object(), "no component {name}");
    }
    let issue = json!({"id": 1, "number": 2, "url": "https://github.com/o/r/issues/2", "title": "t"});
    let request = json!({"number": 3, "url": "https://github.com/o/r/pull/3", "branch": "b"});
    let diagnostics = json!({"durationMs": 1, "attempts": 1, "logs": []});
    let with = |more: Value| {
        let mut automation = json!({"status": "success", "mode": "github", "diagnostics": diagnostics});
        for (key, value) in more.as_object().unwrap() {
            automation[key] = value.clone();
        }
        automation
    };
    let good = [
        with(json!({"issue": issue, "pullRequest": request})),
        with(json!({"pullRequest": request})),
        with(json!({"mode": "commit-only"})),
        with(json!({"status": "skipped", "skipReason": "rateLimited", "toastMessage": "t", "transcriptNote": "n"})),
        with(json!({"status": "error", "error": {"code": "c", "message": "m", "retryable": true}})),
    ];
    for automation in good {
        contract.check_component("GithubAutomation", &automation);
    }
    let bad = [
        with(json!({"issue": issue})),
        with(json!({"pullRequest": request, "skipReason": "other"})),
        with(json!({"status": "skipped"})),
        with(json!({"status": "skipped", "skipReason": "because", "toastMessage": "t", "transcriptNote": "n"})),
        with(
            json!({"status": "skipped", "skipReason": "other", "toastMessage": "t".repeat(141), "transcriptNote": "n"}),
        ),
        with(json!({"status": "error"})),
    ];
    for automation in bad {
        assert!(!contract.is_component("GithubAutomation", &automation), "{automation} violates the rules");
    }
}

#[test]
fn result_with_an_extra_top_level_key_violates_the_document() {
    let program = Program::start();
    let mut result = program.api.open("ws").completes("echo a");
    program.api.contract().check_component("ACPSessionResult", &result);
    result["extra"] = json!(1);
    assert!(!program.api.contract().is_component("ACPSessionResult", &result));
}

#[test]
fn request_examples_of_the_document_succeed() {
    let program = Program::start();
    let api = &program.api;
    let example = |body: &str| api.contract().document()["components"]["schemas"][body]["examples"][0].clone();
    let session_id = api.post("/acp/session/new", example("NewSessionBody")).expect(201)["sessionId"].clone();
    let of_session = |body: &str| {
        let mut example = example(body);
        example["sessionId"] = session_id.clone();
        example
    };
    let result = api.post("/acp/session/prompt", of_session("PromptBody")).expect(200);
    assert_eq!(result["stopReason"], "completed", "{result}");
    for (verb, body) in
        [("mode", "ModeBody"), ("config", "ConfigBody"), ("cancel", "CancelBody"), ("load", "LoadBody")]
    {
        api.post(&format!("/acp/session/{verb}"), of_session(body)).expect(200);
    }
    api.call("PUT", "/acp/workspaces/demo/protocol").json(&example("ProtocolBody")).send().expect(200);
    api.call("PUT", "/acp/tenants/acme/protocol").json(&example("TenantProtocolBody")).send().expect(200);
    api.call("PUT", "/acp/tenants/acme").json(&example("TenantBody")).send().expect(200);
    for verb in ["rollback", "restore"] {
        api.post(&format!("/acp/workspaces/demo/{verb}"), example("FlipBody")).expect(200);
    }
    api.post("/acp/migrations", example("MigrationBody")).expect(202);
    api.post("/acp/tokens", example("TokenBody")).expect(201);
    api.post("/acp/notifications/ticket", example("Subscription")).expect(201);
    api.post("/acp/session/close", of_session("SessionBody")).expect(200);
}

#[test]
fn documentation_is_served_without_external_assets() {
    let program = Program::start();
    let page = program.api.get("/docs/");
    assert_eq!(page.status, 200);
    assert!(page.text.contains("swagger"), "{}", page.text);
    let outside = ["src=\"http", "href=\"http", "src=\"//", "href=\"//"];
    assert!(!outside.iter().any(|it| page.text.contains(it)), "{}", page.text);
}

/// Calls every operation of the document, so that a new operation without a call here fails the test.
#[test]
fn every_documented_operation_is_exercised() {
    let receiver = Receiver::start([]);
    let github = GitHub::start();
    let program = triggers::on(automation_runs::on(webhook::posting(&receiver.url()), &github), &github)
        .demo_agent(&["--models"])
        .set("permission.policy", "ask")
        .start();
    let api = &program.api;
    for path in ["/livez", "/readyz", "/metrics", "/openapi.json", "/acp/health", "/acp/agents", "/acp/workspaces"] {
        api.get(path).expect(200);
    }
    let session = api.open("ws");
    session.completes("echo a");
    api.get("/acp/sessions").expect(200);
    for path in ["", "/prompts", "/transcript", "/diff", "/explain"] {
        session.get(path).expect(200);
    }
    let records = [
        "migrations",
        "rollback-events",
        "connections",
        "automation-runs",
        "capacity-alerts",
        "notifications",
        "erasures",
        "changes",
    ];
    for records in records.iter().chain(&["summary"]) {
        api.get(&format!("/acp/audit/{records}")).expect(200);
    }
    api.get("/acp/workspaces/ws").expect(200);
    let why = json!({"actor": "a", "reason": "r"});
    for verb in ["rollback", "restore"] {
        api.post(&format!("/acp/workspaces/ws/{verb}"), why.clone()).expect(200);
    }
    for path in ["/acp/workspaces/ws/protocol", "/acp/tenants/tenant-1/protocol"] {
        api.get(path).expect(200);
        let change = json!({"defaultProtocol": "acp", "actor": "a", "reason": "r"});
        api.call("PUT", path).json(&change).send().expect(200);
    }
    api.get("/acp/tenants/tenant-1").expect(200);
    let change = json!({"limits": {"sessions": 100}, "actor": "a", "reason": "r"});
    api.call("PUT", "/acp/tenants/tenant-1").json(&change).send().expect(200);
    drop(api.events(&format!("/acp/session/{}/events", session.id)));
    let prompt_id = session.starts("echo b");
    session.ends(&prompt_id);
    let mut stream = session.streams("ask");
    let seen = stream.until("the request", |event| event.name == "permission_request");
    let request_id = &seen.last().unwrap().data["update"]["requestId"];
    session.post("permission", json!({"requestId": request_id, "cancelled": true})).expect(200);
    stream.rest();
    session.post("cancel", json!({})).expect(200);
    let mode = &session.opened["modes"]["availableModes"][0]["id"];
    assert!(mode.is_string(), "the demo agent offers modes: {}", session.opened);
    session.post("mode", json!({"modeId": mode})).expect(200);
    let option = &session.opened["configOptions"][0];
    assert!(option["id"].is_string(), "the demo agent offers options: {}", session.opened);
    session.post("config", json!({"configId": option["id"], "value": option["currentValue"]})).expect(200);
    session.post("model", json!({"modelId": "none"})).problem(422, "agent_rejected");
    let model = &session.opened["models"]["availableModels"][0]["modelId"];
    assert!(model.is_string(), "the demo agent offers models: {}", session.opened);
    session.post("model", json!({"modelId": model})).expect(200);
    session.post("load", json!({})).expect(200);
    session.post("close", json!({})).expect(200);
    switch_routes(api);
    run_migrations(api);
    replay_deliveries(api, &receiver);
    read_automation(api, &github);
    read_notifications(api);
    let made = api.post("/acp/tokens", json!({"subject": "ann", "role": "reader"})).expect(201);
    api.get("/acp/tokens").expect(200);
    let path = format!("/acp/tokens/{}", made["tokenId"].as_str().expect("an id"));
    api.call("DELETE", &path).send().expect(200);
    erase(api, &session.id);
    let uncalled: Vec<_> = api.contract().operations().difference(&api.called()).cloned().collect();
    assert!(uncalled.is_empty(), "the test does not call {uncalled:?}");
}

fn read_automation(api: &Api, github: &GitHub) {
    let id = automation_runs::keeps(&automation_runs::open(api, github, "ann"));
    let path = format!("/acp/automation/{id}");
    api.get("/acp/automation").expect(200);
    api.get("/acp/automation/triggers").expect(200);
    triggers::ping(api).expect(200);
    api.get(&path).expect(200);
    assert_eq!(api.get(&format!("{path}/rescue")).status, 200);
    api.post(&format!("{path}/retry"), json!({"githubToken": github.user_token("octocat")})).expect(202);
}

fn read_notifications(api: &Api) {
    let of_tenant = json!({"installationId": "tenant-1"});
    let inbox = api.get("/acp/notifications?installationId=tenant-1").expect(200);
    let id = inbox["items"][0]["toast"]["id"].as_str().expect("a rollback raised a notification").to_owned();
    api.post(&format!("/acp/notifications/{id}/ack"), of_tenant.clone()).expect(200);
    let ticket = api.post("/acp/notifications/ticket", of_tenant).expect(201);
    let ticket = format!("ticket={}", ticket["ticket"].as_str().expect("a ticket"));
    Subscriber::open(&api.base(), &ticket, &[]).expect("a WebSocket").hello(json!({}));
    api.opened("/ws/notifications");
}

fn erase(api: &Api, session: &str) {
    let paths = [format!("/acp/session/{session}"), "/acp/workspaces/ws".into(), "/acp/tenants/tenant-1".into()];
    for path in paths {
        api.call("DELETE", &path).send().expect(200);
    }
}

fn switch_routes(api: &Api) {
    let why = json!({"actor": "a", "reason": "r"});
    let path = "/acp/workspaces/ws/protocol";
    api.get(path).expect(200);
    let mut settings = why.clone();
    settings["autoRollout"] = json!(false);
    api.call("PUT", path).json(&settings).send().expect(200);
    for verb in ["rollback", "restore"] {
        api.post(&format!("/acp/workspaces/ws/{verb}"), why.clone()).expect(200);
    }
}

fn run_migrations(api: &Api) {
    let why = json!({"actor": "a", "reason": "r"});
    let mut plan = why.clone();
    for (name, value) in [
        ("installationId", json!("tenant-1")),
        ("target", json!("acp")),
        ("workspaces", json!(["ws"])),
        ("mode", json!("at")),
        ("at", json!("2999-01-01T00:00:00Z")),
    ] {
        plan[name] = value;
    }
    let begun = api.post("/acp/migrations", plan).expect(202);
    let path = format!("/acp/migrations/{}", begun["migrationId"].as_str().expect("an id"));
    for verb in ["pause", "resume", "cancel", "rollback"] {
        api.post(&format!("{path}/{verb}"), why.clone()).expect(200);
    }
    api.get(&path).expect(200);
    api.get("/acp/migrations").expect(200);
}

fn replay_deliveries(api: &Api, receiver: &Receiver) {
    let post = receiver.gets(1).remove(0);
    api.get("/acp/webhooks/deliveries").expect(200);
    let path = format!("/acp/webhooks/deliveries/{}/replay", post.header("webhook-id"));
    api.post(&path, json!({})).expect(200);
    api.post("/acp/webhooks/deliveries/replay", json!({})).expect(200);
}

#[test]
fn every_required_route_is_documented() {
    let program = Program::start();
    let operations = program.api.contract().operations();
    for (method, path) in [
        ("POST", "/acp/session/new"),
        ("POST", "/acp/session/prompt"),
        ("POST", "/acp/session/cancel"),
        ("POST", "/acp/session/permission"),
        ("POST", "/acp/session/mode"),
        ("POST", "/acp/session/config"),
        ("POST", "/acp/session/model"),
        ("POST", "/acp/session/load"),
        ("POST", "/acp/session/close"),
        ("GET", "/acp/sessions"),
        ("GET", "/acp/workspaces"),
        ("GET", "/acp/agents"),
        ("GET", "/acp/session/{id}"),
        ("GET", "/acp/session/{id}/transcript"),
        ("GET", "/acp/session/{id}/diff"),
        ("GET", "/acp/session/{id}/events"),
        ("GET", "/acp/prompt/{id}"),
        ("GET", "/acp/health"),
        ("GET", "/acp/workspaces/{id}"),
        ("GET", "/acp/workspaces/{id}/protocol"),
        ("PUT", "/acp/workspaces/{id}/protocol"),
        ("POST", "/acp/workspaces/{id}/rollback"),
        ("POST", "/acp/workspaces/{id}/restore"),
        ("GET", "/acp/tenants/{installationId}/protocol"),
        ("PUT", "/acp/tenants/{installationId}/protocol"),
        ("GET", "/acp/tenants/{installationId}"),
        ("PUT", "/acp/tenants/{installationId}"),
        ("DELETE", "/acp/session/{id}"),
        ("DELETE", "/acp/workspaces/{id}"),
        ("DELETE", "/acp/tenants/{installationId}"),
        ("GET", "/acp/audit/erasures"),
        ("GET", "/acp/audit/changes"),
        ("GET", "/acp/session/{id}/explain"),
        ("GET", "/acp/audit/migrations"),
        ("GET", "/acp/audit/rollback-events"),
        ("GET", "/acp/audit/connections"),
        ("GET", "/acp/audit/automation-runs"),
        ("GET", "/acp/audit/capacity-alerts"),
        ("GET", "/acp/audit/notifications"),
        ("GET", "/acp/audit/summary"),
        ("GET", "/acp/automation"),
        ("GET", "/acp/automation/triggers"),
        ("POST", "/github/webhook"),
        ("GET", "/acp/automation/{id}"),
        ("GET", "/acp/automation/{id}/rescue"),
        ("POST", "/acp/automation/{id}/retry"),
        ("GET", "/acp/webhooks/deliveries"),
        ("POST", "/acp/webhooks/deliveries/{id}/replay"),
        ("POST", "/acp/webhooks/deliveries/replay"),
        ("POST", "/acp/tokens"),
        ("GET", "/acp/tokens"),
        ("DELETE", "/acp/tokens/{id}"),
        ("GET", "/metrics"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
    ] {
        assert!(operations.contains(&(method.to_owned(), path.to_owned())), "{method} {path} is missing");
    }
}
