//! The server of a data folder: its address and token, which the server leaves for commands of the same user.
//!
//! The folder has two files of mode 0600: `token`, a random text that stays, and `address`, which names the running
//! server. A command sends the token to that address alone, and only while the server that wrote the file runs, because
//! another program may have taken the port since.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::identity;
use crate::config::ClientSettings;

/// Name of the file with the token.
const TOKEN: &str = "token";
/// Name of the file with the address.
const ADDRESS: &str = "address";
/// Largest file that is read, in bytes. Both are far smaller.
const MAX_BYTES: u64 = 4096;

/// The file `address`.
#[derive(Debug, Serialize, Deserialize)]
struct Address {
    /// Where a program of this machine reaches the server: `http://127.0.0.1:8080`.
    http: String,
    /// The process, to recognise its end.
    process: String,
}

/// The path of the token's file.
pub(crate) fn token_path(data_dir: &Path) -> PathBuf {
    data_dir.join(TOKEN)
}

/// Reads the token of a data folder, and makes one of 256 random bits if there is none. Of servers that start at the same
/// time all get the same one.
///
/// # Errors
/// The file cannot be read or written, belongs to another user, may be read by others, or has no usable token.
pub(crate) fn token(data_dir: &Path) -> io::Result<SecretString> {
    let path = token_path(data_dir);
    match read_private(&path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
        read => return read.and_then(|text| usable(&text)),
    }
    // Each half has 122 random bits from the system.
    let fresh = SecretString::from(format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()));
    let beside = write_beside(&path, fresh.expose_secret())?;
    // A link is refused if another server was faster; its token counts then. Some file systems have no links.
    match fs::hard_link(&beside, &path) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => fs::rename(&beside, &path)?,
        _ => fs::remove_file(&beside)?,
    }
    usable(&read_private(&path)?)
}

fn usable(text: &str) -> io::Result<SecretString> {
    let token = text.trim_end();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let what = "must have visible ASCII characters without spaces; remove it, and the next start makes a new one";
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(SecretString::from(token))
}

/// Records the address of the server of this process.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn record(data_dir: &Path, listen: SocketAddr) -> io::Result<()> {
    let path = data_dir.join(ADDRESS);
    let http = format!("http://{}", reachable(listen));
    let address = Address { http, process: identity::of_this_process() };
    let beside = write_beside(&path, &serde_json::to_string(&address)?)?;
    fs::rename(beside, path)
}

/// Removes the recorded address, if it is that of this process.
pub(crate) fn forget(data_dir: &Path) {
    let path = data_dir.join(ADDRESS);
    if read_address(&path).is_some_and(|address| address.process == identity::of_this_process()) {
        // If it stays, readers see that the process has ended.
        let _ = fs::remove_file(path);
    }
}

/// The running server of a data folder, with its token if the folder has one. `None` if no server of this machine runs
/// with it, or if its files are not this user's.
pub(crate) fn find(data_dir: &Path) -> Option<ClientSettings> {
    let address = read_address(&data_dir.join(ADDRESS))?;
    // Any other answer: another program may listen at the address.
    if identity::has_ended(&address.process) != Some(false) {
        return None;
    }
    let url = address.http.parse().ok()?;
    let token = read_private(&token_path(data_dir)).and_then(|text| usable(&text)).ok();
    Some(ClientSettings { url, token })
}

fn read_address(path: &Path) -> Option<Address> {
    serde_json::from_str(&read_private(path).ok()?).ok()
}

/// The address by which a program of this machine reaches a listener.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Reads a small file of this user that no other user can read or write. Follows no link.
fn read_private(path: &Path) -> io::Result<String> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let facts = file.metadata()?;
    let refused = |what: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    // SAFETY: a system call without arguments.
    let own = unsafe { libc::geteuid() };
    if !facts.is_file() || facts.uid() != own {
        return refused("is not a file of the user that runs this program");
    }
    if facts.mode() & 0o077 != 0 {
        return refused("can be used by other users; run chmod 600, or remove it and the next start makes a new one");
    }
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a new private file beside `path`.
fn write_beside(path: &Path, text: &str) -> io::Result<PathBuf> {
    let beside = path.with_extension(Uuid::new_v4().simple().to_string());
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let written = write_line(file, text);
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written.map(|()| beside)
}

fn write_line(mut file: File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn shown(token: &SecretString) -> &str {
        token.expose_secret()
    }

    #[test]
    fn token_is_made_once_and_only_its_user_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let made = token(folder.path()).unwrap();
        assert_eq!(shown(&made).len(), 64);
        assert_eq!(shown(&token(folder.path()).unwrap()), shown(&made));
        assert_eq!(fs::metadata(token_path(folder.path())).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn servers_that_start_at_once_get_the_same_token() {
        let folder = tempfile::tempdir().unwrap();
        let tokens: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| token(folder.path()).unwrap())).collect();
            threads.into_iter().map(|thread| shown(&thread.join().unwrap()).to_owned()).collect()
        });
        assert!(tokens.iter().all(|token| *token == tokens[0]), "{tokens:?}");
    }

    #[test]
    fn token_that_others_could_have_read_or_placed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = token_path(folder.path());
        fs::write(&path, "0123456789abcdef\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(token(folder.path()).unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(shown(&token(folder.path()).unwrap()), "0123456789abcdef");
        fs::write(&path, "\n").unwrap();
        assert!(token(folder.path()).unwrap_err().to_string().contains("remove it"));
        fs::remove_file(&path).unwrap();
        fs::write(folder.path().join("elsewhere"), "0123456789abcdef\n").unwrap();
        symlink("elsewhere", &path).unwrap();
        token(folder.path()).unwrap_err();
    }

    #[test]
    fn running_server_is_found_and_an_ended_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        assert!(find(folder.path()).is_none());
        let made = token(folder.path()).unwrap();
        record(folder.path(), "0.0.0.0:8123".parse().unwrap()).unwrap();
        let found = find(folder.path()).unwrap();
        assert_eq!(found.url.as_str(), "http://127.0.0.1:8123/");
        assert_eq!(found.token.as_ref().map(shown), Some(shown(&made)));
        // The start time in the identity is of another process with the same number.
        let path = folder.path().join(ADDRESS);
        let ended = fs::read_to_string(&path).unwrap().replace(&format!(".{}.", std::process::id()), ".0.");
        fs::write(&path, ended).unwrap();
        assert!(find(folder.path()).is_none());
        forget(folder.path());
        assert!(path.exists(), "it is not the address of this process");
        record(folder.path(), "[::]:8123".parse().unwrap()).unwrap();
        assert_eq!(find(folder.path()).unwrap().url.as_str(), "http://[::1]:8123/");
        forget(folder.path());
        assert!(!path.exists());
    }
}
