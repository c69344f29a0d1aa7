//! The log of the commands that serve.

use super::flags::CommandError;
use crate::{
    config::sections::{Log, LogFormat},
    telemetry::logging::{self, LineForm},
};

/// Sets it up; to be called once, before anything is logged.
///
/// # Errors
/// Where it was set up before.
pub fn start(settings: &Log) -> Result<(), CommandError> {
    let form = match settings.format {
        LogFormat::Json => LineForm::Json,
        LogFormat::Text => LineForm::Text,
    };
    logging::init(form, &settings.level).map_err(|cause| CommandError::failed("the log", &cause))
}
