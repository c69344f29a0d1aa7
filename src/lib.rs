//! LumiLink
pub mod acp;
pub mod config;
pub mod contract;
pub mod domain;
pub mod store;
pub mod transport;
