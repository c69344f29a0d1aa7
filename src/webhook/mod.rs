//! Posts to webhooks: signed as the Standard Webhooks specification says, bounded in time and size.
//!
//! Invariant: what is posted, when and how often is decided elsewhere. No secret leaves this folder but as a signature,
//! and no address but as its origin.

mod poster;
mod signature;

pub(crate) use self::{
    poster::{Answered, NoAnswer, Poster, PosterOptions},
    signature::Signer,
};
