//! Tokens with roles and scopes: which operations a role may call, and that no token reaches rows outside its scope.

use std::{collections::BTreeSet, fs, os::unix::fs::symlink, process::Command};

use crate::harness::{
    Answer, Api, Program, Session, Value, eventually, json, lumilink,
    notifications::{Refused, Subscriber},
    program::Folder,
    tokens,
};

const ROLES: [&str; 5] = ["reader", "user", "auditor", "operator", "admin"];

/// Makes a token with the program's own token; `body` is that of the request.
fn token(program: &Program, body: Value) -> Value {
    program.api.post("/acp/tokens", body).expect(201)
}

/// A client with a token of a tenant.
fn client(program: &Program, tenant: &str, role: &str) -> Api {
    client_of(program, json!({"installationId": tenant, "subject": format!("{role}-of-{tenant}"), "role": role}))
}

fn client_of(program: &Program, body: Value) -> Api {
    let made = token(program, body);
    Api::new(&program.api.base(), made["token"].as_str().map(str::to_owned))
}

/// An id that exists nowhere.
const UNKNOWN: &str = "01900000-0000-7000-8000-000000000000";

/// A path of the document with values for its parameters.
fn path_with(template: &str, tenant: &str, workspace: &str, id: &str) -> String {
    let id = if template.starts_with("/acp/workspaces/") { workspace } else { id };
    template.replace("{installationId}", tenant).replace("{id}", id)
}

/// Calls an operation without effect: its ids are unknown, and its body is empty.
fn touch(api: &Api, method: &str, template: &str) -> Answer {
    let call = api.call(method, &path_with(template, "no-such-tenant", "no-such-workspace", UNKNOWN));
    if method == "POST" || method == "PUT" { call.json(&json!({"no": "member"})).send() } else { call.send() }
}

/// The roles that the document lists for an operation; `None` if it needs no token.
fn listed(api: &Api, method: &str, template: &str) -> Option<BTreeSet<String>> {
    let security = &api.contract().document()["paths"][template][method.to_lowercase()]["security"];
    let roles = security.as_array().expect("every operation has `security`").first()?["token"].as_array()?.clone();
    Some(roles.iter().map(|role| role.as_str().expect("a role").to_owned()).collect())
}

#[test]
fn every_operation_admits_exactly_the_roles_that_the_document_lists() {
    let program = Program::start();
    let of_service = ROLES.map(|role| client_of(&program, json!({"subject": role, "role": role})));
    for (method, template) in program.api.contract().operations() {
        let Some(roles) = listed(&program.api, &method, &template) else {
            // A signature authenticates the webhook of GitHub.
            let is_open = ["/livez", "/readyz", "/github/webhook"].contains(&template.as_str());
            assert!(is_open, "{method} {template} admits everyone");
            continue;
        };
        assert!(roles.contains("admin"), "{method} {template}");
        for (role, api) in ROLES.iter().zip(&of_service) {
            let answer = touch(api, &method, &template);
            let is_refused = answer.status == 403 && answer.body["code"] == "forbidden";
            assert_eq!(is_refused, !roles.contains(*role), "{role} {method} {template}: {}", answer.text);
            assert_ne!(answer.status, 401, "{role} {method} {template}");
        }
    }
}

/// Rows of tenant A that another tenant must not reach.
struct Rows {
    session: Session,
    prompt: String,
    migration: String,
    notification: String,
    token: String,
}

impl Rows {
    fn make(program: &Program) -> Self {
        let api = &program.api;
        let session = api.open_with(json!({"workspaceId": "ws", "installationId": "tenant-a"}));
        let prompt = session.completes("echo a secret of tenant a")["meta"]["promptId"].as_str().unwrap().to_owned();
        let why = json!({"installationId": "tenant-a", "reason": "a drill"});
        for verb in ["rollback", "restore"] {
            api.post(&format!("/acp/workspaces/ws/{verb}"), why.clone()).expect(200);
        }
        let plan = json!({"installationId": "tenant-a", "target": "acp", "workspaces": ["ws"], "mode": "at",
            "at": "2999-01-01T00:00:00Z", "reason": "planned"});
        let migration = api.post("/acp/migrations", plan).expect(202)["migrationId"].as_str().unwrap().to_owned();
        let inbox = api.get("/acp/notifications?installationId=tenant-a").expect(200);
        let notification = inbox["items"][0]["toast"]["id"].as_str().expect("a notification").to_owned();
        let made = token(program, json!({"installationId": "tenant-a", "subject": "ann", "role": "reader"}));
        Self { session, prompt, migration, notification, token: made["tokenId"].as_str().unwrap().to_owned() }
    }

    /// The id of tenant A that fits a path or body of an operation.
    fn id(&self, template: &str) -> &str {
        match template.split('/').nth(2) {
            Some("prompt") => &self.prompt,
            Some("migrations") => &self.migration,
            Some("notifications") => &self.notification,
            Some("tokens") => &self.token,
            _ => &self.session.id,
        }
    }
}

/// A valid body of an operation that names what belongs to tenant A.
fn body_of_a(api: &Api, method: &str, template: &str, rows: &Rows) -> Option<Value> {
    let document = api.contract().document();
    let content = &document["paths"][template][method.to_lowercase()]["requestBody"]["content"]["application/json"];
    let name = content["schema"]["$ref"].as_str()?.rsplit('/').next()?;
    let schema = &document["components"]["schemas"][name];
    let mut body = schema["examples"][0].clone();
    for (member, value) in [("installationId", "tenant-a"), ("sessionId", &rows.session.id), ("workspaceId", "ws")] {
        if !schema["properties"][member].is_null() {
            body[member] = json!(value);
        }
    }
    Some(body)
}

/// Operations about no tenant: a token of one gets them for itself, or not at all.
const OF_NO_TENANT: [&str; 6] = ["/acp/health", "/acp/agents", "/metrics", "/acp/webhooks/", "/livez", "/readyz"];

#[test]
fn no_operation_reaches_a_row_of_another_tenant() {
    let program = Program::start();
    let rows = Rows::make(&program);
    let before = dump(&program, &rows);
    for role in ["user", "operator", "admin"] {
        let api = client(&program, "tenant-b", role);
        for (method, template) in program.api.contract().operations() {
            if OF_NO_TENANT.iter().any(|it| template.starts_with(it)) {
                continue;
            }
            let path = path_with(&template, "tenant-a", "ws", rows.id(&template));
            let named = path.contains("tenant-a") || template.contains("{id}");
            let path = if named || method != "GET" { path } else { format!("{path}?installationId=tenant-a") };
            let call = api.call(&method, &path);
            let answer = match body_of_a(&program.api, &method, &template, &rows) {
                Some(body) => call.json(&body).send(),
                None => call.send(),
            };
            // A WebSocket upgrade is checked before its subscription; there is a test of its own.
            let is_refused = answer.status == 404 || answer.status == 403 || template == "/ws/notifications";
            assert!(is_refused, "{role} {method} {path} -> {}: {}", answer.status, answer.text);
            assert!(!answer.text.contains("a secret of"), "{role} {method} {path}: {}", answer.text);
        }
    }
    assert_eq!(dump(&program, &rows), before, "tenant b changed something of tenant a");
}

/// What tenant A has, without times.
fn dump(program: &Program, rows: &Rows) -> Vec<Value> {
    let of = |path: &str| program.api.get(path).expect(200);
    let mut session = rows.session.get("").expect(200);
    session["lastUsedAt"] = Value::Null;
    vec![
        session,
        of("/acp/workspaces/ws/protocol?installationId=tenant-a"),
        of("/acp/tenants/tenant-a/protocol"),
        of(&format!("/acp/migrations/{}", rows.migration)),
        of("/acp/notifications?installationId=tenant-a"),
        of("/acp/audit/migrations?installationId=tenant-a"),
        of("/acp/tokens?installationId=tenant-a"),
        rows.session.get("/transcript").expect(200),
    ]
}

#[test]
fn unknown_and_foreign_ids_get_the_same_answer() {
    let program = Program::start();
    let rows = Rows::make(&program);
    let api = client(&program, "tenant-b", "admin");
    let problem = |path: &str, id: &str| {
        let problem = api.get(&path.replace("{id}", id)).problem(404, "not_found");
        (problem["detail"].as_str().unwrap().replace(id, "ID"), problem["title"].clone())
    };
    for path in [
        "/acp/session/{id}",
        "/acp/session/{id}/transcript",
        "/acp/session/{id}/events",
        "/acp/prompt/{id}",
        "/acp/migrations/{id}",
    ] {
        assert_eq!(problem(path, rows.id(path)), problem(path, UNKNOWN), "{path}");
    }
    assert_eq!(problem("/acp/workspaces/{id}", "ws"), problem("/acp/workspaces/{id}", "nothing"));
    assert_eq!(problem("/acp/tenants/{id}/protocol", "tenant-a"), problem("/acp/tenants/{id}/protocol", "nobody"));
    assert_eq!(
        problem("/acp/workspaces/ws?installationId={id}", "tenant-a"),
        problem("/acp/workspaces/ws?installationId={id}", "nobody")
    );
}

#[test]
fn token_of_a_tenant_needs_no_installation_id() {
    let program = Program::start();
    let _foreign = program.api.open_with(json!({"workspaceId": "ws", "installationId": "tenant-a"}));
    let api = client(&program, "tenant-b", "user");
    let session = api.open_with(json!({"workspaceId": "ws"}));
    assert_eq!(session.opened["workspace"]["installationId"], "tenant-b");
    session.completes("echo a");
    let listed = api.get("/acp/sessions").expect(200);
    let ids: Vec<_> = listed["items"].as_array().unwrap().iter().map(|it| it["sessionId"].clone()).collect();
    assert_eq!(ids, [json!(session.id)], "{listed}");
    let workspaces = api.get("/acp/workspaces").expect(200);
    assert_eq!(workspaces["items"].as_array().map(Vec::len), Some(1), "{workspaces}");
    // The name is ambiguous for the service, and unique for the tenant.
    assert_eq!(api.get("/acp/workspaces/ws").expect(200)["installationId"], "tenant-b");
    program.api.get("/acp/workspaces/ws").problem(409, "ambiguous_workspace");
    program.api.post("/acp/session/new", json!({"workspaceId": "ws"})).problem(400, "invalid_request");
}

#[test]
fn token_of_a_user_sees_no_workspace_in_which_the_user_has_no_session() {
    let program = Program::start();
    let tenant = client(&program, "acme", "user");
    let of = |workspace: &str, user: &str| tenant.open_with(json!({"workspaceId": workspace, "userId": user}));
    let (shared, _other, _foreign) = (of("shared", "ann"), of("shared", "bob"), of("secret", "bob"));
    let of_ann = |role: &str| {
        client_of(&program, json!({"installationId": "acme", "userId": "ann", "subject": "ann", "role": role}))
    };
    for workspace in ["shared", "secret"] {
        let why = json!({"installationId": "acme", "reason": format!("a drill in {workspace}")});
        program.api.post(&format!("/acp/workspaces/{workspace}/rollback"), why).expect(200);
    }
    for role in ["reader", "user", "operator", "admin"] {
        let ann = of_ann(role);
        let listed = ann.get("/acp/workspaces").expect(200);
        let names: Vec<_> = listed["items"].as_array().unwrap().iter().map(|it| it["workspaceId"].clone()).collect();
        assert_eq!(names, ["shared"], "{role}");
        assert_eq!(ann.get("/acp/workspaces?workspaceId=secret").expect(200)["items"], json!([]), "{role}");
        for path in ["/acp/workspaces/secret", "/acp/workspaces/secret/protocol"] {
            ann.get(path).problem(404, "not_found");
        }
        ann.get("/acp/workspaces/shared/protocol").expect(200);
        for path in ["/acp/sessions", "/acp/health", "/acp/agents", "/acp/notifications"] {
            let text = ann.get(path).text;
            assert!(!text.contains("secret"), "{role} {path}: {text}");
        }
        assert!(!ann.get("/acp/notifications?workspaceId=secret").text.contains("drill"), "{role}");
    }
    let ann = of_ann("user");
    ann.post("/acp/workspaces/secret/rollback", json!({"reason": "not mine"})).problem(404, "not_found");
    // A user sees why its own workspace fell back.
    let own = ann.get("/acp/notifications?workspaceId=shared").expect(200);
    assert_ne!(own["items"], json!([]), "{own}");
    assert!(ann.get(&format!("/acp/session/{}/explain", shared.id)).text.contains("a drill in shared"));
    // A closed session counts as well.
    shared.post("close", json!({})).expect(200);
    ann.get("/acp/workspaces/shared").expect(200);
}

#[test]
fn health_and_agents_show_a_tenant_no_figures_of_the_service() {
    let program = Program::start();
    program.api.open("ws").completes("echo a");
    for role in ROLES {
        let (of_service, of_tenant) =
            (client_of(&program, json!({"subject": role, "role": role})), client(&program, "acme", role));
        let health = of_service.get("/acp/health").expect(200);
        assert_eq!(health["protocols"]["acp"]["turnsStarted"], 1, "{role}: {health}");
        assert_eq!((&health["capacity"]["taken"], &health["runtime"]["agentProcesses"]), (&json!(1), &json!(1)));
        assert!(of_service.get("/acp/agents").expect(200)["items"][0]["lastHandshake"].is_object(), "{role}");
        let health = of_tenant.get("/acp/health").expect(200);
        assert_eq!((&health["status"], &health["runtime"]["status"]), (&json!("ok"), &json!("ok")), "{health}");
        for member in ["protocols", "workspaces", "capacity"] {
            assert!(health.get(member).is_none(), "{role}: {health}");
        }
        assert!(health["runtime"].get("agentProcesses").is_none(), "{role}: {health}");
        let agents = of_tenant.get("/acp/agents").expect(200);
        assert_eq!(agents["items"][0]["isDefault"], true, "{role}: {agents}");
        assert!(agents["items"][0].get("lastHandshake").is_none(), "{role}: {agents}");
    }
}

#[test]
fn limited_token_reaches_only_its_user_and_workspace() {
    let program = Program::start();
    let tenant = client(&program, "acme", "user");
    let of = |workspace: &str, user: &str| tenant.open_with(json!({"workspaceId": workspace, "userId": user}));
    let (anns, bobs, elsewhere) = (of("web", "ann"), of("web", "bob"), of("api", "ann"));
    let limited =
        json!({"installationId": "acme", "workspaceId": "web", "userId": "ann", "subject": "ann", "role": "user"});
    let ann = client_of(&program, limited);
    ann.get(&format!("/acp/session/{}", anns.id)).expect(200);
    for foreign in [&bobs, &elsewhere] {
        ann.get(&format!("/acp/session/{}", foreign.id)).problem(404, "not_found");
        ann.post("/acp/session/close", json!({"sessionId": foreign.id})).problem(404, "not_found");
    }
    let listed = ann.get("/acp/sessions").expect(200);
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(1), "{listed}");
    let opened = ann.post("/acp/session/new", json!({"workspaceId": "web"})).expect(201);
    let row = tenant.get(&format!("/acp/session/{}", opened["sessionId"].as_str().unwrap())).expect(200);
    assert_eq!(row["userId"], "ann", "a session belongs to the user of the token");
    ann.post("/acp/session/new", json!({"workspaceId": "api"})).problem(404, "not_found");
    ann.post("/acp/session/new", json!({"workspaceId": "web", "userId": "bob"})).problem(404, "not_found");
    ann.get("/acp/workspaces/api").problem(404, "not_found");
    ann.get("/acp/audit/migrations").problem(403, "forbidden");
}

#[test]
fn session_that_hibernated_and_came_back_counts_for_its_token() {
    let mut program = Program::builder().set("session.idle_timeout_s", 1).start();
    let body = json!({"installationId": "acme", "subject": "ann", "role": "user", "limits": {"sessions": 1}});
    let ann = client_of(&program, body);
    let again = || ann.post("/acp/session/new", json!({"workspaceId": "ws"}));
    let session = ann.open_with(json!({"workspaceId": "ws"}));
    session.becomes("hibernated");
    let (prompt_id, mut busy) = session.is_busy_with("echo back ; sleep 60");
    again().problem(429, "limit_reached");
    assert!(session.cancel());
    busy.rest();
    session.ends(&prompt_id);
    // Also in the next process, and if another token loads it.
    program.kill();
    program.start_supervisor_again();
    ann.move_to(&program.api.base());
    program.api.post("/acp/session/load", json!({"sessionId": session.id})).expect(200);
    let (prompt_id, mut busy) = session.is_busy_with("echo back ; sleep 60");
    again().problem(429, "limit_reached");
    assert!(session.cancel());
    busy.rest();
    session.ends(&prompt_id);
}

#[test]
fn token_is_shown_once_and_revoked_at_once() {
    let mut program = Program::start();
    let made = token(&program, json!({"installationId": "acme", "subject": "ann", "role": "user"}));
    let (text, id) = (made["token"].as_str().unwrap().to_owned(), made["tokenId"].as_str().unwrap().to_owned());
    assert!(text.starts_with("lumilink_") && text.len() == 52, "{made}");
    let ann = Api::new(&program.api.base(), Some(text.clone()));
    let session = ann.open_with(json!({"workspaceId": "ws"}));
    let listed = program.api.get("/acp/tokens?installationId=acme");
    assert!(!listed.text.contains(&text), "{}", listed.text);
    let item = &listed.expect(200)["items"][0];
    assert_eq!(
        (&item["subject"], &item["role"], &item["createdBy"]),
        (&json!("ann"), &json!("user"), &json!("server"))
    );
    let folder = program.folder.path().to_owned();
    assert!(!program.log().contains(&text) && !contains(&folder, &text), "the token is stored or logged");
    // A restart reads it from its hash.
    program.kill();
    program.start_supervisor_again();
    ann.move_to(&program.api.base());
    ann.get(&format!("/acp/session/{}", session.id)).expect(200);
    let second = ann.open_with(json!({"workspaceId": "ws"}));
    let mut events = ann.events(&format!("/acp/session/{}/events", second.id));
    let revoked = program.api.call("DELETE", &format!("/acp/tokens/{id}")).send().expect(200);
    assert_eq!(revoked["revokedBy"], "server", "{revoked}");
    ann.get("/acp/sessions").problem(401, "unauthorized");
    // Its streams end, too.
    events.rest();
    let again = program.api.call("DELETE", &format!("/acp/tokens/{id}")).send().expect(200);
    assert_eq!(again["revokedAt"], revoked["revokedAt"], "the first revocation is kept");
}

/// True if a file below `folder` has the text.
fn contains(folder: &std::path::Path, text: &str) -> bool {
    std::fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return contains(&path, text);
        }
        std::fs::read(&path).is_ok_and(|bytes| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
    })
}

#[test]
fn expired_token_is_refused_and_its_use_is_recorded() {
    let program = Program::start();
    let soon = time::OffsetDateTime::now_utc() + time::Duration::seconds(3);
    let soon = soon.format(&time::format_description::well_known::Rfc3339).unwrap();
    let body = json!({"installationId": "acme", "subject": "ann", "role": "reader", "expiresAt": soon});
    let ann = client_of(&program, body);
    ann.get("/acp/sessions").expect(200);
    eventually("the token expires", || ann.get("/acp/sessions").status == 401);
    for (expires, why) in [("2020-01-01T00:00:00Z", "the past"), ("soon", "no time")] {
        let body = json!({"installationId": "acme", "subject": "ann", "role": "reader", "expiresAt": expires});
        let refused = program.api.post("/acp/tokens", body);
        assert_eq!(refused.status, 400, "{why}: {}", refused.text);
    }
}

#[test]
fn admin_of_a_tenant_makes_tokens_only_within_its_scope() {
    let program = Program::start();
    let admin = client(&program, "acme", "admin");
    let make = |body: Value| admin.post("/acp/tokens", body);
    let made = make(json!({"subject": "bob", "role": "admin"})).expect(201);
    assert_eq!(made["installationId"], "acme", "the tenant is that of the caller: {made}");
    make(json!({"installationId": "other", "subject": "bob", "role": "reader"})).problem(404, "not_found");
    for (role, expected) in [("operator", 403), ("user", 403), ("auditor", 403), ("reader", 403)] {
        let refused = client(&program, "acme", role).post("/acp/tokens", json!({"subject": "x", "role": "reader"}));
        assert_eq!(refused.status, expected, "{role}: {}", refused.text);
    }
    let of_service = program.api.get("/acp/tokens").expect(200);
    let listed = admin.get("/acp/tokens").expect(200);
    assert!(listed["items"].as_array().unwrap().iter().all(|it| it["installationId"] == "acme"), "{listed}");
    assert!(of_service["items"].as_array().unwrap().len() >= listed["items"].as_array().unwrap().len());
    // Neither the service's tokens nor those of another tenant can be revoked.
    let foreign = token(&program, json!({"subject": "ops", "role": "operator"}));
    admin
        .call("DELETE", &format!("/acp/tokens/{}", foreign["tokenId"].as_str().unwrap()))
        .send()
        .problem(404, "not_found");
    // An operator of one tenant does not operate the service.
    let operator = client(&program, "acme", "operator");
    for path in ["/metrics", "/acp/webhooks/deliveries", "/acp/notifications?stream=operators"] {
        operator.get(path).problem(403, "forbidden");
    }
}

#[test]
fn audit_names_the_subject_of_the_token_and_keeps_the_given_name_as_a_note() {
    let program = Program::start();
    let operator = client(&program, "acme", "operator");
    let user = client(&program, "acme", "user");
    user.open_with(json!({"workspaceId": "ws"}));
    let why = json!({"actor": "the boss", "reason": "a drill"});
    operator.post("/acp/workspaces/ws/rollback", why.clone()).expect(200);
    user.post("/acp/workspaces/ws/restore", why.clone()).problem(403, "forbidden");
    operator.post("/acp/workspaces/ws/restore", why.clone()).expect(200);
    user.post("/acp/workspaces/ws/rollback", why).expect(200);
    let auditor = client(&program, "acme", "auditor");
    let records = auditor.get("/acp/audit/rollback-events").expect(200);
    let actors: Vec<_> =
        records["items"].as_array().unwrap().iter().map(|it| (&it["actor"], &it["trigger"])).collect();
    let (of_user, of_operator) = (json!("user-of-acme"), json!("operator-of-acme"));
    let (by_user, by_operator) = (json!("manualUser"), json!("manualOperator"));
    assert_eq!(
        actors,
        [(&of_user, &by_user), (&of_operator, &by_operator), (&of_operator, &by_operator)],
        "{records}"
    );
    assert!(records["items"].as_array().unwrap().iter().all(|it| it["actorNote"] == "the boss"), "{records}");
    // The auditor reads no contents.
    for path in ["/acp/sessions", "/acp/workspaces", "/acp/notifications"] {
        auditor.get(path).problem(403, "forbidden");
    }
}

#[test]
fn websocket_and_tickets_are_limited_to_the_scope_of_the_token() {
    let program = Program::start();
    let made = token(&program, json!({"installationId": "acme", "subject": "ann", "role": "user"}));
    let bearer = format!("Bearer {}", made["token"].as_str().unwrap());
    let base = program.api.base();
    let open = |query: &str| Subscriber::open(&base, query, &[("authorization", &bearer)]);
    let status = |opened: Result<Subscriber, Refused>| opened.err().map(|refused| refused.status);
    assert_eq!(status(open("installationId=other")), Some(404));
    assert_eq!(status(open("stream=operators")), Some(403));
    let ann = Api::new(&base, made["token"].as_str().map(str::to_owned));
    ann.post("/acp/notifications/ticket", json!({"installationId": "other"})).problem(404, "not_found");
    ann.post("/acp/notifications/ticket", json!({"stream": "operators"})).problem(403, "forbidden");
    let ticket = |api: &Api| api.post("/acp/notifications/ticket", json!({})).expect(201)["ticket"].clone();
    let (one, two) = (ticket(&ann), ticket(&ann));
    let query = |ticket: &Value| format!("ticket={}", ticket.as_str().unwrap());
    let mut with_ticket = Subscriber::open(&base, &query(&one), &[]).expect("a WebSocket");
    with_ticket.hello(json!({}));
    let mut with_token = open("").expect("a WebSocket");
    with_token.hello(json!({}));
    program.api.call("DELETE", &format!("/acp/tokens/{}", made["tokenId"].as_str().unwrap())).send().expect(200);
    assert_eq!(status(Subscriber::open(&base, &query(&two), &[])), Some(401), "a ticket ends with its token");
    for socket in [&mut with_ticket, &mut with_token] {
        assert_eq!(socket.until_closed().1.code, Some(4001), "a WebSocket ends with its token");
    }
}

#[test]
fn commands_make_list_and_revoke_tokens() {
    let program = Program::start();
    let run = |arguments: &[&str]| {
        let output = Command::new(lumilink())
            .args(arguments)
            .envs(tokens::variables(&program.api.base()))
            .env_remove("LUMILINK_DATA_DIR")
            .output()
            .expect("the program runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let made =
        run(&["token", "create", "--tenant", "acme", "--subject", "ann", "--role", "user", "--expires", "90d"]);
    let text = made.trim();
    assert!(text.starts_with("lumilink_"), "{made}");
    Api::new(&program.api.base(), Some(text.to_owned())).get("/acp/sessions").expect(200);
    let listed = run(&["token", "list"]);
    assert!(listed.contains("  user  ann  acme  expires ") && !listed.contains(text), "{listed}");
    let id = listed.split_whitespace().next().unwrap().to_owned();
    let revoked = run(&["token", "revoke", &id]);
    assert!(revoked.contains("revokedBy: server"), "{revoked}");
    let refused = Api::new(&program.api.base(), Some(text.to_owned())).get("/acp/sessions");
    refused.problem(401, "unauthorized");
}

/// A folder with one project for each of two tenants, of which the settings list their own.
fn two_projects() -> (Folder, Program) {
    let allowed = Folder::new();
    for tenant in ["a", "b"] {
        let project = allowed.path().join(tenant).join("project");
        fs::create_dir_all(&project).unwrap();
        fs::write(project.join("here.txt"), format!("secret of {tenant}")).unwrap();
    }
    let program = Program::builder().set("workspaces.allow_paths", json!([allowed.path()])).start();
    for tenant in ["a", "b"] {
        let ceilings = json!({"listedPaths": [allowed.path().join(tenant)]});
        let body = json!({"ceilings": ceilings, "reason": "contract"});
        program.api.call("PUT", &format!("/acp/tenants/{tenant}")).json(&body).send().expect(200);
    }
    (allowed, program)
}

#[test]
fn tenant_opens_no_folder_that_is_listed_for_another_tenant() {
    let (allowed, program) = two_projects();
    let at = |path: &str| json!({"workspaceId": "ws", "installationId": "b", "path": allowed.path().join(path)});
    // One trust domain: every allowed path is open.
    let mut foreign = at("a/project");
    foreign["workspaceId"] = json!("before");
    let before = program.api.open_with(foreign);
    assert!(before.says("read here.txt").contains("secret of a"));
    before.post("close", json!({})).expect(200);
    let of_b = client(&program, "b", "user");
    symlink(allowed.path().join("a/project"), allowed.path().join("b/link")).unwrap();
    for path in ["a/project", "a", "", "a/none", "b/../a/project", "b/link"] {
        let problem = of_b.post("/acp/session/new", at(path)).problem(403, "ceiling_exceeded");
        assert!(problem["detail"].as_str().unwrap().starts_with("path: "), "{path}: {problem}");
    }
    let mut again = at("a/project");
    again["workspaceId"] = json!("before");
    of_b.post("/acp/session/new", again).problem(403, "ceiling_exceeded");
    assert!(of_b.open_with(at("b/project")).says("read here.txt").contains("secret of b"));
    let of_a = client(&program, "a", "user");
    of_a.post("/acp/session/new", json!({"workspaceId": "ws", "path": allowed.path().join("b/project")}))
        .problem(403, "ceiling_exceeded");
    let own = of_a.open_with(json!({"workspaceId": "ws", "path": allowed.path().join("a/project")}));
    assert!(own.says("read here.txt").contains("secret of a"));
}

#[test]
fn folder_that_a_link_replaced_is_neither_compared_nor_opened() {
    let (allowed, program) = two_projects();
    let of_b = client(&program, "b", "user");
    let project = allowed.path().join("b/project");
    let session = of_b.open_with(json!({"workspaceId": "ws", "path": project}));
    fs::rename(&project, allowed.path().join("b/moved")).unwrap();
    symlink(allowed.path().join("a/project"), &project).unwrap();
    session.get("/diff").problem(403, "ceiling_exceeded");
    // The fresh agent after a crash gets the path without a new check of the workspace.
    session.post("prompt", json!({"prompt": "crash"})).problem(502, "agent_crashed");
    let refused = session.post("prompt", json!({"prompt": "read here.txt"}));
    assert!(refused.status >= 400 && !refused.text.contains("secret of a"), "{}", refused.text);
    session.becomes("failed");
    of_b.post("/acp/session/load", json!({"sessionId": session.id})).problem(403, "ceiling_exceeded");
}

#[test]
fn ceilings_refuse_what_exceeds_them_and_replace_a_lax_policy() {
    let program = Program::start();
    let set = |ceilings: Value| {
        let body = json!({"ceilings": ceilings, "reason": "contract"});
        program.api.call("PUT", "/acp/tenants/acme").json(&body).send().expect(200);
    };
    let user = client(&program, "acme", "user");
    let with = |more: Value| {
        let mut body = json!({"workspaceId": "ws"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        user.post("/acp/session/new", body)
    };
    let server = json!([{"name": "shell", "command": "sh", "args": ["-c", "true"], "env": []}]);
    set(json!({"permissionPolicies": ["reject", "ask"], "agents": ["default"], "repositories": ["acme/*"],
        "mcpServers": "none"}));
    for (body, member) in [
        (json!({"permissionPolicy": "allow-always"}), "permissionPolicy"),
        (json!({"agent": "other"}), "agent"),
        (json!({"repository": "evil/repository"}), "repository"),
        (json!({"mcpServers": server}), "mcpServers[0]"),
    ] {
        let problem = with(body).problem(403, "ceiling_exceeded");
        assert!(problem["detail"].as_str().unwrap().starts_with(member), "{problem}");
    }
    // The caller cannot raise its own ceiling.
    let body = json!({"ceilings": {}, "reason": "please"});
    for role in ["user", "operator", "admin"] {
        let refused = client(&program, "acme", role).call("PUT", "/acp/tenants/acme").json(&body).send();
        refused.problem(403, "forbidden");
    }
    // The configured policy allows; the ceiling rejects.
    let session = user.open_with(json!({"workspaceId": "ws"}));
    let message = session.says("ask");
    assert_eq!(message, "reject");
    set(json!({"mcpServers": "any"}));
    user.post("/acp/session/load", json!({"sessionId": session.id, "mcpServers": server})).expect(200);
    set(json!({"mcpServers": "none"}));
    let load = json!({"sessionId": session.id, "mcpServers": server});
    user.post("/acp/session/load", load).problem(403, "ceiling_exceeded");
}

#[test]
fn tenant_tokens_end_the_common_home_and_unlisted_mcp_servers() {
    let listed = json!(["sh -c true"]);
    let program = Program::builder().set("ceilings.listed_mcp_servers", listed).start();
    let server = |script: &str| json!([{"name": "shell", "command": "sh", "args": ["-c", script], "env": []}]);
    let open = |api: &Api, script: &str| {
        api.post(
            "/acp/session/new",
            json!({"installationId": "acme", "workspaceId": "ws", "mcpServers": server(script)}),
        )
    };
    let before = program.api.open_with(json!({"installationId": "acme", "workspaceId": "ws"}));
    let shared = before.says("env HOME");
    open(&program.api, "echo anything").expect(201);
    let user = client(&program, "acme", "user");
    open(&user, "echo anything").problem(403, "ceiling_exceeded");
    open(&program.api, "echo anything").problem(403, "ceiling_exceeded");
    open(&user, "true").expect(201);
    let private = user.open_with(json!({"workspaceId": "ws"})).says("env HOME");
    assert!(private != shared && private.contains(".homes"), "{shared} {private}");
}

#[test]
fn token_at_its_limits_is_refused_with_figures_and_others_are_not() {
    let program = Program::start();
    let limits = json!({"sessions": 1, "promptsPerMinute": 2});
    let limited = json!({"installationId": "acme", "subject": "ann", "role": "user", "limits": limits});
    let ann = client_of(&program, limited);
    let session = ann.open_with(json!({"workspaceId": "ws"}));
    let refused = ann.post("/acp/session/new", json!({"workspaceId": "ws"})).problem(429, "limit_reached");
    assert_eq!((&refused["limit"]["name"], &refused["limit"]["limit"]), (&json!("sessions"), &json!(1)), "{refused}");
    session.completes("echo a");
    session.completes("echo b");
    let refused = session.call("echo c").send();
    assert!(!refused.header("retry-after").is_empty(), "{}", refused.text);
    let refused = refused.problem(429, "limit_reached");
    assert!(refused["detail"].as_str().unwrap().starts_with("the token sent 2 prompts"), "{refused}");
    let bob = client(&program, "acme", "user");
    bob.post("/acp/session/prompt", json!({"sessionId": session.id, "prompt": "echo d"})).expect(200);
    bob.open_with(json!({"workspaceId": "ws"}));
}

#[test]
fn operator_sees_no_contents_of_a_session() {
    let program = Program::builder().set("permission.policy", "ask").start();
    let user = client(&program, "acme", "user");
    let session = user.open_with(json!({"workspaceId": "ws"}));
    session.completes("echo a-secret-of-acme");
    session.prompt("error -32000 a-secret-of-acme").problem(502, "agent_auth_required");
    let mut stream = session.streams("ask");
    let seen = stream.until("the request", |event| event.name == "permission_request");
    let operator = client(&program, "acme", "operator");
    let of = |api: &Api, path: &str| api.get(&format!("/acp/session/{}{path}", session.id));
    assert!(of(&user, "/explain").text.contains("a-secret-of-acme"));
    assert_eq!(of(&user, "").expect(200)["permissionRequests"].as_array().map(Vec::len), Some(1));
    for path in ["", "/explain"] {
        let seen = of(&operator, path);
        assert!(!seen.text.contains("a-secret-of-acme"), "{path}: {}", seen.text);
    }
    assert_eq!(of(&operator, "").expect(200)["permissionRequests"], Value::Null);
    for path in ["/transcript", "/diff", "/events", "/prompts"] {
        of(&operator, path).problem(403, "forbidden");
    }
    let request_id = &seen.last().unwrap().data["update"]["requestId"];
    session.post("permission", json!({"requestId": request_id, "cancelled": true})).expect(200);
    stream.rest();
}

#[test]
fn encoded_characters_in_a_path_do_not_avoid_the_privilege() {
    let program = Program::start();
    let reader = client(&program, "acme", "reader");
    for (method, path) in [
        ("POST", "/acp/t%6fkens"),
        ("DELETE", "/acp/ten%61nts/acme"),
        ("PUT", "/acp/ten%61nts/acme"),
        ("GET", "/%6detrics"),
        ("GET", "/acp/web%68ooks/deliveries"),
        ("GET", "/acp/%61udit/migrations"),
        ("POST", "/acp/session/n%65w"),
        ("GET", "/acp/%74okens"),
    ] {
        let call = reader.call(method, path);
        let status = match method {
            "GET" | "DELETE" => call.status(),
            _ => call.json(&json!({"subject": "x", "role": "admin", "workspaceId": "ws"})).status(),
        };
        assert_eq!(status, 403, "{method} {path}");
    }
    // A name may be encoded.
    let session = program.api.open_with(json!({"workspaceId": "a:b", "installationId": "acme"}));
    assert_eq!(reader.call("GET", "/acp/workspaces/a%3Ab").status(), 200);
    assert_eq!(reader.call("GET", &format!("/acp/s%65ssion/{}", session.id)).status(), 200);
}

#[test]
fn percent_encoded_path_with_a_wrong_method_gets_405() {
    let program = Program::start();
    for (method, path, allow) in [
        ("DELETE", "/acp/sessi%6fns", "GET, HEAD"),
        ("POST", "/acp/ten%61nts/acme", "GET, HEAD, PUT, DELETE"),
        ("POST", "/acp/workspaces/a%3Ab", "GET, HEAD, DELETE"),
    ] {
        let call = program.api.call(method, path);
        let answer = if method == "POST" { call.json(&json!({})).send() } else { call.send() };
        assert_eq!(answer.header("allow"), allow, "{path}: {}", answer.text);
        answer.problem(405, "method_not_allowed");
    }
    program.api.get("/acp/n%6fthing").problem(404, "not_found");
}

#[test]
fn token_limited_to_a_user_changes_nothing_of_others() {
    let program = Program::start();
    let tenant = client(&program, "acme", "user");
    let bobs = tenant.open_with(json!({"workspaceId": "web", "userId": "bob"}));
    let of = |user: &str, role: &str| {
        client_of(&program, json!({"installationId": "acme", "userId": user, "subject": user, "role": role}))
    };
    let admin = of("ann", "admin");
    admin.call("DELETE", "/acp/workspaces/web").send().problem(403, "forbidden");
    tenant.get(&format!("/acp/session/{}", bobs.id)).expect(200);
    let lax = json!({"workspaceId": "web", "permissionPolicy": "allow-always"});
    of("ann", "user").post("/acp/session/new", lax).problem(403, "forbidden");
    // The key of another user opens a session of its own.
    let keyed = |api: &Api| {
        let call = api.call("POST", "/acp/session/new").header("idempotency-key", "K1");
        call.json(&json!({"workspaceId": "web"})).send().expect(201)["sessionId"].clone()
    };
    let (bob, ann) = (of("bob", "user"), of("ann", "user"));
    let of_bob = keyed(&bob);
    assert_ne!(keyed(&ann), of_bob);
    assert_eq!(keyed(&bob), of_bob, "a repeat gets its answer");
}

#[test]
fn token_passes_on_no_more_than_it_has() {
    let program = Program::start();
    let body = json!({"installationId": "acme", "subject": "ann", "role": "admin", "limits": {"sessions": 1}});
    let admin = client_of(&program, body);
    let made = admin.post("/acp/tokens", json!({"subject": "free", "role": "admin"})).expect(201);
    assert_eq!(made["limits"]["sessions"], 1, "{made}");
    let more = json!({"subject": "free", "role": "admin", "limits": {"sessions": 9, "turns": 2}});
    let made = admin.post("/acp/tokens", more).expect(201);
    assert_eq!((&made["limits"]["sessions"], &made["limits"]["turns"]), (&json!(1), &json!(2)), "{made}");
    for subject in ["server", "anonymous", "lumilink"] {
        admin.post("/acp/tokens", json!({"subject": subject, "role": "reader"})).problem(400, "invalid_request");
    }
}

#[test]
fn health_names_no_other_tenant() {
    let program = Program::builder().set("capacity.max_sessions", 10).set("capacity.tenant_share_bp", 2000).start();
    for workspace in ["one", "two"] {
        program.api.open_with(json!({"workspaceId": workspace, "installationId": "secret-customer"}));
    }
    assert!(program.api.get("/acp/health").text.contains("secret-customer"));
    assert!(!client(&program, "acme", "reader").get("/acp/health").text.contains("secret-customer"));
}
