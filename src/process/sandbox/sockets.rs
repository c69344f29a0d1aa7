//! Sockets of container engines that an agent could connect to, and so become root on the machine. Landlock before ABI 9 does
//! not restrict connections to UNIX sockets with a path.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use crate::process::user::RunAs;

/// Where the engines listen, beside the folder of the user in `/run/user`.
const ENGINES: [&str; 5] = [
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
];

/// User, and all its groups.
struct Identity {
    uid: u32,
    groups: Vec<u32>,
}

/// The sockets that a process of this user may connect to by their modes. Capabilities do not count: agents have none.
/// Blocks.
pub(crate) fn reachable(user: Option<RunAs>) -> Vec<PathBuf> {
    let identity = match user {
        Some(user) => Identity { uid: user.uid, groups: vec![user.gid] },
        None => {
            let groups = rustix::process::getgroups().unwrap_or_default();
            let groups = groups.into_iter().chain([rustix::process::getegid()]).map(rustix::process::Gid::as_raw);
            Identity { uid: rustix::process::geteuid().as_raw(), groups: groups.collect() }
        }
    };
    let own = ["docker.sock", "podman/podman.sock"].map(|name| format!("/run/user/{}/{name}", identity.uid));
    let paths = ENGINES.iter().map(PathBuf::from).chain(own.map(PathBuf::from));
    let mut found: Vec<_> =
        paths.filter_map(|path| path.canonicalize().ok()).filter(|it| connects(it, &identity)).collect();
    found.sort();
    found.dedup();
    found
}

fn connects(socket: &Path, identity: &Identity) -> bool {
    let passes = |folder: &Path| fs::metadata(folder).is_ok_and(|it| allows(&it, identity, 0o1));
    fs::metadata(socket).is_ok_and(|it| it.file_type().is_socket() && allows(&it, identity, 0o2))
        && socket.ancestors().skip(1).all(passes)
}

/// True if the mode allows `bits` (4 read, 2 write, 1 pass) to this user.
fn allows(metadata: &fs::Metadata, identity: &Identity, bits: u32) -> bool {
    let shift = if metadata.uid() == identity.uid {
        6
    } else if identity.groups.contains(&metadata.gid()) {
        3
    } else {
        0
    };
    (metadata.mode() >> shift) & bits == bits
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, net::UnixListener};

    use super::*;

    #[test]
    fn socket_is_reachable_as_its_mode_and_its_folders_allow() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().canonicalize().unwrap().join("engine.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        let own = rustix::process::geteuid().as_raw();
        let owner = Identity { uid: own, groups: vec![] };
        let stranger = Identity { uid: own + 1, groups: vec![] };
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(folder.path(), 0o700);
        mode(&socket, 0o666);
        assert!(connects(&socket, &owner));
        assert!(!connects(&socket, &stranger), "the folder is private");
        mode(folder.path(), 0o755);
        assert!(connects(&socket, &stranger));
        mode(&socket, 0o660);
        assert!(!connects(&socket, &stranger));
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(!connects(&folder.path().join("file"), &owner));
    }
}
