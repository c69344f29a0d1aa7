//! Disks that can be full.

use std::{
    ffi::CString, fs, io, os::unix::ffi::OsStrExt, os::unix::process::CommandExt, path::PathBuf, process::Command,
};

use super::process::Folder;

/// What stands for the disk of the data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    /// A file system in memory of 4 MiB, mounted where only the program sees it. Writing to it when it is full
    /// gives ENOSPC, as on any disk. Only root may mount.
    Small,
    /// The disk that is there, with `RLIMIT_FSIZE` lowered when it is to be full: what would make a file longer
    /// than the limit gives EFBIG, which the program has to take as it takes ENOSPC. Works for everybody.
    Limited,
}

/// Above this size no file can grow on a [`Disk::Limited`] that is full. The program's log stays well below.
const LIMIT_BYTES: u64 = 128 * 1024;

impl Disk {
    /// The most faithful one that can be had here.
    pub(crate) fn best() -> Self {
        // SAFETY: geteuid(2) has no preconditions.
        let is_root = unsafe { libc::geteuid() } == 0;
        if is_root && may_mount() {
            return Self::Small;
        }
        eprintln!("nothing can be mounted here: a limit on the size of files stands for the full disk");
        Self::Limited
    }

    /// Arranges it for a program that is about to start with `folder`/data.
    pub(crate) fn prepare(self, folder: &Folder, command: &mut Command) {
        let data = folder.path().join("data");
        fs::create_dir_all(&data).expect("a folder");
        let path = CString::new(data.as_os_str().as_bytes()).expect("a path without NUL");
        let prepare = move || match self {
            Self::Small => mount(&path),
            // SAFETY: signal(2) is async-signal-safe. Without it the first write too far ends the process.
            Self::Limited => match unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } {
                libc::SIG_ERR => Err(io::Error::last_os_error()),
                _ => Ok(()),
            },
        };
        // SAFETY: between fork and exec it makes system calls alone, and allocates nothing.
        unsafe { command.pre_exec(prepare) };
    }

    /// Leaves no room to the program.
    pub(crate) fn fill(self, pid: i32, folder: &Folder) {
        match self {
            Self::Small => {
                let mut filler = fs::File::create(filler(pid, folder)).expect("a file");
                let zeros = [0u8; 4096];
                while io::Write::write_all(&mut filler, &zeros).is_ok() {}
            }
            Self::Limited => {
                let wal = folder.path().join("data/lumilink.db-wal");
                let size = fs::metadata(&wal).expect("the database's log").len();
                assert!(size > LIMIT_BYTES, "the database's log has only {size} bytes: it could still grow");
                limit_files(pid, LIMIT_BYTES);
            }
        }
    }

    /// Gives the room back.
    pub(crate) fn free(self, pid: i32, folder: &Folder) {
        match self {
            Self::Small => fs::remove_file(filler(pid, folder)).expect("the filler was there"),
            Self::Limited => limit_files(pid, libc::RLIM_INFINITY),
        }
    }
}

/// The file that takes the room, as it is seen from here.
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

/// Mounts a small file system for the calling process and its children alone; it goes with the last of them.
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

/// Sets the soft limit on the size of files of a running process.
fn limit_files(pid: i32, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit is a valid struct, and the old one is not asked for.
    let result = unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) };
    assert_eq!(result, 0, "prlimit: {}", io::Error::last_os_error());
}
