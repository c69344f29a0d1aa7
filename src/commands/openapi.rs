use std::process::ExitCode;

use super::flags::{CommandError, print};
use crate::http;

/// Prints the document that the server serves at `/openapi.json`.
pub(crate) fn run() -> Result<ExitCode, CommandError> {
    let document = http::document().to_pretty_json();
    print(&document.map_err(|cause| CommandError::failed("the document", &cause))?)?;
    Ok(ExitCode::SUCCESS)
}
