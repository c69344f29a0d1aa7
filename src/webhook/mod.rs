//! Posts to webhooks, signed according to the Standard Webhooks specification and bounded in time and size; and the signatures
//! of what GitHub posts.
//!
//! Invariant: the content, time and number of posts are decided elsewhere. A secret leaves this folder only as a
//! signature, and an address only as its origin.

mod github;
mod poster;
mod signature;

pub(crate) use self::{
    github::{content_hash, is_signature, is_signed},
    poster::{Answered, NoAnswer, Poster, PosterOptions, Receiver},
    signature::Signer,
};
