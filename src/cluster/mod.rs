//! Supervisors that share a database. Until replicas exist, one at a time is its member.

pub(crate) mod membership;
