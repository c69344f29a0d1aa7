//! `lumilink backup`

use std::{io::Write, path::PathBuf, process::ExitCode, time::Instant};

use clap::Args;

use super::flags::{CommandError, CommonFlags, print};
use crate::app::{self, CopyProgress};

/// Exit code after SIGINT, as shells report it.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    common: CommonFlags,
    /// File to create, with mode 0600. A file that exists is refused.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(crate) fn run(arguments: &BackupArgs) -> Result<ExitCode, CommandError> {
    let loaded = arguments.common.load(&[])?;
    let began = Instant::now();
    let report = |progress: CopyProgress| {
        // Without standard error there is no progress to see.
        let (copied, database) = (mebibytes(progress.copied), mebibytes(progress.database));
        let _ = writeln!(std::io::stderr(), "copied {copied} of at most {database}");
    };
    let copied = actix::System::new().block_on(app::back_up(&loaded, &arguments.file, report));
    match copied.map_err(|cause| CommandError::failed("backup", &cause))? {
        Some(bytes) => {
            let (file, seconds) = (arguments.file.display(), began.elapsed().as_secs_f64());
            print(&format!("{file}: {} in {seconds:.1} s, checked", mebibytes(bytes)))?;
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let _ = writeln!(std::io::stderr(), "lumilink: backup: interrupted; nothing was written");
            // The copying thread still runs, and an orderly end would wait for it.
            std::process::exit(INTERRUPTED.into());
        }
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
