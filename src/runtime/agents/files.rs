//! Serves `fs/*`: reads and writes an agent's files inside the folders of its sessions only.
//!
//! Paths are resolved relative to an open folder, component by component in the kernel or in `cap_std`, so neither
//! `..`, nor an absolute path, nor a symbolic link at any position leads out of it. Every function here blocks.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    path::Path,
};

use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};

use crate::{
    acp::{
        jsonrpc::{self, RpcError},
        schema::{ReadTextFileRequest, WriteTextFileRequest},
    },
    process::user::{FileIdentity, RunAs},
    runtime::workspaces::folders::SessionFolders,
};

/// Reads a UTF-8 text file with the rights of `run_as`: all of it, or `limit` lines starting at `line` (counted from 1).
///
/// More than `max_bytes` is an error instead of a truncated text, because an agent would take a part for the whole.
///
/// # Errors
/// `RESOURCE_NOT_FOUND` for a missing file; `INVALID_PARAMS` for a path outside the session's folders, and for
/// anything that is not a readable, regular UTF-8 file within the limit; `INTERNAL_ERROR` for other I/O errors.
pub(crate) fn read(
    folders: &SessionFolders,
    request: &ReadTextFileRequest,
    max_bytes: usize,
    run_as: Option<RunAs>,
) -> Result<String, RpcError> {
    let (folder, relative) = folders.find(&request.path).ok_or_else(|| outside(&request.path))?;
    let _identity = assume(run_as)?;
    // Non-blocking, so that opening a pipe or device in the workspace cannot hang the thread.
    let options = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).clone();
    let file = folder.dir().open_with(&relative, &options).map_err(|cause| explain(&request.path, &cause))?;
    let metadata = file.metadata().map_err(|cause| explain(&request.path, &cause))?;
    if !metadata.is_file() {
        return Err(RpcError::new(jsonrpc::INVALID_PARAMS, format!("{}: is not a file", request.path.display())));
    }
    let mut reader = BufReader::new(file);
    let failed = |cause: io::Error| explain(&request.path, &cause);
    for _ in 1..request.line.unwrap_or(1).max(1) {
        if reader.skip_until(b'\n').map_err(failed)? == 0 {
            break;
        }
    }
    let mut bytes = Vec::new();
    // One byte more than the limit shows that the file is too large, without reading it whole.
    let mut reader = reader.take(max_bytes as u64 + 1);
    match request.limit {
        None => drop(reader.read_to_end(&mut bytes).map_err(failed)?),
        Some(lines) => {
            for _ in 0..lines {
                if reader.read_until(b'\n', &mut bytes).map_err(failed)? == 0 {
                    break;
                }
            }
        }
    }
    if bytes.len() > max_bytes {
        let detail = format!("{}: is larger than {max_bytes} bytes; use `line` and `limit`", request.path.display());
        return Err(RpcError::new(jsonrpc::INVALID_PARAMS, detail));
    }
    String::from_utf8(bytes)
        .map_err(|_| RpcError::new(jsonrpc::INVALID_PARAMS, format!("{}: is not UTF-8 text", request.path.display())))
}

/// Writes a text file, replacing its content, and creates missing parent folders. New files and folders belong to
/// `run_as`.
///
/// # Errors
/// As for [`read`]. The write is not atomic: an I/O error can leave a partly written file.
pub(crate) fn write(
    folders: &SessionFolders,
    request: &WriteTextFileRequest,
    run_as: Option<RunAs>,
) -> Result<(), RpcError> {
    let (folder, relative) = folders.find(&request.path).ok_or_else(|| outside(&request.path))?;
    let failed = |cause: io::Error| explain(&request.path, &cause);
    // Assumed before the folders are created, so that they belong to the agent's user too.
    let _identity = assume(run_as)?;
    if let Some(parent) = relative.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_folders(folder.dir(), parent).map_err(failed)?;
    }
    let options = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK).clone();
    let mut file = folder.dir().open_with(&relative, &options).map_err(failed)?;
    file.write_all(request.content.as_bytes()).map_err(failed)
}

/// Creates a folder and its parents. A symbolic link in the path is accepted if it leads to a folder inside `dir`.
fn make_folders(dir: &Dir, path: &Path) -> io::Result<()> {
    match dir.create_dir_all(path) {
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => dir.metadata(path).map(drop),
        made => made,
    }
}

fn assume(run_as: Option<RunAs>) -> Result<Option<FileIdentity>, RpcError> {
    let assumed = run_as.map(RunAs::assume_for_files).transpose();
    assumed
        .map_err(|cause| RpcError::new(jsonrpc::INTERNAL_ERROR, format!("the rights of the agent's user: {cause}")))
}

fn outside(path: &Path) -> RpcError {
    RpcError::new(jsonrpc::INVALID_PARAMS, format!("{}: is outside the session's workspace", path.display()))
}

fn explain(path: &Path, cause: &io::Error) -> RpcError {
    let code = match cause.kind() {
        io::ErrorKind::NotFound => jsonrpc::RESOURCE_NOT_FOUND,
        // `cap_std` reports a path that leads out of the folder as `PermissionDenied` without an OS error number.
        io::ErrorKind::PermissionDenied if cause.raw_os_error().is_none() => return outside(path),
        _ if cause.raw_os_error() == Some(libc::EXDEV) => return outside(path),
        io::ErrorKind::PermissionDenied | io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => {
            jsonrpc::INVALID_PARAMS
        }
        _ => jsonrpc::INTERNAL_ERROR,
    };
    RpcError::new(code, format!("{}: {cause}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::runtime::workspaces::folders::AllowedFolders;

    struct Place {
        base: tempfile::TempDir,
        folders: SessionFolders,
    }

    fn place() -> Place {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(base.path().join("root/ws/sub")).unwrap();
        std::fs::write(base.path().join("secret"), "secret").unwrap();
        let allowed = AllowedFolders::new(&base.path().join("root"), &[], &[]).unwrap();
        let folders = SessionFolders::default();
        folders.add(allowed.open(base.path().join("root/ws").to_str().unwrap()).unwrap()).unwrap();
        Place { base, folders }
    }

    impl Place {
        fn path(&self, name: &str) -> std::path::PathBuf {
            self.base.path().join("root/ws").join(name)
        }

        fn read(&self, name: &str) -> Result<String, RpcError> {
            read(&self.folders, &ReadTextFileRequest::new("s", self.path(name)), 100, None)
        }

        fn write(&self, name: &str, text: &str) -> Result<(), RpcError> {
            write(&self.folders, &WriteTextFileRequest::new("s", self.path(name), text), None)
        }
    }

    #[test]
    fn written_text_is_read_back_and_parent_folders_are_created() {
        let place = place();
        place.write("a/b/c.txt", "one\ntwo\nthree\n").unwrap();
        assert_eq!(place.read("a/b/c.txt").unwrap(), "one\ntwo\nthree\n");
        let mut request = ReadTextFileRequest::new("s", place.path("a/b/c.txt"));
        request.line = Some(2);
        request.limit = Some(1);
        assert_eq!(read(&place.folders, &request, 100, None).unwrap(), "two\n");
        request.line = Some(9);
        assert_eq!(read(&place.folders, &request, 100, None).unwrap(), "");
        place.write("a/b/c.txt", "x").unwrap();
        assert_eq!(place.read("a/b/c.txt").unwrap(), "x");
    }

    #[test]
    fn paths_and_links_out_of_the_workspace_are_refused() {
        let place = place();
        symlink(place.base.path(), place.path("up")).unwrap();
        symlink(place.base.path().join("secret"), place.path("file")).unwrap();
        symlink("../../secret", place.path("relative")).unwrap();
        symlink("sub", place.path("inside")).unwrap();
        let secret = place.base.path().join("secret");
        let outside = [
            "../../secret",
            "sub/../../../secret",
            "up/secret",
            "file",
            "relative",
            "/etc/passwd",
            secret.to_str().unwrap(),
        ];
        for name in outside {
            assert_eq!(place.read(name).unwrap_err().code, jsonrpc::INVALID_PARAMS, "read {name}");
            assert_eq!(place.write(name, "x").unwrap_err().code, jsonrpc::INVALID_PARAMS, "write {name}");
        }
        assert_eq!(place.write("up/new/file", "x").unwrap_err().code, jsonrpc::INVALID_PARAMS);
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "secret");
        place.write("inside/ok", "links within the workspace are allowed").unwrap();
        assert!(place.path("sub/ok").exists());
    }

    #[test]
    fn missing_file_is_32002_and_unreadable_content_is_32602() {
        let place = place();
        assert_eq!(place.read("none").unwrap_err().code, jsonrpc::RESOURCE_NOT_FOUND);
        assert_eq!(place.read("none/at/all").unwrap_err().code, jsonrpc::RESOURCE_NOT_FOUND);
        std::fs::write(place.path("binary"), [0xff, 0xfe]).unwrap();
        std::fs::write(place.path("large"), "x".repeat(101)).unwrap();
        for name in ["sub", "binary", "large", "."] {
            assert_eq!(place.read(name).unwrap_err().code, jsonrpc::INVALID_PARAMS, "{name}");
        }
    }

    #[test]
    fn fifo_in_the_workspace_fails_without_blocking() {
        let place = place();
        let name = std::ffi::CString::new(place.path("fifo").to_str().unwrap()).unwrap();
        // SAFETY: the name is a C string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert!(place.read("fifo").is_err());
        assert!(place.write("fifo", "x").is_err());
    }
}
