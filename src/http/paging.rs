//! Pages of lists: how long they are and where they begin.

use super::{HttpState, problem::ApiError};
use crate::{
    domain::turn::outcome::{ErrorCode, Failure},
    store::{self, Cursor},
};

/// The length of a page.
pub(super) fn page_size(state: &HttpState, limit: Option<usize>) -> Result<usize, ApiError> {
    let most = state.config.limits.page_entries.min(store::MAX_PAGE);
    match limit {
        Some(limit) if limit == 0 || limit > most => {
            Err(Failure::new(ErrorCode::InvalidRequest, format!("limit: must be 1 to {most}")).into())
        }
        Some(limit) => Ok(limit),
        // A screen full.
        None => Ok(most.min(50)),
    }
}

/// The page that a caller asks for.
pub(super) fn page(state: &HttpState, limit: Option<usize>, cursor: Option<String>) -> Result<store::Page, ApiError> {
    let bad = |_| ApiError::new(ErrorCode::InvalidRequest, "cursor: not one of ours");
    let after = cursor.map(|cursor| cursor.parse::<Cursor>().map_err(bad)).transpose()?;
    Ok(store::Page { limit: page_size(state, limit)?, after })
}
