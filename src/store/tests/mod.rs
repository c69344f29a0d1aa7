//! Tests of the store. Almost all of them run on both databases.

mod audit;
mod capacity_alerts;
mod deliveries;
mod erasure;
mod fixture;
mod history;
mod identity;
mod lists;
mod migration_runs;
mod notices;
mod notifications;
mod replicas;
mod routes;
mod sagas;
mod session_keys;
mod session_story;
mod sessions;
mod statements;
mod storms;
mod transcript;
mod turns;
mod upgrade;
mod webhook_deliveries;
mod writing;

use self::fixture::TestDatabase;
