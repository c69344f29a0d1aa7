//! Black-box tests: they speak HTTP, WebSocket and signals to the built program, one file per capability.

#![expect(
    clippy::disallowed_methods,
    reason = "the rules are for the program: tests wait on threads of their own and are told by the environment what they may use"
)]

mod harness;

mod access;
mod alerts;
mod audit;
mod automation;
mod automation_app;
mod automation_pulls;
mod automation_runs;
mod automation_signing;
mod background;
mod backup;
mod bounds;
mod browser;
mod canary;
mod cancel;
mod capacity;
mod cli;
mod client_token;
mod clients;
mod clock;
mod config;
mod demo;
mod documents;
mod drain;
mod durability;
mod erasure;
mod fallback;
mod faults;
mod flip_kills;
mod github_stand_in;
mod hostile_repositories;
mod http_manners;
mod idempotency;
mod interop;
mod isolate;
mod jail;
mod left_agents;
mod mcp_servers;
mod memory;
mod metrics;
mod migrations;
mod modes;
mod newer;
mod notification_faults;
mod notifications;
mod notifications_cli;
mod odd_agents;
mod openapi;
mod parity;
mod permission;
mod preparing;
mod progress;
mod prompt;
mod protocol;
mod reload;
mod request_log;
mod restore;
mod resume;
mod retention;
mod rollback;
mod runtime_alone;
mod security;
mod session_fallback;
mod sessions;
mod skips;
mod store_both;
mod stream;
mod supervision;
mod supervisors;
mod tenants;
mod transcript;
mod triggers;
mod users;
mod watchdog;
mod webhook;
mod workspaces;
