//! The paths that every jail grants.

use super::ruleset::Access;

/// Programs, libraries and settings of the system, and what processes may know about the machine.
pub(super) const SYSTEM: [&str; 20] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc",
    "/opt",
    "/nix",
    "/gnu/store",
    "/snap",
    "/home/linuxbrew/.linuxbrew",
    "/run/current-system",
    "/var/lib/ca-certificates",
    "/var/lib/dpkg",
    // As a whole: a rule for `/proc/self` would name the process that makes it. Without capabilities, memory and
    // environment of processes outside the jail stay closed.
    "/proc",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/run/systemd/resolve",
];

/// Files that are often links to places outside [`SYSTEM`].
pub(super) const SYSTEM_LINKS: [&str; 3] = ["/etc/resolv.conf", "/etc/hosts", "/etc/localtime"];

/// Files that file modes reserve for root: hidden from agents that run as root, which have no capabilities but still
/// own these files.
pub(super) const OF_ROOT: [&str; 13] = [
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/security/opasswd",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/ssl/private",
    "/etc/krb5.keytab",
    "/etc/ssh/ssh_host_rsa_key",
    "/etc/ssh/ssh_host_ecdsa_key",
    "/etc/ssh/ssh_host_ed25519_key",
    "/etc/wireguard",
];

/// Devices. `/dev/shm` is for POSIX semaphores; processes of the same user share it.
pub(super) const DEVICES: [(&str, Access); 9] = [
    ("/dev/null", Access::Device),
    ("/dev/zero", Access::Device),
    ("/dev/full", Access::Device),
    ("/dev/random", Access::Device),
    ("/dev/urandom", Access::Device),
    ("/dev/tty", Access::Device),
    ("/dev/ptmx", Access::Device),
    ("/dev/pts", Access::Device),
    ("/dev/shm", Access::Write),
];

/// Folders that hold more than programs and are therefore never granted as the package of a program or as a `HOME`.
pub(super) const BROAD: [&str; 14] = [
    "/", "/home", "/tmp", "/var", "/var/tmp", "/var/lib", "/run", "/mnt", "/media", "/srv", "/dev", "/proc", "/sys",
    "/boot",
];
