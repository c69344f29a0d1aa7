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
//! The HTTP fallback is the other transport: one request per turn, for workspaces whose ACP is unhealthy.
//!
//! When no runtime is configured, `serve` starts one in its own process, on a loopback port, and reaches it in the same
//! way. When no agent is configured, it uses the built-in [`demo_agent`].
//!
//! # Floors
//!
//! An import goes down, never up, and never sideways between folders of one floor; inside a floor, folders and files
//! form no cycle. `tests/architecture` checks this and every rule below that a program can check, and prints figures of
//! files, folders and words.
//!
//! | floor | folders |
//! |---|---|
//! | 9 | `main.rs`: arguments, command, exit code, allocator |
//! | 8 | [`commands`]: one file per subcommand, each with its own rendering |
//! | 7 | [`app`]: one file per area with `start_*` and `stop` functions, called in order by `start.rs` and `stop.rs`; the command `demo` |
//! | 6 | [`http`]: the public API · [`runtime`]: the container side · [`demo_agent`] · [`client`]: our own HTTP client |
//! | 5 | [`actors`]: apply the rules of `domain` to messages, rows and timers |
//! | 4 | [`process`]: agents and commands as child processes · [`cluster`]: supervisors that share a database |
//! | 3 | [`transport`]: ways to an agent · [`store`]: the only place with SQL · [`webhook`]: signs and posts alerts, checks signatures of GitHub · [`github`]: client of GitHub's REST API, authentication of the App |
//! | 2 | [`contract`]: wire types · [`config`]: settings, and the only reader of the environment · [`telemetry`]: metrics and logs |
//! | 1 | [`domain`]: every rule and constant, and every notification text; pure, `now` is an argument |
//! | 0 | [`acp`]: JSON-RPC frames, the numbers of messages on a resumable connection, matching of answers to requests, ACP messages under their spec names |
//!
//! # Where to look
//!
//! A capability has one row; its folders have its name, or the names of its parts:
//!
//! | capability | API | actors | rules | tables | other side |
//! |---|---|---|---|---|---|
//! | sessions and turns | `http/sessions` | `actors/session`, `actors/workspaces` | `domain/session`, `domain/turn` | `store/sessions`, `store/turns`, `store/transcript` | `transport/acp`, `runtime/socket`, `runtime/conversations` |
//! | routes and fallback | `http/routing` | `actors/routing` | `domain/routing` | `store/routing` | `transport/http`, `runtime/fallback` |
//! | migrations of fleets | `http/routing/migrations` | `actors/migrations` | `domain/migration` | `store/routing/migrations` | |
//! | notifications | `http/notifications` | `actors/notifications` | `domain/notify` | `store/notifications` | `webhook`, `client/notifications` |
//! | capacity and retention | `http/health` | `actors/upkeep`, `actors/handles/capacity_guard` | `domain/capacity` | `store/audit`, `store/retention` | |
//! | automation | `http/automation` | `actors/automation`, `actors/session/automation`, `actors/session/closing` | `domain/automation` | `store/automation` | `runtime/automation`, `github` |
//! | turns that GitHub starts | `http/triggers` | `actors/triggers` | `domain/automation/trigger` | `store/automation/deliveries` | `github` |
//! | tenants' limits, ceilings and policy of automation | `http/tenants` | `actors/handles/tenants` | `domain/tenant`, `domain/limits` | `store/tenants` | |
//! | erasure | `http/erasure` | `actors/erasure` | `domain/erasure` | `store/erasure` | `POST /workspace/remove`, `POST /tenant/remove` of the runtime |
//! | audit | `http/audit` | | `domain/explain`, `domain/changes` | `store/audit`, `store/changes` | |
//! | agents and workspaces | `POST /workspace/…` of the runtime | | `domain/session/pending_permissions` | `store/workspaces` | `runtime/agents`, `runtime/workspaces`, `process` |
//! | jail of agents | `jail` in `http/health.rs` | | `domain/jail` | | `process/sandbox`, used by `runtime/agents` |
//!
//! Behaviours that are often looked for:
//!
//! | behaviour | file |
//! |---|---|
//! | a setting gets its default and its checks | `config/sections`: one file per section |
//! | the outcome of a turn is decided | `domain/turn/mod.rs` |
//! | an error gets its code | `domain/turn/outcome.rs` |
//! | an outcome counts for or against ACP | `domain/routing/sampling.rs` |
//! | a rollback storm begins and ends | rule `domain/routing/storm.rs`, counts and alarm `store/routing/storms.rs` |
//! | writes that wait for the database are bounded in bytes | `store/engine/room.rs` |
//! | a file request of an agent is answered | `runtime/agents/requests.rs`, `runtime/agents/files.rs` |
//! | events are streamed to a client (SSE) | `http/sessions/stream.rs` |
//! | tables are created and upgraded | `store/engine/upgrade.rs`, SQL in `migrations/` beside `src/` |
//! | old rows are deleted | `actors/upkeep/retention.rs` (when), `store/retention.rs` (which) |
//! | a kept commit of automation is removed by age, or erased | `actors/upkeep/rescues.rs` |
//! | a run of automation is shown, fetched or retried | `http/automation.rs` |
//! | a commit is signed | `domain/automation/signing.rs` decides, `ssh_key.rs` beside it signs; `runtime/automation/api/signed.rs` has GitHub sign |
//! | a run uses a pull request that it did not open | `runtime/automation/api/target.rs` |
//! | a delivery of GitHub is authenticated, decided, queued and worked off | `http/triggers.rs`, `domain/automation/trigger/mod.rs`, `actors/triggers` |
//! | an installation is bound to one tenant | `store/tenants.rs` |
//! | a table is tied to sessions, workspaces and tenants | the lists in `store/erasure.rs` |
//! | an erasure hides its target, and late writes are dropped | `Erasures` in `store/erasure.rs`; the order of the steps is in `actors/erasure/mod.rs` |
//! | a session is prepared, with progress of its clone | `actors/workspaces/opening.rs`, `actors/handles/preparing.rs`; `runtime/preparing.rs` reports, `domain/session/preparation.rs` reads git's lines |
//! | a session gets a folder of its own, and loses it | `actors/workspaces/open.rs`; `actors/upkeep/folders.rs` removes it |
//! | a repository is cloned with a token of the App | `domain/automation/clone_access.rs` decides, `actors/workspaces/open.rs` asks, `actors/automation/credentials.rs` mints |
//! | a workspace is too large on disk | `runtime/workspaces/measure.rs` measures, `actors/upkeep/disk.rs` asks, `actors/handles/disk_use.rs` refuses |
//! | a transcript is cut | `domain/turn/transcript.rs` |
//! | an error code gets its HTTP status | `contract/problem.rs` |
//! | a request gets its id, is counted and, if it is refused, logged | `http/trace.rs`; the id reaches the runtime in `transport/request_id.rs` |
//! | a path gets 404 or 405 and its label in metrics | `http/route_table.rs` |
//! | an `Idempotency-Key` opens one session | `actors/workspaces/once.rs`, `store/session_keys.rs` |
//! | an agent is confined | `process/sandbox`: which paths (`mod.rs`, `places.rs`, `package.rs`), the kernel's rules (`ruleset.rs`), between fork and exec (`enforce.rs`) |
//! | this process protects itself, and agents get back its umask and limits | `process/inherited.rs` |
//! | an agent is killed | `process/watch.rs`; with a control group `process/cgroup.rs`; `process/orphans.rs` kills processes that left the group, found by parentage (`process/tree.rs`) |
//! | an agent's resources are limited | `domain/jail/limits.rs`; `process/cgroup.rs` |
//! | a tenant gets a user of its own | `domain/jail/pool.rs`, `process/pool.rs`; `process/ownership.rs` hands the workspace over, and `process/user.rs` gives a thread the rights of the user |
//! | work of an agent outside a turn | `domain/session/background.rs` decides, `actors/session/background.rs` applies, `actors/session/woken.rs` records |
//! | the agent of a killed supervisor is found again | `actors/session/adoption.rs`, called by `app/sessions.rs` (running turns, background) and `actors/workspaces/mod.rs` (loads) |
//! | mode, model and options survive the agent | `domain/session/choices.rs` decides, `actors/session/choices.rs` keeps them, `transport/acp/reapply.rs` sets them in a fresh agent |
//! | secrets of MCP servers survive the agent | `actors/handles/given_servers.rs` keeps them, `domain/session/mcp` removes them from the row, `actors/session/mcp_servers.rs` replaces servers and reports lost ones |
//! | named secrets of MCP servers get their values | `domain/session/mcp/named.rs` decides, `runtime/agents` has the settings |
//! | known secrets are found in streams | `domain/redaction/stream.rs`, used by `domain/turn/frames.rs` (messages; in the supervisor through `transport/redacted.rs`), `process/watch.rs` (stderr) |
//! | an idle session hibernates | `actors/session/mod.rs` stops it (`EndCause::Idle`), `actors/workspaces/supervisor.rs` writes `Hibernated` |
//! | a notification subscriber is evicted | `actors/handles/subscriber.rs` (queue full, stalled), `http/notifications/socket.rs` (malformed frame, silent, expired) |
//! | a peer is pinged and counts as dead | `domain/heartbeat.rs` |
//! | a second supervisor waits for the database | `app/membership.rs` claims, `cluster/membership.rs` renews, `domain/membership.rs` decides |
//! | SIGHUP reloads a setting | `app/reload.rs` |
//! | a request gets its caller, and is refused without the privilege of its route | rules `domain/access`, applied in `http/guard.rs`; `http/openapi.rs` reads the privilege that a route declares |
//! | a caller reaches a row | `http/rows.rs`, and nowhere else in `http/` |
//! | a token is made, found and revoked | `http/tokens.rs`, `actors/handles/client_tokens.rs`, `store/tokens.rs`; its last use is written in `actors/upkeep/token_use.rs` |
//! | an administrative change is recorded | `store/changes.rs`, in the transaction of `store/tenants.rs`, `store/routing/tenants.rs` or `store/tokens.rs` |
//! | a folder given by `path` is outside of the ceiling of its tenant | `domain/ceilings.rs` by its text, `runtime/workspaces/folders.rs` with links resolved |
//! | a choice of a caller exceeds a ceiling | `domain/ceilings.rs`, asked by `actors/workspaces/mod.rs` |
//! | the API gets its token | `app/access.rs`; the command line finds it in `process/local_server.rs` |
//! | a row of a newer version is read | `domain/newer.rs`; schema steps `store/engine/upgrade.rs` |
//!
//! # Glossary: one concept, one word
//!
//! - **agent, client, session, prompt turn, update, stop reason**: as in ACP. A **turn** is one prompt with its end.
//! - **caller**: the holder of a token, as the token identifies it: its **subject**, its **role** (a set of **privileges**, one
//!   of which each operation needs) and its **scope**: the tenant, workspace and user that it reaches. **Ceiling**: the most
//!   that callers of a tenant may choose; **limit**: the most that they may use.
//! - **tenant** (`installationId`), **workspace**: a tenant's folder that sessions share. **Isolated session**: one with a
//!   clone of its own, whose id in the runtime is that of the session.
//! - **runtime**: the container side. **Transport**: code that reaches an agent over one protocol. **Route**: what a
//!   workspace's turns use, `acp` or `http`; some members, labels and flags call it `protocol`. **Carrier**: the route
//!   that carried one turn, which may have begun before the route changed. **Fallback**: turns on the route `http`; a
//!   **headless command** is an agent's program for one prompt without ACP. A workspace is **in use** while its
//!   supervisor actor runs.
//! - **preparing**: the state of a session whose folder is being made, for instance by a clone, before its first agent.
//! - **background**: the state of a session whose agent works outside a turn. **Woken turn**: a turn that the agent began
//!   by itself. **Quiet**: a turn whose agent, with the processes that it started, has fallen silent.
//! - **outcome**: the end of a turn: completed, cancelled or failed. **Window**: a workspace's outcomes of the last
//!   hour over ACP. The fallback has a window too, which people see and no rule reads. **Flip**: one change of a
//!   workspace's route; a **rollback** goes to HTTP, a **restore** back to ACP. **Epoch**: the number of flips of a
//!   workspace so far. **Cool-down**: the wait between a rollback and the recovery. **Recovery**: first **probes**,
//!   which are handshakes with an agent, then **canaries**, which are a growing share of turns over ACP, then the
//!   restore. **Storm**: many workspaces that roll back at once.
//! - **jail**: what the kernel forbids an agent and everything that it starts. **Right**: one kind of restriction.
//!   **Preset**: what a known agent writes below `HOME`.
//! - **migration**: a planned move of a set of workspaces to another default route, which their turns use while ACP is
//!   healthy. A **run** is one such migration. **Schema upgrade**: a change of the database's tables (`lumilink
//!   migrate`, the folder `migrations`). The records named `migrations` of the audit are flips.
//! - **connection**: to an agent. **Socket**: one WebSocket. **Conversation** (`runtime/conversations`): an agent's
//!   process with the messages that are not yet settled; it survives a broken socket. **Resume**: a reconnection that
//!   continues a conversation. **Settled**: handled by the receiver, so that the sender need not keep it.
//! - **client requests**: calls of an agent to its ACP client, which is the supervisor: files, terminals, permissions.
//! - **notification**: one message to people (`toast` in frames, metrics and the command). **Stream**: a tenant's or
//!   the operators' sequence of notifications. **Cursor**: a reader's place in it. **Subscriber**: a reader of it; one
//!   that falls behind is **evicted**. **Store epoch**: the identity of a database, renewed after a restore from a
//!   backup, so that old cursors are rejected; `epoch` in frames.
//! - **note**: an entry of the transcript that records an event. **Session notice**: a notification and its note.
//! - **skip**: automation that was left out on purpose, always with a reason. **Run**: the automation of one turn, whose
//!   state, the **saga**, is stored after each step. **Fact**: what a step found or made. **Attempt**: a try to complete a
//!   run. **Rescue**: keeps a commit that could not be delivered. **Installation**: a GitHub App on an account. **Trigger**: a
//!   label or a mention at GitHub that starts a turn, and the delivery of GitHub that reports it.
//! - **seat**: permission for one live session; there are `capacity.max_sessions` of them. **Drain**: an orderly stop.
//!   **Arbiter**: a thread of actix that runs actors.
//! - **ceiling**: what callers of a tenant may choose at most. **Erasure**: removal of everything of a session, a workspace
//!   or a tenant.
//! - **telemetry**: metrics and logs. **Session progress**: frames about live sessions (`telemetry` in frames and
//!   flags).
//! - **attribution**: the initiator of a change, and the reason. **Handle** (`actors/handles`): an address or shared
//!   state through which one actor or a request handler reaches another. **Services**: the handles that sessions share.
//!
//! # A turn reports to two places
//!
//! 1. **Outcome** → [`actors::routing::window`] → [`actors::routing::router`] → [`actors::handles::route_gate`], where
//!    sessions read the route at the start of their next turn. The router sends the window no message about a flip:
//!    each outcome carries the epoch in which its turn began, and the window empties itself at the first outcome of a
//!    newer epoch and ignores those of older ones.
//! 2. **Event** → metrics, log, readers of the session's stream, and the database: the event, its audit row and its
//!    notification are one transaction, and subscribers are notified after the commit. [`domain::notify::notice`] has
//!    every text.
//!
//! # Invariants
//!
//! 1. Rules are in `domain`, where they are tested without an actor; actors only apply them.
//! 2. Actors do not import each other, except that a parent imports the child it starts. They import
//!    [`actors::handles::messages`] and hold actix recipients.
//! 3. One database writer per process ([`store::engine::writer`]); handlers read. Acknowledged data is on disk.
//!    While the database takes no writes, new work is refused with 503, no row is lost, and no arbiter waits.
//! 4. One restart rule ([`domain::session::restart`]): a fresh actor from a factory, backoff, 5 restarts in 30 s, then
//!    `failed`. The workspace supervisor applies it to sessions, [`actors::upkeep::keeper`] to the notification hub and
//!    the webhook poster.
//! 5. A turn has exactly one outcome: a dropped `TurnTicket` ends the turn with a failure
//!    ([`actors::session::turn_ticket`]).
//! 6. Text reaches disk, notification or log only as [`Redacted`](domain::redaction::Redacted), and JSON only as
//!    [`RedactedJson`](domain::redaction::RedactedJson); a secret has a type that cannot be printed.
//! 7. Every queue is bounded; its doc comment says why that number and what happens when it is full.
//! 8. A child process never outlives its session. It leads its own session and process group, and runs in a control group
//!    if one can be created; `process/watch.rs` kills the whole group and reaps it, `process/orphans.rs` the rest of the
//!    tree. Files of an agent of another user are read with that user's rights.
//!    Agents, headless commands and terminal commands run in a jail, which is made before fork and applied between fork
//!    and exec; a start whose jail is refused fails.
//! 9. HTTP status codes are chosen in [`contract::problem`], the environment is read in [`config`], metric names are in
//!    [`telemetry::metrics`], SQL is in [`store`].
//! 10. No constant has a different value under `cfg(test)`; tests set small values in the configuration.
//! 11. Locks do not poison (`parking_lot`), so a panic under a lock must leave consistent data: a critical section must
//!     not panic between two changes that belong together, and no guard is held across an `await`.
//!
//! # Walkthroughs
//!
//! **A new session**
//! 1. `http/sessions/mod.rs` checks the request; `actors/handles/capacity_guard.rs` gives a seat.
//! 2. `actors/workspaces/opening.rs` writes the row of a session whose repository is to be cloned, in the state `preparing`;
//!    `actors/workspaces/open.rs` has the runtime prepare the folder and records the workspace.
//! 3. `actors/workspaces/supervisor.rs` starts `actors/session/mod.rs`, which connects (`actors/session/connect.rs`)
//!    through `transport/acp` to `runtime/socket`; `runtime/agents/mod.rs` starts the agent.
//! 4. The session's row is committed (`store/sessions.rs`), then the caller is answered.
//!
//! **A prompt**
//! 1. `http/sessions/prompt.rs` finds the session without asking another actor ([`actors::handles::index`]).
//! 2. `actors/session/turn.rs` accepts it: the turn is committed (`store/turns/mod.rs`) before anything is sent.
//! 3. `transport/acp` frames it, `transport/socket` carries it, `runtime/conversations` hands it to the agent.
//! 4. Updates come back to `actors/session/agent_events.rs`, which publishes them ([`actors::handles::event_feed`]) and
//!    collects the transcript.
//! 5. The end of the turn and the rest of the transcript are one transaction (`actors/session/turn_ticket.rs`). After
//!    the commit the HTTP handler gets the result, and the runtime may drop the messages that it kept for a resume. A
//!    completed turn names the agent's own conversation, which knows the session up to that turn. With automation the
//!    agent's end is one transaction and the turn's end another (`actors/session/closing.rs`).
//!
//! **A crash of the agent**
//! 1. `process/watch.rs` reaps the process and kills the rest of its group; `process/stdio.rs` delivers everything that
//!    it wrote, then its exit status.
//! 2. The session ends its turn with a classified failure (`TurnOutcome` in `domain/turn/mod.rs`, the error code in
//!    `domain/turn/outcome.rs`) and stops.
//! 3. The drop guard of the session actor reports to `actors/workspaces/supervisor.rs`, which starts a fresh session.
//!    The agent reloads its own conversation, or gets it as context (`domain/session/context.rs`).
//!
//! **An idle session hibernates**
//! 1. `actors/session/mod.rs` starts a timer of `session.idle_timeout_s` after its start and after each turn; when it
//!    fires, the session ends its agent and stops with `EndCause::Idle`.
//! 2. `actors/workspaces/supervisor.rs` writes the state `Hibernated` and frees the seat.
//! 3. The next prompt, or `POST /acp/session/load`, starts the session again (`actors/workspaces/mod.rs`).
//!
//! **A workspace is rolled back**
//! 1. The turn's ticket writes end and outcome; `domain/routing/sampling.rs` makes it a success, a failure or neither,
//!    and `actors/routing/window.rs` counts it.
//! 2. `actors/routing/router.rs` applies the count to a copy of the route state (rules: `domain/routing/mod.rs`). The
//!    new state and the flip are one transaction (`store/routing/flips.rs`), which fails if the epoch has changed. The
//!    transaction counts the rollbacks of other workspaces: many at once are a storm, with one alarm for operators
//!    (`store/routing/storms.rs`). After the commit, the copy replaces the state.
//! 3. `actors/handles/route_gate.rs` shows the new route; the next turn of each session closes its connection and opens
//!    one on the other route. Ahead of the prompt, the new agent gets the part of the conversation that it missed.
//! 4. After the cool-down, the router starts the recovery: a probe, canaries, then the restore.
//!
//! **A turn over the fallback**
//! 1. `transport/http` posts the turn to the runtime, once: a prompt is never posted again.
//! 2. `runtime/fallback` runs it with a fresh agent or a headless command, and streams lines, then the result.
//! 3. If the stream breaks, the transport asks for the result by prompt id.
//!
//! **Changes of a turn are delivered**
//! 1. `actors/session/automation.rs` decides before the turn whether they are; the decision is in the turn's row.
//! 2. The transaction of the agent's end begins the run (`store/automation/sagas.rs`). `actors/session/closing.rs` waits until
//!    the agent is quiet.
//! 3. `domain/automation/saga.rs` decides the next step, `order.rs` beside it makes its input, and `actors/automation` sends it
//!    to the runtime, with a token for this one repository, and stores the outcome.
//! 4. `runtime/automation` carries it out: git in a repository of its own through a proxy that holds the token, or a request
//!    to GitHub's API. Each step finds what an earlier execution made.
//! 5. The end of the attempt, its record for the audit and its notification are one transaction with the end of the turn
//!    (`actors/automation/outcome.rs`). Later attempts are begun by `actors/automation/retries.rs`.
//!
//! **A fleet migrates**
//! 1. `http/routing/migrations.rs` records a run and then starts it.
//! 2. `actors/migrations/driver.rs` asks `domain/migration` for the workspaces of the next step and records the step.
//! 3. Before a move to ACP, an agent of the workspace must complete a handshake (`actors/migrations/moves.rs`).
//! 4. The workspace's router changes the default route; if the current route changes too, the flip carries the run's
//!    id.
//! 5. The result of the step is recorded. After a crash, the default route of each workspace shows whether it was
//!    moved.
//!
//! **A connection breaks**
//! 1. Both ends number the messages that they send and keep them until they are settled ([`domain::delivery`],
//!    [`acp::numbered`]).
//! 2. The runtime keeps agent and messages for `runtime.reconnect_grace_s` (`runtime/conversations`);
//!    `transport/socket` reconnects.
//! 3. Each end sends what the other missed; the turn continues. The session sees `reconnecting`, then `connected`.
//!
//! **The process `serve` dies**
//! 1. At start the store lists turns without an end (`store/turns/recovery.rs`).
//! 2. `actors/session/adoption.rs` reconnects to the agents that the runtime kept; their messages are replayed, and the
//!    turns end under their ids.
//! 3. `app/sessions.rs` stops turns over the fallback that still run in a separate runtime. All open turns that are left
//!    become `interrupted`, except those whose agent had ended: `actors/session/closing.rs` resumes their automation.
//!
//! **A subscriber of notifications**
//! 1. `http/notifications/access.rs` checks the token or ticket before the WebSocket upgrade (101).
//! 2. `http/notifications/feed.rs` replays from the store, page by page, as fast as the client reads.
//! 3. After the last page `actors/notifications/hub.rs` puts new notifications into the subscriber's bounded queue
//!    (`actors/handles/subscriber.rs`). A subscriber that falls behind is evicted; the close frame has the cursor from
//!    which it can continue. The socket actor of a client that reads nothing cannot run, so the task of the TCP
//!    connection closes it (`http/notifications/connection.rs`).
//!
//! **An operator's alert**
//! 1. Cause, notification and delivery are one transaction (`store/notifications/deliveries.rs`).
//! 2. `actors/notifications/webhook.rs` claims due deliveries by a lease; [`webhook`] signs and posts them.
//! 3. The row records the result: delivered, retried, or dead until it is replayed.
//!
//! **SIGTERM**, or SIGHUP after the terminal was closed ([`app`])
//! 1. `/readyz` turns 503 and new work is refused.
//! 2. Turns end, or are cancelled after `drain.timeout_s` (`config/sections/process.rs`); sessions hibernate.
//! 3. Subscribers' WebSockets are closed with code 1001; then runtime, HTTP, webhook posts and store stop.
//! 4. The membership is given back, so that a successor need not wait.
//!
//! # What is not here
//!
//! No module named utils, no global state but the log and the values that it must not show
//! (`domain/redaction/known.rs`), no prompt that is sent twice, no clock in `domain`.
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "this page links to the modules that it describes; they are private"
)]

mod acp;
mod actors;
mod app;
mod client;
mod cluster;
pub mod commands;
mod config;
mod contract;
mod demo_agent;
mod domain;
mod github;
mod http;
mod process;
mod runtime;
mod store;
mod telemetry;
mod transport;
mod webhook;
