//! LumiLink supervises sessions of coding agents that speak the Agent Client Protocol (ACP).
//!
//! A client opens a session over HTTP and sends prompts. Each session is an actor, supervised per workspace, that
//! speaks ACP to a coding agent in a container, on a checkout. This page is the architecture: a reader of it can guess
//! the file of any behaviour.
//!
//! # Two processes, one program
//!
//! ```text
//!  client ──HTTP──▶ lumilink serve ──ACP over WebSocket──▶ lumilink runtime ──ACP over stdio──▶ agent
//!                    http/ actors/     transport/acp          runtime/socket
//!                    store/            transport/socket       runtime/agents  process/
//!                                  ──POST /process-prompt──▶  runtime/fallback ──a fresh run──▶ agent
//!                                      transport/http
//! ```
//!
//! `serve` embeds a runtime on a loopback port when none is configured, and uses the built-in [`demo_agent`] when no
//! agent is. The path is the same and nothing is short-cut; both sides only share threads.
//!
//! # Floors
//!
//! An import goes down, never up, and never sideways between folders of one floor; inside a floor, folders and files
//! form no cycle. `tests/architecture` checks this and every rule below that a program can check, and prints figures of
//! files, folders and words.
//!
//! | floor | folders |
//! |---|---|
//! | 9 | `main.rs`: arguments, command, exit code |
//! | 8 | [`commands`]: one file per subcommand, each with its own rendering |
//! | 7 | [`app`]: starts every part in order, stops them in reverse; the tour of `demo` |
//! | 6 | [`http`]: the public API · [`runtime`]: the container side · [`demo_agent`] · [`client`]: our own HTTP client |
//! | 5 | [`actors`]: shells over `domain` |
//! | 4 | [`process`]: agents and commands as child processes |
//! | 3 | [`transport`]: ways to an agent · [`store`]: the only place with SQL · [`webhook`]: signs and posts alerts |
//! | 2 | [`contract`]: wire types · [`config`]: the only reader of the environment · [`telemetry`]: metrics and logs |
//! | 1 | [`domain`]: every rule, number and text; pure, `now` is an argument |
//! | 0 | [`acp`]: frames, message numbers, correlation, and ACP messages under their spec names |
//!
//! # Where to look
//!
//! The same capability has the same name on every floor:
//!
//! | capability | API | actors | rules | tables | other side |
//! |---|---|---|---|---|---|
//! | sessions and turns | `http/sessions` | `actors/session`, `actors/workspaces` | `domain/session`, `domain/turn` | `store/sessions`, `store/turns`, `store/transcript` | `transport/acp`, `runtime/socket`, `runtime/conversations` |
//! | routes and fallback | `http/routing` | `actors/routing` | `domain/routing` | `store/routing` | `transport/http`, `runtime/fallback` |
//! | migrations of fleets | `http/routing/migrations` | `actors/migrations` | `domain/migration` | `store/routing/migrations` | |
//! | notifications | `http/notifications` | `actors/notifications` | `domain/notify` | `store/notifications` | `webhook`, `client/notifications` |
//! | capacity and retention | `http/health` | `actors/upkeep`, `actors/handles/capacity_guard` | `domain/capacity` | `store/audit`, `store/retention` | |
//! | automation | `contract/automation` | `actors/session/automation` | `domain/automation` | `store/automation` | |
//! | audit | `http/audit` | | `domain/words` | `store/audit` | |
//! | agents and workspaces | `POST /workspace/…` of the runtime | | `domain/session/pending_permissions` | `store/workspaces` | `runtime/agents`, `runtime/workspaces`, `process` |
//!
//! # Glossary: one concept, one word
//!
//! - **agent, client, session, prompt turn, update, stop reason**: as in ACP. A **turn** is one prompt with its end.
//! - **tenant** (`installationId`), **workspace**: a tenant's folder that sessions share.
//! - **runtime**: the container side. **Transport**: a way to an agent. **Route**: what a workspace's turns use, `acp`
//!   or `http`. **Carrier**: the route that carried one turn.
//! - **outcome**: what a turn ended with. **Window**: a workspace's outcomes of the last hour. **Flip**: one change of a
//!   workspace's route; a **rollback** goes to HTTP, a **restore** back to ACP. **Epoch**: the number of flips so far.
//!   **Canary**: a turn over ACP during recovery. **Storm**: many workspaces that roll back at once.
//! - **migration**: a planned move of a set of workspaces. **Schema upgrade**: a change of the database's tables.
//! - **connection**: to an agent. **Socket**: one WebSocket. **Conversation**: what survives sockets.
//! - **client requests**: calls of an agent to its client: files, terminals, permissions.
//! - **notification**: one message to people (`toast` in wire names only). **Stream**: a tenant's or the operators'
//!   sequence of notifications. **Cursor**: a reader's place in it. **Subscriber**: a reader of it; one that falls behind
//!   is **evicted**.
//! - **note**: an entry of the transcript that records an event. **Session notice**: a notification and its note.
//! - **skip**: automation that was left out on purpose, always with a reason.
//! - **seat**: the right of a session to run, of a limited number. **Drain**: an orderly stop.
//! - **telemetry**: metrics and logs. **Session progress**: frames about live sessions.
//! - **attribution**: who asked for a change, and why. **Services**: the handles that sessions share.
//!
//! # Two wires leave a turn
//!
//! 1. **Outcome** → [`actors::routing::window`] → [`actors::routing::router`] → [`actors::handles::route_gate`], where
//!    sessions read the route at the start of their next turn. No arrow leads back: a turn is stamped with the epoch in
//!    which it began, outcomes of an older epoch are ignored, and a window that sees a newer one starts empty.
//! 2. **Event** → metrics, log, readers; and rows: what happened, its audit row and its notification are one
//!    transaction, and subscribers are notified after the commit. [`domain::notify::notice`] has every text.
//!
//! # Invariants
//!
//! 1. `domain` decides, actors carry. A rule that needs an actor to be tested is in the wrong place.
//! 2. Actors do not import each other: they import [`actors::handles::messages`] and hold recipients. Only parent →
//!    child is an import.
//! 3. One database writer per process ([`store::engine::writer`]); handlers read. What was acknowledged is on disk. A
//!    blocked database refuses new work with 503, loses no row and never blocks an arbiter.
//! 4. One restart rule ([`domain::session::restart`]), applied by the workspace supervisor: a fresh actor from a
//!    factory, backoff, 5 restarts in 30 s, then `failed`. [`actors::upkeep::keeper`] applies it to singleton parts.
//! 5. A turn has exactly one outcome: dropping its ticket ends it ([`actors::session::turn_ticket`]).
//! 6. Text reaches disk, notification or log only as [`Redacted`](domain::redaction::Redacted); a secret has a type
//!    that cannot be printed.
//! 7. Every queue is bounded; its doc comment says why that number and what happens when it is full.
//! 8. A child process never outlives its session: it runs in a process group of its own (and a control group where one
//!    can be made), which is killed as a whole and reaped ([`process`]).
//! 9. HTTP status codes are chosen in [`contract::problem`], the environment is read in [`config`], metric names are in
//!    [`telemetry::metrics`], SQL is in [`store`].
//! 10. Constants do not change under test: tests configure small values.
//! 11. Locks do not poison (`parking_lot`), so a panic under a lock has to leave consistent data: a critical section
//!     changes its data in steps that cannot fail half-way, and no guard is held across an `await`.
//!
//! # Walkthroughs
//!
//! **A new session**
//! 1. `http/sessions/mod.rs` checks the request; `actors/handles/capacity_guard.rs` gives a seat.
//! 2. `actors/workspaces/open.rs` has the runtime prepare the folder and records the workspace.
//! 3. `actors/workspaces/supervisor.rs` starts `actors/session/mod.rs`, which connects (`actors/session/connect.rs`)
//!    through `transport/acp` to `runtime/socket`; `runtime/agents/mod.rs` starts the agent.
//! 4. The session's row is committed, then the caller is answered.
//!
//! **A prompt**
//! 1. `http/sessions/prompt.rs` finds the session without a hop ([`actors::handles::index`]).
//! 2. `actors/session/turn.rs` accepts it: the turn is committed (`store/turns/mod.rs`) before anything is sent.
//! 3. `transport/acp` frames it, `transport/socket` carries it, `runtime/conversations` hands it to the agent.
//! 4. Updates come back to `actors/session/agent_events.rs`, which publishes them ([`actors::handles::event_feed`]) and
//!    collects the transcript.
//! 5. The end of the turn and the rest of the transcript are one transaction (`actors/session/turn_ticket.rs`); after
//!    the commit the waiting handler is answered and the runtime may drop what it kept.
//!
//! **A crash of the agent**
//! 1. `process/watch.rs` sees the process end; `process/stdio.rs` delivers everything that it wrote, then how it ended.
//! 2. The session ends its turn with a classified failure (`domain/turn/outcome.rs`) and stops.
//! 3. Its guard reports to `actors/workspaces/supervisor.rs`, which starts a fresh session, with the agent's own memory
//!    or the conversation as context (`domain/session/context.rs`).
//!
//! **Below the threshold**
//! 1. The turn's ticket writes end and outcome; `actors/routing/window.rs` counts it.
//! 2. `actors/routing/router.rs` asks `domain/routing/mod.rs` on a copy, writes copy and flip in one transaction that
//!    holds only in its epoch (`store/routing/flips.rs`), and then makes it current.
//! 3. `actors/handles/route_gate.rs` shows the new route; the next turn of each session closes its connection and opens
//!    one on the other route. The new agent gets what it missed of the conversation ahead of the prompt.
//! 4. After the cool-down: a probe, then canaries, then ACP for all.
//!
//! **A turn over the fallback**
//! 1. `transport/http` posts it to the runtime, once; no prompt is ever sent twice.
//! 2. `runtime/fallback` runs it with a fresh agent or a headless command and streams lines, then the result.
//! 3. If the stream breaks, the transport asks by prompt id what became of the turn.
//!
//! **A fleet migrates**
//! 1. `http/routing/migrations.rs` starts a run, which is on disk first.
//! 2. `actors/migrations/driver.rs` asks `domain/migration` which workspaces to move, records that, lets each agent
//!    complete a handshake, and changes the default at the workspace's router, whose flip carries the run's id.
//! 3. The result of each step is recorded. Steps of a process that died are settled by the workspaces' current routes.
//!
//! **A connection breaks**
//! 1. Both ends number what they send and keep it until it is settled ([`domain::delivery`], [`acp::numbered`]).
//! 2. The runtime keeps agent and messages for the grace (`runtime/conversations`); `transport/socket` reconnects.
//! 3. Each end sends what the other missed; the turn continues. The session sees `reconnecting`, then `connected`.
//!
//! **The supervisor dies**
//! 1. At start the store lists turns without an end (`store/turns/recovery.rs`).
//! 2. `actors/session/adoption.rs` asks the runtime for their agents; what it kept is replayed, and the turn ends under
//!    its id. Turns that it did not keep are `interrupted`.
//!
//! **A subscriber of notifications**
//! 1. `http/notifications/access.rs` checks the right before the 101.
//! 2. `http/notifications/feed.rs` replays from the store, page by page, as fast as the client reads.
//! 3. `actors/notifications/hub.rs` takes over where the last page ended, in one step, into a bounded queue
//!    (`actors/handles/subscriber.rs`). A subscriber that falls behind is evicted with its cursor; the connection of one
//!    that does not read at all is cut from outside (`http/notifications/connection.rs`), because its actor no longer
//!    runs.
//!
//! **An operator's alert**
//! 1. Cause, notification and delivery are one transaction (`store/notifications/deliveries.rs`).
//! 2. `actors/notifications/webhook.rs` leases what is due; [`webhook`] signs and posts it.
//! 3. The row records the result: delivered, retried, or dead until it is replayed.
//!
//! **SIGTERM** ([`app`])
//! 1. Readiness goes off, admission closes.
//! 2. Turns end, or are cancelled at the deadline; sessions hibernate.
//! 3. Subscribers get 1001; then runtime, HTTP, webhook posts and store stop.
//!
//! # What is not here
//!
//! No module named utils, no global state but the log, no request that a transport repeats, no clock in `domain`.
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "this page links to the modules that it describes; they are private"
)]

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
