//! The machine and the program of a run.

use std::{fs, path::Path, process::Command};

use serde::Serialize;

use super::open_files::OpenFiles;

/// The machine and the program.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Facts {
    /// Number of processors that this process may use.
    pub cores: usize,
    /// Model name of the first processor.
    pub processor: String,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// Load average of the minute before the run.
    pub load_average: f64,
    /// File system of databases and workspaces: on `tmpfs` a commit costs next to nothing.
    pub file_system: String,
    pub open_files: OpenFiles,
    /// Path of the measured program.
    pub program: String,
    pub version: &'static str,
    /// Commit of the program: from the build, else from the checkout around the program.
    pub commit: String,
    /// `release`, or `debug`: built without optimisation, so that the figures mean little.
    pub profile: &'static str,
}

/// Gathers the facts. Values that the system does not report are `unknown` or 0.
pub(crate) fn gather(program: &Path, folder: &Path, open_files: OpenFiles) -> Facts {
    Facts {
        cores: cores(),
        processor: field("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
        memory_bytes: memory_bytes().unwrap_or(0),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|_| unknown(), |it| it.trim().to_owned()),
        load_average: load_average().unwrap_or(0.0),
        file_system: file_system(folder).unwrap_or_else(unknown),
        open_files,
        program: program.display().to_string(),
        version: env!("CARGO_PKG_VERSION"),
        commit: option_env!("LUMILINK_COMMIT").map(str::to_owned).or_else(|| commit(program)).unwrap_or_else(unknown),
        profile: if cfg!(debug_assertions) { "debug" } else { "release" },
    }
}

/// Number of processors that this process may use; 0 where it is unknown.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, std::num::NonZero::get)
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory_bytes() -> Option<u64> {
    let kilobytes: u64 = field("/proc/meminfo", "MemTotal")?.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// Type of the file system that holds a folder: the deepest mount above it.
fn file_system(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    file_system_in(&mounts, &folder)
}

fn file_system_in(mounts: &str, folder: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut parts = line.split(' ');
        Some((parts.nth(1)?, parts.next()?))
    });
    // The later of two mounts at one place hides the other; `max_by_key` returns the last of equals.
    let deepest = mounts.filter(|(at, _)| folder.starts_with(at)).max_by_key(|(at, _)| at.len());
    deepest.map(|(_, kind)| kind.to_owned())
}

/// Commit of the checkout around the program, which may have changed since the build.
fn commit(program: &Path) -> Option<String> {
    let folder = program.parent()?;
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|it| !it.is_empty());
    Some(if changed { format!("{commit} with changes") } else { commit })
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Facts {
        /// An unoptimised build with its database on tmpfs.
        pub(crate) fn sample() -> Self {
            Self {
                cores: 2,
                processor: "Example".into(),
                memory_bytes: 8 << 30,
                kernel: "6.1".into(),
                load_average: 0.5,
                file_system: "tmpfs".into(),
                open_files: OpenFiles { limit: 1024, hard_limit: 4096 },
                program: "target/debug/lumilink".into(),
                version: "0.1.0",
                commit: "abc".into(),
                profile: "debug",
            }
        }
    }

    #[test]
    fn file_system_is_that_of_the_deepest_mount() {
        let mounts = "overlay / overlay rw 0 0\ntmpfs /tmp tmpfs rw 0 0\next4 /tmp/data ext4 rw 0 0\n";
        for (folder, kind) in [("/tmp/x", "tmpfs"), ("/tmp/data/x", "ext4"), ("/tmpfiles", "overlay")] {
            assert_eq!(file_system_in(mounts, Path::new(folder)).as_deref(), Some(kind));
        }
    }

    #[test]
    fn facts_of_this_machine_are_known() {
        let facts = gather(Path::new("/nowhere/program"), Path::new("/"), OpenFiles { limit: 1, hard_limit: 1 });
        assert!(facts.cores > 0 && facts.memory_bytes > 0 && facts.kernel != "unknown", "{facts:?}");
    }
}
