//! Every test runs on both databases.

mod capacity_alerts;
mod fixture;
mod lists;
mod sessions;
mod turns;
mod writing;

use fixture::TestDatabase;
