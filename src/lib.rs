//! LumiLink supervises sessions of coding agents that speak the Agent Client Protocol (ACP).
//!
//! A client opens a session over HTTP and sends prompts. Each session is an actor that speaks ACP to a coding agent,
//! which works in a checkout in a container; one supervisor per workspace restarts the sessions of the workspace. This
//! page is the architecture: it names the file of most behaviours.
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
//! agent is configured. An embedded runtime is reached over the same WebSocket and HTTP; both sides share one process.
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
//! | 7 | [`app`]: one file per area with its `start_*` and `stop`, which `start.rs` and `stop.rs` order; the tour of `demo` |
//! | 6 | [`http`]: the public API · [`runtime`]: the container side · [`demo_agent`] · [`client`]: our own HTTP client |
//! | 5 | [`actors`]: apply the rules of `domain` to messages, rows and timers |
//! | 4 | [`process`]: agents and commands as child processes |
//! | 3 | [`transport`]: ways to an agent · [`store`]: the only place with SQL · [`webhook`]: signs and posts alerts |
//! | 2 | [`contract`]: wire types · [`config`]: settings, and the only reader of the environment · [`telemetry`]: metrics and logs |
//! | 1 | [`domain`]: every rule, with the numbers that are no settings, and every notification text; pure, `now` is an argument |
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
//! | capacity and retention | `http/health` | `actors/upkeep`, `actors/handles/capacity_guard` | `domain/capacity`, `domain/retention` | `store/audit`, `store/retention`, `store/history` | `runtime/workspaces` |
//! | automation | `contract/automation` | `actors/session/automation` | `domain/automation` | `store/automation` | |
//! | audit | `http/audit` | | `domain/explain` | `store/audit` | |
//! | agents and workspaces | `POST /workspace/…` of the runtime | | `domain/session/pending_permissions` | `store/workspaces` | `runtime/agents`, `runtime/workspaces`, `process` |
//!
//! Behaviours that are often looked for:
//!
//! | behaviour | file |
//! |---|---|
//! | a setting gets its default and its checks | `config/sections`: one file per section |
//! | an outcome is classified | `domain/turn/mod.rs` (`TurnOutcome`), `domain/turn/outcome.rs` (error codes), `domain/routing/sampling.rs` (success or failure of ACP) |
//! | an error code gets its HTTP status | `contract/problem.rs` |
//! | an agent is killed | `process/watch.rs`; with a control group `process/cgroup.rs`; what left its group `process/orphans.rs` |
//! | updates of a message or tool call become one entry | `domain/turn/transcript.rs`; a large payload is cut in `domain/turn/payload.rs` |
//! | an update outside a turn is kept | `actors/session/late_updates.rs` |
//! | the folder of a workspace is removed | `actors/upkeep/folders.rs` |
//! | an idle session hibernates | `actors/session/mod.rs` stops it (`EndCause::Idle`), `actors/workspaces/supervisor.rs` writes `Hibernated` |
//! | a notification subscriber is evicted | `actors/handles/subscriber.rs` (queue full, stalled), `http/notifications/socket.rs` (malformed frame, silent, expired) |
//! | a peer is pinged and counts as dead | `domain/heartbeat.rs` |
//!
//! # Glossary: one concept, one word
//!
//! - **agent, client, session, prompt turn, update, stop reason**: as in ACP. A **turn** is one prompt with its end.
//! - **tenant** (`installationId`), **workspace**: a tenant's folder that sessions share.
//! - **runtime**: the container side. **Transport**: code that reaches an agent over one protocol. **Route**: what a
//!   workspace's turns use, `acp` or `http`; some members, labels and flags call it `protocol`. **Carrier**: the route
//!   that carried one turn. A workspace is **in use** while this process holds its supervisor.
//! - **outcome**: the end of a turn: completed, cancelled or failed. **Window**: a workspace's outcomes of the last
//!   hour over ACP; a second one counts the fallback and decides nothing. **Flip**: one change of a workspace's route;
//!   a **rollback** goes to HTTP, a **restore** back to ACP. **Epoch**: the number of flips of a workspace so far.
//!   **Store epoch**: the identity of a database, renewed after a restore from a backup; `epoch` in frames of
//!   notifications and in `lumilink toasts`. **Canary**: a turn over ACP during recovery. **Storm**: many workspaces
//!   that roll back at once.
//! - **migration**: a planned move of a set of workspaces to another default route; one is a **run**. **Schema
//!   upgrade**: a change of the database's tables (`lumilink migrate`, the folder `migrations`). `audit migrations`
//!   lists flips.
//! - **connection**: to an agent. **Socket**: one WebSocket. **Conversation**: what survives sockets.
//! - **client requests**: calls of an agent to its client: files, terminals, permissions.
//! - **notification**: one message to people (`toast` in frames, metrics and the command). **Stream**: a tenant's or
//!   the operators' sequence of notifications. **Cursor**: a reader's place in it. **Subscriber**: a reader of it; one
//!   that falls behind is **evicted**.
//! - **entry**: a row of the transcript: a message, tool call, plan or other state; a **revision** changes it.
//! - **note**: an entry of the transcript that records an event. **Session notice**: a notification and its note.
//! - **skip**: automation that was left out on purpose, always with a reason.
//! - **seat**: permission to run; `capacity.max_sessions` exist. **Drain**: an orderly stop. **Arbiter**: a thread of
//!   actix that runs actors.
//! - **telemetry**: metrics and logs. **Session progress**: frames about live sessions (`telemetry` in frames and
//!   flags).
//! - **attribution**: the initiator of a change, and the reason. **Services**: the handles that sessions share.
//!
//! # A turn reports to two places
//!
//! 1. **Outcome** → [`actors::routing::window`] → [`actors::routing::router`] → [`actors::handles::route_gate`], where
//!    sessions read the route at the start of their next turn. Nothing is reported back: each turn carries the epoch in
//!    which it began. A window ignores outcomes of older epochs and empties itself at the first of a newer one.
//! 2. **Event** → metrics, log and readers, and the database: the event, its audit row and its notification are one
//!    transaction, and subscribers are notified after the commit. [`domain::notify::notice`] has every text.
//!
//! # Invariants
//!
//! 1. Rules are in `domain`, where they are tested without an actor; actors only apply them.
//! 2. Actors do not import each other, except a parent its child. They import [`actors::handles::messages`] and hold
//!    recipients.
//! 3. One database writer per process ([`store::engine::writer`]); handlers read. Acknowledged data is on disk.
//!    While the database is blocked, new work is refused with 503, no row is lost, and no arbiter waits for it.
//! 4. One restart rule ([`domain::session::restart`]), applied by the workspace supervisor: a fresh actor from a
//!    factory, backoff, 5 restarts in 30 s, then `failed`. [`actors::upkeep::keeper`] applies it to the notification
//!    hub and the webhook poster.
//! 5. A turn has exactly one outcome: a dropped `TurnTicket` ends the turn with a failure
//!    ([`actors::session::turn_ticket`]).
//! 6. Text reaches disk, notification or log only as [`Redacted`](domain::redaction::Redacted); a secret has a type
//!    that cannot be printed.
//! 7. Every queue is bounded; its doc comment says why that number and what happens when it is full.
//! 8. A child process never outlives its session: it runs in its own process group (and in a control group if one can
//!    be created), which `process/watch.rs` kills as a whole and reaps.
//! 9. HTTP status codes are chosen in [`contract::problem`], the environment is read in [`config`], metric names are in
//!    [`telemetry::metrics`], SQL is in [`store`].
//! 10. No constant has another value in tests; tests set small values in the configuration.
//! 11. Locks do not poison (`parking_lot`), so a panic under a lock must leave consistent data: a critical section must
//!     not panic between two changes that belong together, and no guard is held across an `await`.
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
//! 1. `http/sessions/prompt.rs` finds the session without asking another actor ([`actors::handles::index`]).
//! 2. `actors/session/turn.rs` accepts it: the turn is committed (`store/turns/mod.rs`) before anything is sent.
//! 3. `transport/acp` frames it, `transport/socket` carries it, `runtime/conversations` hands it to the agent.
//! 4. Updates come back to `actors/session/agent_events.rs`, which publishes them ([`actors::handles::event_feed`]) and
//!    collects the transcript.
//! 5. The end of the turn and the rest of the transcript are one transaction (`actors/session/turn_ticket.rs`). After
//!    the commit the HTTP handler gets the result, and the runtime may drop the messages that it kept for a resume.
//!
//! **A crash of the agent**
//! 1. `process/watch.rs` reaps the process and kills the rest of its group; `process/stdio.rs` delivers everything that
//!    it wrote, then its exit status.
//! 2. The session ends its turn with a classified failure (`TurnOutcome` in `domain/turn/mod.rs`, the error code in
//!    `domain/turn/outcome.rs`) and stops.
//! 3. Its drop guard reports to `actors/workspaces/supervisor.rs`, which starts a fresh session. The agent reloads its
//!    own conversation, or gets it as context (`domain/session/context.rs`).
//!
//! **An idle session hibernates**
//! 1. `actors/session/mod.rs` starts a timer of `session.idle_timeout_s` after its start and after each turn; when it
//!    fires, the session ends its agent and stops with `EndCause::Idle`.
//! 2. `actors/workspaces/supervisor.rs` writes the state `Hibernated` and frees the seat.
//! 3. The next prompt, or a load, starts the session again (`actors/workspaces/mod.rs`).
//!
//! **A workspace is rolled back**
//! 1. The turn's ticket writes end and outcome; `domain/routing/sampling.rs` makes it a success, a failure or neither,
//!    and `actors/routing/window.rs` counts it.
//! 2. `actors/routing/router.rs` lets a copy of the route state decide (`domain/routing/mod.rs`), writes the new state
//!    and the flip in one transaction, which fails if the epoch has changed (`store/routing/flips.rs`), then uses the
//!    copy.
//! 3. `actors/handles/route_gate.rs` shows the new route; the next turn of each session closes its connection and opens
//!    one on the other route. The new agent gets the part of the conversation that it missed ahead of the prompt.
//! 4. After the cool-down: a probe (a handshake), then canaries, then ACP for all.
//!
//! **A turn over the fallback**
//! 1. `transport/http` posts it to the runtime, once; no prompt is ever sent twice.
//! 2. `runtime/fallback` runs it with a fresh agent or a headless command and streams lines, then the result.
//! 3. If the stream breaks, the transport asks for the result by prompt id.
//!
//! **A fleet migrates**
//! 1. `http/routing/migrations.rs` records a run and then starts it.
//! 2. `actors/migrations/driver.rs` asks `domain/migration` for the workspaces of the next step and records the step.
//! 3. Before a move to ACP, an agent of the workspace must complete a handshake (`actors/migrations/moves.rs`).
//! 4. The workspace's router changes its default; its flip carries the run's id.
//! 5. The result of the step is recorded. After a crash, the current route of each workspace shows whether its step was
//!    done.
//!
//! **A connection breaks**
//! 1. Both ends number what they send and keep it until it is settled ([`domain::delivery`], [`acp::numbered`]).
//! 2. The runtime keeps agent and messages for `runtime.reconnect_grace_s` (`runtime/conversations`);
//!    `transport/socket` reconnects.
//! 3. Each end sends what the other missed; the turn continues. The session sees `reconnecting`, then `connected`.
//!
//! **The supervisor dies**
//! 1. At start the store lists turns without an end (`store/turns/recovery.rs`).
//! 2. `actors/session/adoption.rs` reconnects to the agents that the runtime kept; their messages are replayed, and the
//!    turns end under their ids. All other open turns become `interrupted`.
//!
//! **A subscriber of notifications**
//! 1. `http/notifications/access.rs` checks the token or ticket before the WebSocket upgrade (101).
//! 2. `http/notifications/feed.rs` replays from the store, page by page, as fast as the client reads.
//! 3. After the last page `actors/notifications/hub.rs` puts new notifications into the subscriber's bounded queue
//!    (`actors/handles/subscriber.rs`). A subscriber that falls behind is evicted with its cursor. If a client reads
//!    nothing, its socket actor is blocked, so another task closes the connection (`http/notifications/connection.rs`).
//!
//! **An operator's alert**
//! 1. Cause, notification and delivery are one transaction (`store/notifications/deliveries.rs`).
//! 2. `actors/notifications/webhook.rs` claims due deliveries for a limited time; [`webhook`] signs and posts them.
//! 3. The row records the result: delivered, retried, or dead until it is replayed.
//!
//! **SIGTERM** ([`app`])
//! 1. `/readyz` turns 503 and new work is refused.
//! 2. Turns end, or are cancelled after `drain.timeout_s`; sessions hibernate.
//! 3. Subscribers' WebSockets are closed with code 1001; then runtime, HTTP, webhook posts and store stop.
//!
//! # What is not here
//!
//! No module named utils, no global state but the log, no prompt that is sent twice, no clock in `domain`.
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
