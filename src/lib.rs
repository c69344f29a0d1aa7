//! LumiLink supervises sessions of coding agents that speak the Agent Client Protocol (ACP).
//!
//! A client opens a session over HTTP and sends prompts. Each session is an actor, supervised per workspace; it
//! speaks ACP to a coding agent that works in a container on a checkout. This page is the architecture: who has
//! read it can guess the file for any behaviour.
//!
//! # Two processes, one program
//!
//! ```text
//!  client ──HTTP──▶ lumilink serve ──ACP over WebSocket──▶ lumilink runtime ──ACP over stdio──▶ agent
//!                    http/ actors/        transport/           runtime/
//!                    store/               (acp_connection,     (acp_socket, workspaces,
//!                                          resumable)           fs and terminals)
//!                                     ──POST /process-prompt─▶ (fallback)      ──a fresh run──▶ agent
//!                                         (http_fallback)
//! ```
//!
//! `serve` embeds a runtime on a loopback port when none is configured, and the built-in [`demo_agent`] when no
//! agent is. The path is the same, nothing is short-cut; the two only share threads.
//!
//! # Floors
//!
//! An import goes down, never up, and never sideways between folders of one floor. `tests/architecture.rs` holds
//! this, and the rules below that a program can check.
//!
//! | floor | modules |
//! |---|---|
//! | 8 | `main.rs`: arguments → command → exit code |
//! | 7 | [`commands`]: one thin file per subcommand |
//! | 6 | [`app`]: builds every part in order, takes them down in the reverse order; the demo's tour |
//! | 5 | [`http`]: the public API · [`runtime`]: the container side · [`demo_agent`] · [`client`]: our own HTTP client |
//! | 4 | [`actors`]: thin shells over `domain` |
//! | 3 | [`transport`]: ways to an agent · [`store`]: the only place with SQL · [`webhook`]: signs and posts what operators are told |
//! | 2 | [`contract`]: our wire types · [`config`]: the only reader of the environment · [`telemetry`]: metrics, logs, clock, the watchdog of the threads |
//! | 1 | [`domain`]: every rule, number and text, pure; `now` is an argument |
//! | 0 | [`acp`]: frames, numbers, correlation, and the ACP messages under their spec names |
//!
//! # Two wires leave a turn
//!
//! 1. **Outcome** → [`actors::routing::window`] → [`actors::routing::router`] → [`actors::handles::route_gate`], where sessions read
//!    the route at the start of their next turn. No arrow back: each turn is stamped with the epoch in which it began, an
//!    outcome of an older epoch is not counted, and a window that sees a newer one starts empty.
//! 2. **Event** → metrics, log, readers; and rows: the end of a turn and its outcome, or a flip with all that it leaves,
//!    are one transaction, and are told after it. What people are told unasked is a row of that transaction
//!    ([`domain::notify::notice`] has every text); the commit wakes [`actors::notifications::hub`], which reads what is new and hands
//!    it to its subscribers.
//!
//! # Invariants
//!
//! 1. `domain` decides, actors only carry. A rule that needs an actor to be tested is in the wrong place.
//! 2. One restart rule ([`domain::session::restart`]), in the workspace supervisor: a fresh actor from a factory, backoff, 5
//!    restarts in 30 s, then `failed`. A session never heals itself. [`actors::upkeep::keeper`] goes by it for parts that there is
//!    one of, and waits where a session would be `failed`.
//! 3. A turn has exactly one outcome: whoever drops its ticket ends it ([`actors::session::turn_ticket`]).
//! 4. One database writer; handlers read. What has been acknowledged is on disk. A blocked database refuses new
//!    work and never blocks an arbiter.
//! 5. Every queue has a bound, and its doc says why that number and what happens when it is full.
//! 6. Text goes to disk or log only as [`Redacted`](domain::redaction::Redacted); a secret has a type that cannot
//!    be printed.
//! 7. A child process never outlives its session: own process group (and control group where it may be made), killed as
//!    a whole, reaped.
//! 8. HTTP status codes are chosen in [`contract::problem`] alone, metric names in [`telemetry`] alone.
//! 9. Constants do not change under test: tests set small values through the same configuration.
//!
//! # Walks
//!
//! - **New session**: [`http`] → [`actors::handles::capacity_guard`] (a seat; [`actors::upkeep::capacity`] hears of it) →
//!   [`actors::workspaces`] (the runtime
//!   prepares the folder, the workspace is written down) → [`actors::workspaces::supervisor`] → [`actors::session`] → [`transport`] →
//!   runtime → agent; the row is written, then the caller is told.
//! - **Prompt**: [`http`] → session, found without a hop → store (the turn is on disk) → transport → runtime →
//!   agent. Updates come back to the session, which publishes them ([`actors::handles::event_feed`]) and gathers the
//!   transcript. The end and the rest of the transcript are one transaction; the writer tells the waiting handler
//!   after the commit, and the runtime that it may forget.
//! - **Crash**: the runtime sees the process end, says everything that the agent had said, then how it ended → the
//!   session ends its turn with a classified failure and stops → its guard tells the supervisor → a fresh session
//!   takes its place, with the agent's own memory or the conversation as context.
//! - **Under the threshold**: ticket → store (the turn's end and its outcome) → window → router, which asks
//!   [`domain::routing`] on a copy, writes copy and flip in one transaction that holds only in its epoch, and then lets it
//!   count → gate → the next turn of each session lets its line go and takes one over the other route; what the new agent
//!   did not hear of the conversation goes ahead of the prompt. Cool-down → probe → canaries → the way back.
//! - **A fleet migrates**: [`http`] → [`actors::migrations`] (the run is on disk) → its driver asks [`domain::migration`] whom
//!   to move, writes that down, lets each agent shake hands, and changes the default at the workspace's router, whose flip
//!   carries the run's id → what became of each is written down. What a process that died had under way is settled by
//!   where the workspaces are.
//! - **Reconnect**: both ends of ACP over WebSocket number what they send and keep it until it is settled
//!   ([`domain::delivery`], [`acp::numbered`]) → the socket breaks → the runtime keeps agent and messages for the grace,
//!   the transport tries again → each end sends what the other did not get → the turn goes on. A session hears only that
//!   it was interrupted and resumed.
//! - **A supervisor that died**: at start the store names the turns that had not ended → [`actors::session::adoption`] asks the
//!   runtime for their agents → what it kept comes again, and the turn ends under its id; what it did not keep is
//!   `interrupted`.
//! - **Fallback**: the same turn without WebSocket and without an agent that lives: session → transport
//!   ([`transport::http`]) → `POST /process-prompt` → [`runtime::fallback`], which runs it with a fresh agent or
//!   a headless command → lines of updates, then the result. A line that breaks: the transport asks what became of the
//!   turn and never asks for it twice; the runtime knows it by its prompt id.
//! - **A subscriber of toasts**: [`http`] (the right, before the 101) → the store, page by page, as fast as the client
//!   reads → [`actors::notifications::hub`], which takes over where the last page ended, in one step →
//!   [`actors::handles::subscriber`], a bounded queue. Who falls behind is let go with its cursor; who does not read at all has its
//!   connection broken from outside, since its own actor is not run any more.
//! - **An operator's alert**: the cause, its toast and its delivery are one transaction → [`actors::notifications::webhook`] is woken, or
//!   finds the row at its next start, and takes it for a while → [`webhook`] signs and posts → the row says what came of
//!   it: delivered, another try, or dead until somebody replays it.
//! - **SIGTERM**: readiness off, admission closed → turns end or are cancelled at the deadline → sessions are let go
//!   → subscribers of toasts, runtime, HTTP, posts that are out, store.
//!
//! # What is not here
//!
//! No module named utils, no global state but the log, no call that a transport repeats, no clock in `domain`.

mod acp;
mod actors;
mod app;
mod client;
pub mod commands;
mod config;
mod contract;
mod demo_agent;
mod domain;
mod http;
mod process;
mod runtime;
mod store;
mod telemetry;
mod transport;
mod webhook;
