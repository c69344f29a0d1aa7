//! Simulates a full disk.

use std::{
    ffi::CString, fs, io, os::unix::ffi::OsStrExt, os::unix::process::CommandExt, path::PathBuf, process::Command,
};

use super::process::Folder;

/// A way to fill the disk of the data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    /// A 4 MiB tmpfs, mounted in the program's own namespace. Writing to it when it is full gives ENOSPC, as on any
    /// disk. Requires root.
    Small,
    /// The machine's disk with `RLIMIT_FSIZE` lowered to simulate a full one: a write beyond the limit gives EFBIG,
    /// which the program has to treat as ENOSPC. Requires no privilege.
    Limited,
}

/// The largest file size on a full [`Disk::Limited`]. The program's log stays well below it.
const LIMIT_BYTES: u64 = 128 * 1024;

impl Disk {
    /// The most faithful variant available to this process.
    pub(crate) fn best() -> Self {
        // SAFETY: geteuid(2) has no preconditions.
        let is_root = unsafe { libc::geteuid() } == 0;
        if is_root && may_mount() {
            return Self::Small;
        }
        eprintln!("tmpfs cannot be mounted: a file size limit simulates the full disk");
        Self::Limited
    }

    /// Prepares `folder`/data and the command of a program that is about to start with it.
    pub(crate) fn prepare(self, folder: &Folder, command: &mut Command) {
        let data = folder.path().join("data");
        fs::create_dir_all(&data).expect("a folder");
        let path = CString::new(data.as_os_str().as_bytes()).expect("a path without NUL");
        let prepare = move || match self {
            Self::Small => mount(&path),
            // SAFETY: signal(2) is async-signal-safe. Without it, SIGXFSZ kills the process at the first write beyond
            // the limit.
            Self::Limited => match unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } {
                libc::SIG_ERR => Err(io::Error::last_os_error()),
                _ => Ok(()),
            },
        };
        // SAFETY: between fork and exec, the closure only makes system calls and does not allocate.
        unsafe { command.pre_exec(prepare) };
    }

    /// Fills the disk of the program.
    pub(crate) fn fill(self, pid: i32, folder: &Folder) {
        match self {
            Self::Small => {
                let mut filler = fs::File::create(filler(pid, folder)).expect("a file");
                let zeros = [0u8; 4096];
                while io::Write::write_all(&mut filler, &zeros).is_ok() {}
            }
            Self::Limited => {
                let wal = folder.path().join("data/lumilink.db-wal");
                let size = fs::metadata(&wal).expect("the database's WAL").len();
                assert!(size > LIMIT_BYTES, "the database's WAL has only {size} bytes: it could still grow");
                limit_files(pid, LIMIT_BYTES);
            }
        }
    }

    /// Frees the space taken by [`Self::fill`].
    pub(crate) fn free(self, pid: i32, folder: &Folder) {
        match self {
            Self::Small => fs::remove_file(filler(pid, folder)).expect("the filler was there"),
            Self::Limited => limit_files(pid, libc::RLIM_INFINITY),
        }
    }
}

/// The path of the file that fills the disk, seen from outside the program's namespace.
fn filler(pid: i32, folder: &Folder) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root{}/data/filler", folder.path().display()))
}

fn may_mount() -> bool {
    let folder = Folder::new();
    let path = CString::new(folder.path().as_os_str().as_bytes()).expect("a path without NUL");
    let mut command = Command::new("true");
    // SAFETY: as above.
    unsafe { command.pre_exec(move || mount(&path)) };
    command.status().is_ok_and(|status| status.success())
}

/// Mounts a small file system in a private namespace of the calling process; the kernel removes it with the last
/// process of that namespace.
fn mount(path: &CString) -> io::Result<()> {
    let check = |result| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: the strings end in NUL and live across the calls.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        let (none, root, private) = (c"none".as_ptr(), c"/".as_ptr(), libc::MS_REC | libc::MS_PRIVATE);
        check(libc::mount(none, root, std::ptr::null(), private, std::ptr::null()))?;
        let options = c"size=4m,mode=700".as_ptr();
        check(libc::mount(none, path.as_ptr(), c"tmpfs".as_ptr(), 0, options.cast()))
    }
}

/// Sets the soft file size limit of a running process.
fn limit_files(pid: i32, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is a valid struct, and the old limit is not requested.
    let result = unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) };
    assert_eq!(result, 0, "prlimit: {}", io::Error::last_os_error());
}
