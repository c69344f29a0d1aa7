//! Settings of tenants: limits of sessions, turns and prompts.

use crate::harness::{Api, Program, Session, Value, eventually, json, program::PostgresDatabase};

/// Sets limits of a tenant.
pub(crate) fn limit(api: &Api, tenant: &str, limits: Value) -> Value {
    let body = json!({"limits": limits, "actor": "ada", "reason": "test"});
    api.call("PUT", &format!("/acp/tenants/{tenant}")).json(&body).send().expect(200)
}

fn open(api: &Api, tenant: &str, workspace: &str) -> Session {
    api.open_with(json!({"installationId": tenant, "workspaceId": workspace}))
}

fn figures(problem: &Value) -> (String, u64, u64) {
    let limit = &problem["limit"];
    let number = |name: &str| limit[name].as_u64().expect("a number");
    (limit["name"].as_str().expect("a name").to_owned(), number("used"), number("limit"))
}

#[test]
fn tenant_at_its_limit_of_sessions_is_refused_with_figures_and_others_are_not() {
    let program = Program::start();
    let api = &program.api;
    limit(api, "acme", json!({"sessions": 1}));
    let first = open(api, "acme", "ws");
    let second = json!({"installationId": "acme", "workspaceId": "ws"});
    let refused = api.post("/acp/session/new", second.clone());
    assert_eq!(refused.header("retry-after"), "10");
    assert_eq!(figures(&refused.problem(429, "limit_reached")), ("sessions".into(), 1, 1));
    open(api, "other", "ws");
    assert_eq!(api.get("/acp/tenants/acme").expect(200)["liveSessions"], 1);
    first.post("close", json!({})).expect(200);
    api.post("/acp/session/new", second).expect(201);
}

#[test]
fn tenant_at_its_limit_of_turns_is_refused_until_a_turn_ends() {
    let program = Program::start();
    let api = &program.api;
    limit(api, "acme", json!({"turns": 1}));
    let (busy, other) = (open(api, "acme", "one"), open(api, "acme", "two"));
    let (prompt_id, mut stream) = busy.is_busy_with("echo started ; sleep 60");
    let refused = other.call("echo a").send();
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(figures(&refused.problem(429, "limit_reached")), ("turns".into(), 1, 1));
    open(api, "other", "one").completes("echo a");
    assert!(busy.cancel());
    stream.rest();
    busy.ends(&prompt_id);
    other.completes("echo a");
}

#[test]
fn prompts_over_the_limit_of_a_minute_are_refused_and_a_repeat_is_not() {
    let program = Program::start();
    let api = &program.api;
    limit(api, "acme", json!({"promptsPerMinute": 2}));
    let session = open(api, "acme", "ws");
    let keyed = || session.call("echo a").header("idempotency-key", "key").send();
    let first = keyed().expect(200);
    session.completes("echo b");
    let refused = session.call("echo c").send();
    let retry_after: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=60).contains(&retry_after), "{retry_after}");
    assert_eq!(figures(&refused.problem(429, "limit_reached")), ("promptsPerMinute".into(), 2, 2));
    assert_eq!(keyed().expect(200), first);
    limit(api, "acme", json!({}));
    session.completes("echo c");
}

fn settings_survive_a_restart(database: Option<&PostgresDatabase>) {
    let start = || match database {
        Some(database) => Program::builder().set("database.url", database.url()),
        None => Program::builder(),
    };
    let program = start().start();
    let ceilings = json!({
        "permissionPolicies": ["reject"], "agents": ["default"], "repositories": ["acme/*"], "mcpServers": "listed",
        "paths": "listed", "listedPaths": [],
    });
    let body = json!({"limits": {"sessions": 3, "turns": 2, "transcriptTurnBytes": 65_536}, "ceilings": ceilings,
            "actor": "ada", "reason": "contract"});
    let put = |program: &Program, body: &Value| program.api.call("PUT", "/acp/tenants/acme").json(body).send();
    let changed = put(&program, &body).expect(200);
    let limits = json!({"sessions": 3, "turns": 2, "promptsPerMinute": null, "transcriptTurnBytes": 65_536,
        "transcriptSessionBytes": null});
    assert_eq!(changed["limits"], limits);
    for (bad, named) in [
        (json!({"actor": "a", "reason": "r"}), "limits"),
        (json!({"ceilings": {"repositories": ["acme"]}, "actor": "a", "reason": "r"}), "ceilings.repositories"),
        (json!({"limits": {"sessions": -1}, "actor": "a", "reason": "r"}), "-1 is not a whole number"),
        (json!({"ceilings": {"listedPaths": ["srv"]}, "actor": "a", "reason": "r"}), "ceilings.listedPaths"),
        (json!({"limits": {"transcriptTurnBytes": 1}, "actor": "a", "reason": "r"}), "limits.transcriptTurnBytes"),
        (json!({"ceilings": {"mcpServers": "some"}, "actor": "a", "reason": "r"}), "some"),
    ] {
        let problem = put(&program, &bad).problem(400, "invalid_request");
        assert!(problem["detail"].as_str().unwrap().contains(named), "{problem}");
    }
    let outside = json!({"ceilings": {"listedPaths": ["/srv"]}, "actor": "a", "reason": "r"});
    put(&program, &outside).problem(403, "path_not_allowed");
    let folder = program.stop();
    let program = start().folder(&folder).start();
    let kept = program.api.get("/acp/tenants/acme").expect(200);
    assert_eq!(kept, changed);
    assert_eq!(kept["ceilings"], ceilings);
    let unknown = program.api.get("/acp/tenants/other").expect(200);
    assert_eq!((&unknown["updatedAt"], &unknown["limits"]["turns"]), (&Value::Null, &Value::Null));
}

#[test]
fn tenant_settings_survive_a_restart_on_sqlite() {
    settings_survive_a_restart(None);
}

#[test]
fn tenant_settings_survive_a_restart_on_postgresql() {
    settings_survive_a_restart(Some(&PostgresDatabase::create()));
}

fn changes_are_audited(database: Option<&PostgresDatabase>) {
    let builder = Program::builder();
    let program = match database {
        Some(database) => builder.set("database.url", database.url()).start(),
        None => builder.start(),
    };
    let api = &program.api;
    limit(api, "acme", json!({"sessions": 3}));
    limit(api, "acme", json!({"sessions": 4}));
    let blocked = json!({"blockedRepositories": ["acme/secret"], "actor": "ada", "reason": "a customer asked"});
    api.call("PUT", "/acp/tenants/acme/protocol").json(&blocked).send().expect(200);
    let token = |body: Value| api.post("/acp/tokens", body).expect(201);
    let made = token(json!({"installationId": "acme", "subject": "ann", "role": "auditor"}));
    let of_service = token(json!({"subject": "ops", "role": "operator"}));
    for _ in 0..2 {
        api.call("DELETE", &format!("/acp/tokens/{}", of_service["tokenId"].as_str().unwrap())).send().expect(200);
    }
    let refused = json!({"limits": {"sessions": -1}, "reason": "r"});
    api.call("PUT", "/acp/tenants/acme").json(&refused).send().problem(400, "invalid_request");
    let listed = |api: &Api, query: &str| {
        api.get(&format!("/acp/audit/changes{query}")).expect(200)["items"].as_array().expect("a list").clone()
    };
    let all = listed(api, "");
    let kinds: Vec<_> = all.iter().map(|it| it["kind"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        ["tokenRevoked", "tokenCreated", "tokenCreated", "tenantProtocol", "tenantSettings", "tenantSettings"]
    );
    assert!(all.iter().all(|it| it["actor"] == "server"), "{all:?}");
    assert_eq!((&all[0]["installationId"], &all[0]["object"]), (&Value::Null, &of_service["tokenId"]));
    assert_eq!(all[2]["after"]["subject"], "ann");
    let of_protocol = &all[3];
    assert_eq!(
        (&of_protocol["actorNote"], &of_protocol["reason"], &of_protocol["before"], &of_protocol["after"]),
        (
            &json!("ada"),
            &json!("a customer asked"),
            &json!({"blockedRepositories": []}),
            &json!({"blockedRepositories": ["acme/secret"]})
        )
    );
    assert_eq!(all[4]["before"], json!({"limits": {"sessions": 3}}));
    assert_eq!(all[4]["after"], json!({"limits": {"sessions": 4}}));
    let secrets = [&made["token"], &of_service["token"]].map(|it| it.as_str().unwrap().to_owned());
    assert!(!secrets.iter().any(|secret| json!(all).to_string().contains(secret)), "a token is in the audit");
    // Pages and CSV, like the other lists.
    let page = api.get("/acp/audit/changes?limit=2").expect(200);
    let next = listed(api, &format!("?limit=9&cursor={}", page["nextCursor"].as_str().unwrap()));
    assert_eq!(next, all[2..]);
    let csv = api.get("/acp/audit/changes?format=csv&installationId=acme").text;
    assert!(csv.starts_with("changeId,installationId,kind,object,actor,") && csv.lines().count() == 5, "{csv}");
    // An auditor of the tenant sees its changes alone.
    let auditor = Api::new(&api.base(), made["token"].as_str().map(str::to_owned));
    assert_eq!(listed(&auditor, ""), all[2..]);
    auditor.get("/acp/audit/changes?installationId=other").problem(404, "not_found");
    for (role, status) in [("admin", 200), ("operator", 403), ("user", 403), ("reader", 403)] {
        let made = token(json!({"installationId": "acme", "subject": role, "role": role}));
        let api = Api::new(&api.base(), made["token"].as_str().map(str::to_owned));
        assert_eq!(api.get("/acp/audit/changes").status, status, "{role}");
    }
    api.call("DELETE", "/acp/tenants/acme").send().expect(200);
    assert_eq!(
        listed(api, "?installationId=acme"),
        Vec::<Value>::new(),
        "an erasure removes the changes of its tenant"
    );
    assert_eq!(listed(api, "").len(), 2);
}

#[test]
fn changes_of_settings_and_tokens_are_audited_with_who_and_why_on_sqlite() {
    changes_are_audited(None);
}

#[test]
fn changes_of_settings_and_tokens_are_audited_with_who_and_why_on_postgresql() {
    changes_are_audited(Some(&PostgresDatabase::create()));
}

#[test]
fn full_workspace_takes_no_turn_until_its_files_are_removed() {
    let program = Program::builder().set("workspaces.max_bytes", 1_000_000).set("workspaces.measure_s", 1).start();
    let (session, other) = (open(&program.api, "acme", "ws"), open(&program.api, "acme", "other"));
    session.completes("run head -c 3000000 /dev/zero > big");
    eventually("the workspace is measured", || session.prompt("echo a").status == 507);
    let (name, used, limit) = figures(&session.prompt("echo a").problem(507, "workspace_full"));
    assert_eq!((name.as_str(), limit), ("workspaceBytes", 1_000_000));
    assert!((3_000_000..4_000_000).contains(&used), "{used}");
    let shown = program.api.get("/acp/workspaces/ws?installationId=acme").expect(200);
    assert_eq!(shown["diskBytes"], used);
    other.completes("echo a");
    assert!(program.metrics().has("lumilink_workspaces_full", &[]));
    eventually("the metric is set", || program.metrics().sum("lumilink_workspaces_full", &[]) > 0.0);
    std::fs::remove_file(session.path().join("big")).unwrap();
    eventually("the workspace is measured again", || session.prompt("echo a").status == 200);
}
