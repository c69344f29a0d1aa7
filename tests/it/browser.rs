//! Notifications in a real browser: a page of another origin gets tickets from its own server and never has a token.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use crate::harness::{
    Api, Program, Value,
    browser::Browser,
    json,
    notifications::Subscriber,
    proxy::{Mode, Proxy},
};

const TOKEN: &str = "a-token-that-no-page-ever-has";
const TENANT: &str = "installationId=tenant-1";

/// Shows notifications, deduplicated by id. After a disconnect, it resumes from the newest one with a new ticket.
const PAGE: &str = include_str!("browser.html");

/// The page's own server, which has the token.
struct PageServer {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    tickets: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl PageServer {
    fn bind() -> TcpListener {
        TcpListener::bind(("127.0.0.1", 0)).expect("a free port")
    }

    fn origin(listener: &TcpListener) -> String {
        format!("http://{}", listener.local_addr().expect("an address"))
    }

    /// Serves the page, and tickets for the WebSocket at `socket`.
    fn start(listener: TcpListener, api: Api, socket: SocketAddr) -> Self {
        let address = listener.local_addr().expect("an address");
        let (stopped, tickets) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (is_stopped, issued) = (stopped.clone(), tickets.clone());
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if is_stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (api, issued) = (api.clone(), issued.clone());
                // Browsers open spare connections in advance, which stay idle.
                thread::spawn(move || answer(stream, &api, socket, &issued));
            }
        });
        Self { address, stopped, tickets, thread: Some(thread) }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers one request.
fn answer(mut stream: TcpStream, api: &Api, socket: SocketAddr, issued: &AtomicUsize) {
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
    let line = lines.next().unwrap_or_default();
    lines.find(String::is_empty);
    let (status, media_type, body) = match line.split(' ').nth(1) {
        Some("/") => ("200 OK", "text/html", PAGE.to_owned()),
        Some("/ticket") => match ticket(api) {
            Some(ticket) => {
                issued.fetch_add(1, Ordering::SeqCst);
                let url = format!("ws://{socket}/ws/notifications");
                ("200 OK", "application/json", json!({"ticket": ticket, "url": url}).to_string())
            }
            None => ("503 Service Unavailable", "text/plain", String::new()),
        },
        _ => ("404 Not Found", "text/plain", String::new()),
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n");
    // The browser may have disconnected.
    let _ = stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes());
}

/// Returns a ticket, or `None` while the program is unavailable.
fn ticket(api: &Api) -> Option<String> {
    let asked = api.call("POST", "/acp/notifications/ticket").json(&json!({"installationId": "tenant-1"}));
    let answer = asked.try_send().ok()?;
    answer.body["ticket"].as_str().map(str::to_owned)
}

fn flip(api: &Api, verb: &str) {
    let why = json!({"actor": "ada", "reason": "drill"});
    api.post(&format!("/acp/workspaces/ws/{verb}"), why).expect(200);
}

fn start(origin: &str) -> Program {
    let program = Program::builder()
        .token(TOKEN)
        .set("recovery.cooldown_s", 1800)
        .set("server.allowed_origins", json!([origin]))
        .start();
    program.api.open("ws");
    program
}

/// Returns the listed notifications in the page's format, oldest first.
fn listed(api: &Api) -> Value {
    let list = api.get(&format!("/acp/notifications?{TENANT}")).expect(200);
    let text = |item: &Value| {
        let text = |member: &str| item["toast"][member].as_str().expect("a text").to_owned();
        format!("{}: {}", text("title"), text("body"))
    };
    json!(list["items"].as_array().expect("an array").iter().rev().map(text).collect::<Vec<_>>())
}

#[test]
fn page_shows_each_notification_once_across_reconnects() {
    let listener = PageServer::bind();
    let mut program = start(&PageServer::origin(&listener));
    let proxy = Proxy::start(program.address);
    let server = PageServer::start(listener, program.api.clone(), proxy.address());
    let mut browser = Browser::start();
    let mut page = browser.open(&server.url());
    page.becomes("state.welcomes === 1");
    ["rollback", "restore"].into_iter().for_each(|verb| flip(&program.api, verb));
    page.becomes("notifications().length === 2");

    // The connection fails for a while.
    proxy.refuse();
    proxy.set_open(Mode::Reset);
    page.becomes("state.closed.length > 0");
    ["rollback", "restore", "rollback"].into_iter().for_each(|verb| flip(&program.api, verb));
    assert_eq!(page.evaluate("notifications().length"), 2);
    proxy.admit();
    page.becomes("notifications().length === 5");

    // The service is killed and restarted.
    program.kill_supervisor();
    page.becomes("socket.readyState !== WebSocket.OPEN");
    program.start_supervisor_again();
    flip(&program.api, "restore");
    proxy.target(program.address);
    flip(&program.api, "rollback");
    page.becomes("notifications().length === 7");
    assert_eq!(page.evaluate("notifications()"), listed(&program.api));
    let state = page.evaluate("state");
    assert_eq!(
        (&state["welcomes"], &state["resets"], &state["doubled"]),
        (&json!(3), &json!(0), &json!(0)),
        "{state}"
    );
    assert!(server.tickets.load(Ordering::SeqCst) >= 3, "each connection took a ticket");

    page.evaluate("ack()");
    page.becomes("state.acked");
    let acked = page.evaluate("state.acked");
    assert_eq!((&acked["found"], &acked["unread"]), (&json!(true), &json!(6)), "{acked}");
    assert_eq!(program.api.get(&format!("/acp/notifications?{TENANT}")).expect(200)["unread"], 6);
    let source = page.evaluate("document.documentElement.outerHTML + JSON.stringify(localStorage) + document.cookie");
    assert!(!source.as_str().expect("a text").contains(TOKEN), "the page never has the token");
}

#[test]
fn page_of_a_foreign_origin_is_refused_despite_valid_tickets() {
    let (ours, foreign) = (PageServer::bind(), PageServer::bind());
    let origin = PageServer::origin(&ours);
    let program = start(&origin);
    let ours = PageServer::start(ours, program.api.clone(), program.address);
    let foreign = PageServer::start(foreign, program.api.clone(), program.address);
    let mut browser = Browser::start();
    let mut page = browser.open(&foreign.url());
    page.becomes("state.closed.length >= 2");
    let state = page.evaluate("state");
    assert_eq!((&state["opened"], &state["closed"][0]), (&json!(0), &json!(1006)), "{state}");
    assert!(foreign.tickets.load(Ordering::SeqCst) >= 2, "the page had tickets");
    // A direct request from the page is refused, too.
    let url = json!(format!("http://{}/acp/notifications/ticket", program.address));
    let asked = format!("fetch({url}, {{method: 'POST', body: '{{}}'}}).then(() => 'answered', () => 'refused')");
    assert_eq!(page.evaluate(&asked), "refused");
    // The refusal is due to the origin and does not use up the ticket.
    let ticket = ticket(&program.api).expect("a ticket");
    let query = format!("ticket={ticket}");
    let subscribe = |origin: &str| Subscriber::open(&program.api.base(), &query, &[("origin", origin)]);
    let refused = subscribe(foreign.url().trim_end_matches('/')).err().expect("refused");
    assert_eq!((refused.status, &refused.problem["code"]), (403, &json!("forbidden_origin")), "{refused:?}");
    subscribe(&origin).expect("a WebSocket").hello(json!({}));
    let mut page = browser.open(&ours.url());
    page.becomes("state.welcomes === 1");
}
