//! Every test runs on both databases.

mod capacity_alerts;
mod audit;
mod fixture;
mod lists;
mod routes;
mod session_story;
mod sessions;
mod turns;
mod writing;

use fixture::TestDatabase;
