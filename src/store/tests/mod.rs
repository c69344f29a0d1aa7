//! Every test runs on both databases.

mod fixture;
mod lists;
mod sessions;
mod turns;
mod writing;

use fixture::TestDatabase;
